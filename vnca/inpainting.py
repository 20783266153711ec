"""Painting in what is missing: samples of the missing pixels given the observed ones.

With x_o the observed and x_m the missing pixels, and pixels that are independent given a latent,

    p(x_m | x_o) = ∫ p(x_m | z) p(z | x_o) dz,    p(z | x_o) ∝ p(z) p(x_o | z).

What is hard is p(z | x_o): the encoder has never seen an image with holes. `inpaint` goes there in two moves, both by
the Gaussians that `vnca.posterior` fits to p(z | x_o):

- *Importance resampling*: latents drawn from the Gaussians, some of which begin a Markov chain each.
- *Metropolis-Hastings*: each chain is offered other latents of the Gaussians, now and then any, else one that is near
  to its own, and takes it with the probability that keeps p(z | x_o).

The missing pixels play no part in the chains. Those of Mattei & Frellsen, "Leveraging the Exact Likelihood of Deep
Latent Variable Models", NeurIPS 2018, draw them anew in each turn and let the encoder propose a latent; chapter 6 of
the book teaches that. Such proposals are accepted less often.
"""

import math

import torch
from torch import Tensor

from vnca.checks import whole
from vnca.posterior import (
    PIXELS,
    Mixture,
    Task,
    bank,
    choose,
    decode,
    encode,
    fit,
    pick,
    prepare,
    require_task,
    uniform,
    weighted,
)
from vnca.priors import standard_normal
from vnca.vae import VAE

GROUP = 32  # images worked on at once, which bounds the memory
CANDIDATES = 64  # latents drawn from the Gaussians, from which the chains' first ones are resampled
ITERATIONS = 30  # of a chain
CORRELATIONS = (0.0, 0.5, 0.8, 0.95)  # of a proposed latent with the one before it, in turn


@torch.no_grad()
def inpaint(
    model: VAE,
    x: Tensor,
    observed: Tensor,
    num_samples: int = 16,
    generator: torch.Generator | None = None,
    *,
    iterations: int = ITERATIONS,
) -> Tensor:
    """Completions of images: samples of the missing pixels given the observed ones.

    Each completion ends a Markov chain of its own. A missing pixel's value is its probability p(x_m = 1 | z) for the
    last latent of the chain, as in `VAE.sample`; `torch.bernoulli` draws binary pixels from it. Observed pixels are
    returned as they are.

    Args:
        model: a `VAE`.
        x: images `(B, 1, 28, 28)` in [0, 1]; the values of missing pixels play no part.
        observed: bool mask of the same shape, True where a pixel is observed.
        num_samples: completions of each image.
        generator: source of all randomness, for reproducible completions.
        iterations: steps of each chain. More bring the completions closer to the conditional distribution.

    Returns:
        `(num_samples, B, 1, 28, 28)` in [0, 1], in the type of `x` where that is floating point, else float32.

    Raises:
        ValueError: if the images have another shape, NaN or pixels outside [0, 1]; if the mask has another shape or is
            not bool; if `num_samples` is below 1 or `iterations` negative, or one of them is no whole number.
    """
    require_task(x, observed)
    num_samples, iterations = _numbers(num_samples, iterations)
    x = _floating(x)
    count = observed.flatten(1).sum(dim=1)  # (B,)
    completions = x.expand(num_samples, *x.shape).clone()  # (S, B, 1, 28, 28), right where all is observed
    empty = (count == 0).nonzero()[:, 0]
    if len(empty):  # nothing observed: p(z | x_o) is the prior
        drawn = model.sample(num_samples * len(empty), generator)
        completions[:, empty] = drawn.view(num_samples, -1, *x.shape[1:]).to(x.dtype)
    partial = ((count > 0) & (count < PIXELS)).nonzero()[:, 0]
    search = prepare(model, generator) if len(partial) else None
    for rows in partial.split(GROUP) if len(partial) else ():
        task = Task.of(model, x[rows], observed[rows])
        mixture = fit(task, search, generator)
        _, logits, _ = chains_of(task, mixture, num_samples, iterations, generator)
        drawn = logits.sigmoid().view(num_samples, -1, *x.shape[1:]).to(x.dtype)
        completions[:, rows] = torch.where(observed[rows], x[rows], drawn)
    return completions


