"""How likely the missing pixels are given the observed ones, by importance sampling.

log p(x_m | x_o) = log p(x) - log p(x_o): two marginal likelihoods, of all pixels and of the observed ones.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vnca.checks import require_tensor, whole
from vnca.inpainting import GROUP, ITERATIONS, chains_of
from vnca.posterior import Search, Task, decode, fit, prepare, require_task, weighted
from vnca.priors import without_autocast
from vnca.vae import VAE


@torch.no_grad()
def conditional_log_likelihood(
    model: VAE,
    x: Tensor,
    observed: Tensor,
    num_samples: int = 128,
    generator: torch.Generator | None = None,
) -> Tensor:
    """log p(x_m | x_o) = log p(x) - log p(x_o), of the missing pixels given the observed ones: `(B,)` nats.

    Both terms are estimated by `evidence`, each with Gaussians fitted to its own posterior. Each is too low in
    expectation, by less with more samples. So their difference is no bound: where log p(x_o) is underestimated by more
    than log p(x), it flatters the model. The upper bounds of `evidence` tell by how much at most.

    Args:
        model: a `VAE`.
        x: images `(B, 1, 28, 28)` in [0, 1], complete: where the mask is False they hold what is to be predicted.
        observed: bool mask of the same shape, True where a pixel is observed.
        num_samples: latents of each image for each of the two terms.
        generator: source of the noise, for reproducible figures.

    Raises:
        ValueError: as `inpaint` does.
    """
    require_task(x, observed)
    some_missing = ~observed.flatten(1).all(dim=1)
    whole = evidence(model, x, torch.ones_like(observed), num_samples, generator).log_likelihood
    part = evidence(model, x, observed, num_samples, generator).log_likelihood
    return torch.where(some_missing, whole - part, 0)  # with no pixel missing nothing is left to predict


@dataclass(frozen=True)
class Evidence:
    """What the observed pixels of B images tell, by importance sampling.

    Attributes:
        log_likelihood: `(B,)`, estimates of log p(x_o) in nats; lower bounds in expectation.
        upper: `(B,)`, upper bounds of log p(x_o) in nats, in expectation and as far as the chains have converged; None
            without latents from p(z | x_o).
        completion: `(B, 1, 28, 28)`, the mean of p(x_m = 1 | z) over p(z | x_o) at missing pixels, and x at the others.
            From the latents from p(z | x_o), if there are any, because few of the weighted ones carry most of the
            weight.
    """

    log_likelihood: Tensor
    upper: Tensor | None
    completion: Tensor


@torch.no_grad()
def evidence(
    model: VAE,
    x: Tensor,
    observed: Tensor,
    num_samples: int = 128,
    generator: torch.Generator | None = None,
    *,
    chains: int = 0,
    iterations: int = ITERATIONS,
    drawn: Tensor | None = None,
) -> Evidence:
    """log p(x_o) of the observed pixels and their mean completion, by importance sampling.

    The estimate is log 1/K Σ w(z_k) with w(z) = p(x_o, z) / r(z) and K latents from r, Gaussians fitted to p(z | x_o).
    It is a lower bound in expectation, as `vnca.iwae` is. Let one of the latents come from p(z | x_o) instead: then
    their joint density is 1/K Σ w(z_k) / p(x_o) times that of K latents from r, so the expectation of the same
    expression is log p(x_o) plus a Kullback-Leibler divergence, an upper bound. The two close in on log p(x_o) as K
    grows (Grosse, Ghahramani & Adams, "Sandwiching the marginal likelihood using bidirectional Monte Carlo", 2015).

    Args:
        model: a `VAE`.
        x: images `(B, 1, 28, 28)` in [0, 1]; the values of missing pixels play no part.
        observed: bool mask of the same shape, True where a pixel is observed.
        num_samples: the number K of latents an image.
        generator: source of the noise, for reproducible figures.
        chains: so many latents of each image are drawn from p(z | x_o), as in `inpaint`, for the upper bound.
        iterations: steps of each of these chains.
        drawn: `(S, B, D)`, latents that come from p(z | x_o) for certain, in the place of the chains': those that the
            images were drawn from, where the model itself drew them. Then nothing has to converge (Wu, Burda,
            Salakhutdinov & Grosse, "On the quantitative analysis of decoder-based generative models", 2017).

    Raises:
        ValueError: as `inpaint` does, if `chains` or `iterations` is negative, or if `drawn` has another shape or
            comes beside chains.
    """
    require_task(x, observed)
    num_samples, chains, iterations = whole(num_samples=num_samples, chains=chains, iterations=iterations)
    if num_samples < 1 or chains < 0 or iterations < 0:
        raise ValueError(
            f"num_samples is at least 1, chains and iterations at least 0, not {num_samples}, {chains} and {iterations}"
        )
    if drawn is not None:
        require_tensor("drawn are", drawn)
    if drawn is not None and (
        chains or drawn.ndim != 3 or not len(drawn) or drawn.shape[1:] != (len(x), model.latent_size)
    ):
        raise ValueError(
            f"drawn are latents (S, {len(x)}, {model.latent_size}) in the place of chains, not {tuple(drawn.shape)} "
            f"beside {chains} chains"
        )
    search = prepare(model, generator)
    parts = []
    groups = x.split(GROUP)
    known = [None] * len(groups) if drawn is None else drawn.split(GROUP, dim=1)
    for images, mask, latents in zip(groups, observed.split(GROUP), known, strict=True):
        task = Task.of(model, images, mask)
        latents = None if latents is None else latents.to(task.x)
        parts.append(_evidence(task, search, num_samples, chains, iterations, latents, generator))
    log_likelihood, upper, completion = (torch.cat(part) for part in zip(*parts, strict=True))
    return Evidence(log_likelihood, None if drawn is None and not chains else upper, completion.view(x.shape))


def _evidence(
    task: Task,
    search: Search,
    num_samples: int,
    chains: int,
    iterations: int,
    drawn: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Estimates `(B,)`, upper bounds `(B,)` (infinite without latents from p(z | x_o)), mean completions `(B, 784)`."""
    mixture = fit(task, search, generator)
    _, logits, log_weights = weighted(task, mixture, num_samples, generator)  # (K, B, 784), (K, B)
    estimate = log_weights.logsumexp(dim=0) - math.log(num_samples)
    if drawn is None and chains == 0:
        with without_autocast(logits):
            mean = torch.einsum("kb,kbp->bp", log_weights.softmax(dim=0), logits.sigmoid())
        return estimate, torch.full_like(estimate, math.inf), torch.where(task.observed, task.x, mean)
    if drawn is None:
        z, logits, mean = chains_of(task, mixture, chains, iterations, generator)  # from other latents than the K
    else:
        z, logits = drawn, decode(task.model, drawn)  # (S, B, D), (S, B, 784)
        mean = logits.sigmoid().mean(dim=0)
    replacing = task.log_joint(z, logits) - mixture.log_prob(z)  # (S, B)
    others = log_weights[1:].logsumexp(dim=0)  # (B,)
    upper = torch.logaddexp(others, replacing) - math.log(num_samples)
    return estimate, upper.mean(dim=0), torch.where(task.observed, task.x, mean)