class QuickInpainter:
    """Completions in the time between two frames of a slider, as a sketch of those of `inpaint`.

    Images of latents drawn from the prior are decoded once, when it is made. For a task, those that suit the observed
    pixels best fill in the missing ones, the encoder reads the result, and a latent is drawn: one turn of pseudo-Gibbs,
    four times for each completion that is wanted. The latents of the highest p(x_o, z) are kept. So completions fit the
    observed pixels and differ, but nothing makes them draws from p(x_m | x_o): for sliders, not for figures.

    Args:
        model: a `VAE`.
        generator: source of the latents drawn from the prior.
        size: how many are drawn.

    Raises:
        ValueError: if `size` is below 1.
    """

    CANDIDATES = 4  # for each completion

    def __init__(self, model: VAE, generator: torch.Generator | None = None, size: int = 512):
        if size < 1:
            raise ValueError(f"a quick inpainter needs at least 1 image to begin with, not {size}")
        self.model = model
        with torch.no_grad():
            self.bank = bank(model, size, generator)  # (P, 784)

    @torch.no_grad()
    def __call__(
        self, x: Tensor, observed: Tensor, num_samples: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Completions `(num_samples, B, 1, 28, 28)`, as those of `inpaint`; raises `ValueError` as it does."""
        num_samples, _ = _numbers(num_samples, 0)
        require_task(x, observed)
        x = _floating(x)
        task, candidates = Task.of(self.model, x, observed), self.CANDIDATES * num_samples
        suiting = task.suiting(self.bank, min(candidates, len(self.bank)))
        start = suiting[torch.arange(candidates) % len(suiting)]  # (N, B, 784)
        mean, scale = encode(self.model, task.fill(start, generator))
        z = mean + scale * standard_normal(mean.shape, mean, generator)  # (N, B, D)
        logits = decode(self.model, z)
        best = task.log_joint(z, logits).topk(num_samples, dim=0).indices  # (S, B)
        drawn = pick(logits, best).sigmoid().view(num_samples, *x.shape).to(x.dtype)
        return torch.where(observed, x, drawn)


def _floating(x: Tensor) -> Tensor:
    """The images in a type that can hold probabilities."""
    return x if x.is_floating_point() else x.float()


def _numbers(num_samples: int, iterations: int) -> list[int]:
    """Both, as `int`; raises `ValueError` if one is no whole number or too small."""
    num_samples, iterations = whole(num_samples=num_samples, iterations=iterations)
    if num_samples < 1 or iterations < 0:
        raise ValueError(f"num_samples is at least 1 and iterations at least 0, not {num_samples} and {iterations}")
    return [num_samples, iterations]


def chains_of(
    task: Task, mixture: Mixture, num_samples: int, iterations: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Chains of latents from p(z | x_o): importance resampling, then Metropolis-Hastings.

    Returns:
        The last latents `(S, B, D)`, their logits `(S, B, 784)`, and the mean `(B, 784)` of the pixel probabilities
        over all chains and the second half of their iterations.
    """
    z, logits, log_weights = weighted(task, mixture, CANDIDATES, generator)
    chosen = choose(log_weights, num_samples, generator)  # (S, B)
    z, logits = pick(z, chosen), pick(logits, chosen)
    second_half, total = range(iterations // 2, iterations), torch.zeros_like(logits[0])
    for iteration in range(iterations):
        turn, place = divmod(iteration, len(CORRELATIONS))
        if CORRELATIONS[place] == 0:  # of any mode
            z, logits = _jump(task, mixture, z, logits, generator)
        else:
            component = turn % len(mixture.mean)
            z, logits = _move(task, mixture, component, CORRELATIONS[place], z, logits, generator)
        if iteration in second_half:
            total += logits.sigmoid().mean(dim=0)
    return z, logits, total / len(second_half) if iterations else logits.sigmoid().mean(dim=0)


def _jump(
    task: Task, mixture: Mixture, z: Tensor, logits: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """One Metropolis-Hastings step of chains `(S, B, ...)` that proposes a latent of the mixture, of any mode.

    An independence sampler (Tierney, "Markov Chains for Exploring Posterior Distributions", Annals of Statistics 1994):
    what is proposed does not depend on the latent before it.
    """
    proposed, proposed_logits, log_ratio = weighted(task, mixture, len(z), generator)
    log_ratio = log_ratio - task.log_joint(z, logits) + mixture.log_prob(z)
    return _accept(log_ratio, (proposed, proposed_logits), (z, logits), generator)


def _move(
    task: Task,
    mixture: Mixture,
    component: int,
    rho: float,
    z: Tensor,
    logits: Tensor,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """One Metropolis-Hastings step of chains `(S, B, ...)` that proposes a latent near the one before it.

    With N(m, Σ) one Gaussian of the mixture, z' = m + ρ (z - m) + √(1 - ρ²) ε, ε ~ N(0, Σ): the proposal of the
    preconditioned Crank-Nicolson sampler (Neal, "Regression and Classification Using Gaussian Process Priors", 1998;
    Cotter, Roberts, Stuart & White, "MCMC Methods for Functions", Statistical Science 2013), with N(m, Σ) in the place
    of their Gaussian prior. It is reversible with respect to N(m, Σ), so that what is left of the acceptance ratio is
    [p(x_o, z') / N(z'; m, Σ)] / [p(x_o, z) / N(z; m, Σ)]. Which Gaussian it is must not depend on z.
    """
    mean, noise = mixture.mean[component], standard_normal(z.shape, z, generator)
    proposed = mean + rho * (z - mean) + math.sqrt(1 - rho**2) * mixture.spread(component, noise)
    proposed_logits = decode(task.model, proposed)
    log_ratio = task.log_joint(proposed, proposed_logits) - mixture.log_gaussian(component, proposed)
    log_ratio = log_ratio - task.log_joint(z, logits) + mixture.log_gaussian(component, z)
    return _accept(log_ratio, (proposed, proposed_logits), (z, logits), generator)


def _accept(
    log_ratio: Tensor,
    proposed: tuple[Tensor, Tensor],
    current: tuple[Tensor, Tensor],
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """The proposed latents and logits of chains `(S, B)` with the probability `exp(log_ratio)`, else the current."""
    accepted = (uniform(log_ratio.shape, log_ratio, generator) < log_ratio.exp())[..., None]  # (S, B, 1)
    return tuple(torch.where(accepted, new, old) for new, old in zip(proposed, current, strict=True))
