"""Painting in what is missing: masks, samples of the missing pixels, their log-likelihood, and local regrowth.

A mask `observed` `(B, 1, 28, 28)` is bool, True where a pixel is observed. Given a latent the pixels are independent,
so with x_o the observed and x_m the missing pixels

    p(x_m | x_o) = ∫ p(x_m | z) p(z | x_o) dz,    p(z | x_o) ∝ p(z) p(x_o | z),

where log p(x_o | z) is the Bernoulli log-likelihood summed over the observed pixels alone. What is hard is p(z | x_o):
the encoder has never seen an image with holes. `inpaint` goes there in two moves:

- *Importance resampling* from Gaussians fitted to p(z | x_o): Laplace's approximation, a mode found by Gauss-Newton
  steps and the curvature there. The same Gaussians carry the estimates of log p(x_m | x_o), and now and then propose a
  latent of another mode to a chain.
- *Metropolis-within-Gibbs*, Algorithm 2 of Mattei & Frellsen, "Leveraging the Exact Likelihood of Deep Latent Variable
  Models", NeurIPS 2018: draw x_m given z; let the encoder, which now sees a whole image, propose a latent; accept or
  reject it. Without the rejection it is the pseudo-Gibbs sampler of Rezende et al., "Stochastic Backpropagation and
  Approximate Inference in Deep Generative Models", ICML 2014, which starts the chains of the fast way.

Grey pixels are taken as everywhere in this package: as targets of the Bernoulli log-likelihood.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

from vnca import cells
from vnca.decoders import BORDER, IMAGE_SIZE, DoublingDecoder, RegrowingDecoder
from vnca.vae import CHUNK_SIZE, VAE, at_least_float32, gaussian_kl, require_pixels, standard_normal

PIXELS = IMAGE_SIZE**2

# ------------------------------------------------------------------------------------------------ masks


def center_square(n: int, size: int = 14) -> Tensor:
    """Masks `(n, 1, 28, 28)` that hide a square of `size × size` pixels in the middle.

    Raises:
        ValueError: if `n` is negative, or `size` does not lie between 0 and 28.
    """
    if not 0 <= size <= IMAGE_SIZE:
        raise ValueError(f"the hidden square has a side of 0 to {IMAGE_SIZE} pixels, not {size}")
    first = (IMAGE_SIZE - size) // 2
    observed = _all_observed(n)
    observed[..., first : first + size, first : first + size] = False
    return observed


def left_half(n: int) -> Tensor:
    """Masks `(n, 1, 28, 28)` that hide the left half; raises `ValueError` if `n` is negative."""
    observed = _all_observed(n)
    observed[..., : IMAGE_SIZE // 2] = False
    return observed


def random_half(n: int, seed: int = 0) -> Tensor:
    """Masks `(n, 1, 28, 28)` that hide half of the pixels, drawn for each image anew.

    The first masks of a longer batch are those of a shorter one. Raises `ValueError` if `n` is negative.
    """
    observed = _all_observed(n).view(n, PIXELS)
    order = torch.rand((n, PIXELS), generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    return observed.scatter(1, order[:, : PIXELS // 2], False).view(n, 1, IMAGE_SIZE, IMAGE_SIZE)


def stroke(n: int, seed: int = 0, width: float = 5.0) -> Tensor:
    """Masks `(n, 1, 28, 28)` that hide what a thick pen crossed out: a bent stroke, drawn for each image anew.

    Each stroke is a quadratic Bézier curve from one side of the image to the opposite one, `width` pixels wide. The
    first masks of a longer batch are those of a shorter one.

    Raises:
        ValueError: if `n` is negative or `width` is not above 0.
    """
    if not width > 0:
        raise ValueError(f"the stroke is more than 0 pixels wide, not {width}")
    observed = _all_observed(n)
    draw = torch.rand((n, 4), generator=torch.Generator().manual_seed(seed))  # start, bend, end, and its direction
    across = draw[:, :3] * (IMAGE_SIZE - 1)  # (n, 3)
    t = torch.linspace(0, 1, 57)
    weights = torch.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])  # (3, T)
    rows = across @ weights  # (n, T)
    columns = (t * (IMAGE_SIZE - 1)).expand_as(rows)
    grid = torch.arange(IMAGE_SIZE)
    distance = (rows[:, None, None] - grid[:, None, None]) ** 2 + (columns[:, None, None] - grid[:, None]) ** 2
    hidden = distance.amin(dim=-1) < (width / 2) ** 2  # (n, 28, 28)
    hidden = torch.where(draw[:, 3, None, None] < 0.5, hidden, hidden.mT)  # from left to right, or from top to bottom
    return observed & ~hidden[:, None]


def _all_observed(n: int) -> Tensor:
    if n < 0:
        raise ValueError(f"the number of masks is at least 0, not {n}")
    return torch.ones((n, 1, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.bool)


MASKS: dict[str, Callable[[int], Tensor]] = {
    "center square": center_square,
    "left half": left_half,
    "random half": random_half,
    "stroke": stroke,
}

# --------------------------------------------------------------------------------------------- completions

GROUP = 32  # images worked on at once, which bounds the memory
ITERATIONS = 30  # of a chain
JUMP_EVERY = 4  # so many of them one proposal comes from the fitted Gaussians, so that chains change between modes
CORRELATIONS = (0.0, 0.6, 0.9)  # of a proposed latent with the one before it; 0 is Mattei and Frellsen's


@torch.no_grad()
def inpaint(
    model: VAE,
    x: Tensor,
    observed: Tensor,
    num_samples: int = 16,
    generator: torch.Generator | None = None,
    *,
    iterations: int = ITERATIONS,
    fast: bool = False,
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
        fast: start the chains by pseudo-Gibbs from the encoder, without fitted Gaussians. It decodes
            `num_samples * (iterations + 1)` latents an image and no others, and may miss ways to complete an image: for
            sliders, not for figures.

    Returns:
        `(num_samples, B, 1, 28, 28)` in [0, 1], in the type of `x` where that is floating point, else float32.

    Raises:
        ValueError: if the images have another shape, NaN or pixels outside [0, 1]; if the mask has another shape or is
            not bool; if `num_samples` is below 1 or `iterations` negative.
    """
    require_task(x, observed)
    if num_samples < 1 or iterations < 0:
        raise ValueError(f"num_samples is at least 1 and iterations at least 0, not {num_samples} and {iterations}")
    x = x if x.is_floating_point() else x.float()
    count = observed.flatten(1).sum(dim=1)  # (B,)
    completions = x.expand(num_samples, *x.shape).clone()  # (S, B, 1, 28, 28), right where all is observed
    empty = (count == 0).nonzero()[:, 0]
    if len(empty):  # nothing observed: p(z | x_o) is the prior
        drawn = model.sample(num_samples * len(empty), generator)
        completions[:, empty] = drawn.view(num_samples, -1, *x.shape[1:]).to(x.dtype)
    partial = ((count > 0) & (count < PIXELS)).nonzero()[:, 0]
    search = None if fast or not len(partial) else _prepare(model, generator)
    for rows in partial.split(GROUP) if len(partial) else ():
        task = _Task.of(model, x[rows], observed[rows])
        if search is None:
            logits = _chains_fast(task, num_samples, iterations, generator)
        else:
            mixture = _fit(task, search, generator)
            _, logits = _chains(task, mixture, num_samples, iterations, generator)
        drawn = logits.sigmoid().view(num_samples, -1, *x.shape[1:]).to(x.dtype)
        completions[:, rows] = torch.where(observed[rows], x[rows], drawn)
    return completions


def require_task(x: Tensor, observed: Tensor) -> None:
    """Raise `ValueError` unless `x` and `observed` are images and their mask, as `inpaint` takes them."""
    if x.ndim != 4 or x.shape[1:] != (1, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(f"images have the shape (B, 1, {IMAGE_SIZE}, {IMAGE_SIZE}), not {tuple(x.shape)}")
    if observed.dtype != torch.bool:
        raise ValueError(f"the mask is bool, True where a pixel is observed, not {observed.dtype}; compare: mask > 0")
    if observed.shape != x.shape:
        raise ValueError(f"the mask has the shape of the images, {tuple(x.shape)}, not {tuple(observed.shape)}")
    if x.isnan().any():
        raise ValueError("the images hold NaN; put any number in [0, 1] where a pixel is missing: the mask tells that")
    require_pixels(x)


@dataclass(frozen=True)
class _Task:
    """Images and which of their pixels are observed, `(B, 784)` each, with the model that completes them."""

    model: VAE
    x: Tensor
    observed: Tensor

    @classmethod
    def of(cls, model: VAE, x: Tensor, observed: Tensor) -> "_Task":
        x = x.to(at_least_float32(next(model.parameters())).dtype)  # that of the logits
        return cls(model, x.flatten(1), observed.flatten(1))

    def log_likelihood(self, logits: Tensor) -> Tensor:
        """log p(x_o | z) from logits `(..., B, 784)`: `(..., B)`."""
        per_pixel = self.x * logits - F.softplus(logits)
        return torch.where(self.observed, per_pixel, 0).sum(dim=-1)

    def log_joint(self, z: Tensor, logits: Tensor) -> Tensor:
        """log p(x_o, z) from latents `(..., B, D)` and their logits `(..., B, 784)`: `(..., B)`."""
        return self.log_likelihood(logits) + _log_normal(z, 0, 1)

    def fill(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        """Whole images `(..., B, 784)`: the missing pixels drawn from p(x_m | z)."""
        drawn = _uniform(logits.shape, logits, generator) < logits.sigmoid()
        return torch.where(self.observed, self.x, drawn.to(self.x.dtype))


def _log_normal(z: Tensor, mean: Tensor | float, scale: Tensor | float) -> Tensor:
    """Log density of independent Gaussians, summed over the last dimension."""
    return Normal(mean, scale, validate_args=False).log_prob(z).sum(dim=-1)


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform noise on the device and in the type of `like`, drawn where the generator lives."""
    device = like.device if generator is None else generator.device
    return torch.rand(shape, dtype=like.dtype, device=device, generator=generator).to(like.device)


def _decode(model: VAE, z: Tensor) -> Tensor:
    """Logits `(..., 784)` of latents `(..., D)`."""
    logits = [model.decode(part).flatten(1) for part in z.flatten(0, -2).split(CHUNK_SIZE)]
    return torch.cat(logits).view(*z.shape[:-1], PIXELS)


def _encode(model: VAE, images: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations `(..., D)` of q(z | x) for images `(..., 784)`."""
    posterior = model.encode(images.reshape(-1, 1, IMAGE_SIZE, IMAGE_SIZE))
    return tuple(t.view(*images.shape[:-1], model.latent_size) for t in (posterior.mean, posterior.stddev))


def _chains_fast(task: _Task, num_samples: int, iterations: int, generator: torch.Generator | None) -> Tensor:
    """Logits `(S, B, 784)` after pseudo-Gibbs for half of the iterations and Metropolis-within-Gibbs for the rest."""
    blank = torch.where(task.observed, task.x, 0)  # no ink where nothing is known
    mean, scale = _encode(task.model, blank.expand(num_samples, *blank.shape))
    z = mean + scale * standard_normal(mean.shape, mean, generator)  # (S, B, D)
    logits = _decode(task.model, z)
    for iteration in range(iterations):
        z, logits = _step(task, z, logits, iteration, generator, reject=iteration >= iterations // 2)
    return logits


def _chains(
    task: _Task, mixture: "_Mixture", num_samples: int, iterations: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Latents `(S, B, D)` from p(z | x_o), and their logits: importance resampling, then Metropolis-within-Gibbs."""
    z, logits, log_weights = _weighted(task, mixture, CANDIDATES, generator)
    chosen = _choose(log_weights, num_samples, generator)  # (S, B)
    z, logits = _pick(z, chosen), _pick(logits, chosen)
    for iteration in range(iterations):
        if iteration % JUMP_EVERY == 0:
            z, logits = _jump(task, mixture, z, logits, generator)
        else:
            z, logits = _step(task, z, logits, iteration, generator)
    return z, logits


def _weighted(
    task: _Task, mixture: "_Mixture", count: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents `(K, B, D)` from the mixture, their logits `(K, B, 784)` and log importance weights `(K, B)`."""
    z = mixture.sample(count, generator)
    logits = _decode(task.model, z)
    return z, logits, task.log_joint(z, logits) - mixture.log_prob(z)


def _jump(
    task: _Task, mixture: "_Mixture", z: Tensor, logits: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """One Metropolis-Hastings step of chains `(S, B, ...)` that proposes a latent of the mixture, of any mode."""
    proposed, proposed_logits, log_ratio = _weighted(task, mixture, len(z), generator)
    log_ratio = log_ratio - task.log_joint(z, logits) + mixture.log_prob(z)
    return _accept(log_ratio, (proposed, proposed_logits), (z, logits), generator)


def _accept(
    log_ratio: Tensor,
    proposed: tuple[Tensor, Tensor],
    current: tuple[Tensor, Tensor],
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """The proposed latents and logits of chains `(S, B)` with the probability `exp(log_ratio)`, else the current."""
    accepted = (_uniform(log_ratio.shape, log_ratio, generator) < log_ratio.exp())[..., None]  # (S, B, 1)
    return tuple(torch.where(accepted, new, old) for new, old in zip(proposed, current, strict=True))


def _choose(log_weights: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Indices `(count, B)` drawn with the weights `exp(log_weights)` `(N, B)`, with replacement."""
    ends = log_weights.softmax(dim=0).cumsum(dim=0).T.contiguous()  # (B, N)
    point = _uniform((count, log_weights.shape[1]), log_weights, generator).T.contiguous() * ends[:, -1:]
    return torch.searchsorted(ends, point, right=True).clamp(max=len(log_weights) - 1).T


def _step(
    task: _Task,
    z: Tensor,
    logits: Tensor,
    iteration: int,
    generator: torch.Generator | None,
    reject: bool = True,
) -> tuple[Tensor, Tensor]:
    """One iteration of Algorithm 2 of Mattei & Frellsen on chains `(S, B, ...)`; of pseudo-Gibbs without rejection.

    Their proposal is q(z | x) = N(m, s²), independent of the latent before it; it is seldom accepted. Two of three
    proposals here stay closer: z' = m + ρ (z - m) + √(1 - ρ²) s ε. They are reversible with respect to q, so the
    acceptance ratio is the same, [p(x, z') / q(z')] / [p(x, z) / q(z)].
    """
    rho = CORRELATIONS[iteration % len(CORRELATIONS)] if reject else 0.0
    whole = _Task(task.model, task.fill(logits, generator), torch.ones_like(task.observed))
    mean, scale = _encode(task.model, whole.x)  # (S, B, D)
    noise = standard_normal(z.shape, z, generator)
    proposed = mean + rho * (z - mean) + math.sqrt(1 - rho**2) * scale * noise
    proposed_logits = _decode(task.model, proposed)
    if not reject:
        return proposed, proposed_logits
    log_ratio = whole.log_joint(proposed, proposed_logits) - _log_normal(proposed, mean, scale)
    log_ratio = log_ratio - whole.log_joint(z, logits) + _log_normal(z, mean, scale)
    return _accept(log_ratio, (proposed, proposed_logits), (z, logits), generator)


# ---------------------------------------------------------------------------- Gaussians fitted to p(z | x_o)

BANK = 64  # latents drawn from the prior, in whose images the search for modes begins
STARTS = 8  # of them, so many are looked at for each image
MODES = 2  # and so many end in a Gaussian
CANDIDATES = 64  # latents drawn from the Gaussians, from which the chains' first ones are resampled
MOVES = 2  # Gauss-Newton steps towards a mode
WIDTHS = (1.0, 1.3)  # of the Gaussians: tails of p(z | x_o) are heavier than those of its Laplace approximation
PRIOR_SHARE = 0.05  # of latents drawn from the prior, so that no weight is without bound
USED = 0.05  # nats: directions of the latent with less information on images are left to the prior
DIFFERENCE = 2.0  # of latents, in deviations of the encoder's posterior: such secants serve better than tangents


@dataclass(frozen=True)
class _Search:
    """What all images of a model share: images of the prior, and the directions of the latent that matter.

    Attributes:
        logits: `(P, 784)` of latents drawn from the prior.
        directions: `(A,)` indices of the entries of the latent that images depend on.
    """

    logits: Tensor
    directions: Tensor


def _prepare(model: VAE, generator: torch.Generator | None) -> _Search:
    z = standard_normal((BANK, model.latent_size), next(model.parameters()), generator)
    logits = _decode(model, z)
    mean, scale = _encode(model, logits.sigmoid().round())  # (P, D)
    information = gaussian_kl(mean.T.reshape(-1, 1), scale.log().T.reshape(-1, 1)).view(-1, BANK).mean(dim=1)  # (D,)
    used = information >= min(USED, information.max().item())
    return _Search(logits, used.nonzero()[:, 0])


@dataclass(frozen=True)
class _Mixture:
    """Gaussians over the latents of B images, C for each.

    Attributes:
        mean: `(C, B, D)`.
        root: lower triangular R `(C, B, D, D)`; the precision is R Rᵀ.
        share: `(C,)`, the weights of the components.
    """

    mean: Tensor
    root: Tensor
    share: Tensor

    def sample(self, count: int, generator: torch.Generator | None) -> Tensor:
        """Latents `(count, B, D)`."""
        components, images, size = self.mean.shape
        log_share = self.share.log()[:, None].expand(-1, images)
        chosen = _choose(log_share, count, generator)  # (K, B)
        noise = standard_normal((count, images, size), self.mean, generator)
        z = torch.empty_like(noise)
        for component in range(components):
            drawn = torch.linalg.solve_triangular(self.root[component].mT, noise.permute(1, 2, 0), upper=True)
            drawn = self.mean[component] + drawn.permute(2, 0, 1)  # (B, D, K) -> (K, B, D)
            z = torch.where((chosen == component)[..., None], drawn, z)
        return z

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of latents `(K, B, D)`: `(K, B)`."""
        parts = []
        for mean, root, share in zip(self.mean, self.root, self.share, strict=True):
            whitened = torch.einsum("bji,kbj->kbi", root, z - mean)
            log_root = root.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)  # (B,)
            parts.append(share.log() + _log_normal(whitened, 0, 1) + log_root)
        return torch.stack(parts).logsumexp(dim=0)


def _fit(task: _Task, search: _Search, generator: torch.Generator | None) -> _Mixture:
    """The prior, and Gaussians at modes of p(z | x_o), each in several widths.

    The search for the first mode begins at the candidate of the highest p(x_o, z), the search for each further one at
    the candidate farthest from the modes found.
    """
    z, scale = _candidates(task, search, generator)  # (T, B, D) each, best first
    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    mean, root = [torch.zeros_like(z[0])], [eye.expand(z.shape[1], -1, -1)]  # of the prior: (B, D), (B, D, D)
    start = torch.zeros_like(z[0, :, 0], dtype=torch.long)  # (B,), the best candidate
    for _ in range(min(MODES, len(z))):
        new_mean, new_root = _laplace(task, _pick(z, start[None])[0], _pick(scale, start[None])[0], search.directions)
        mean += [new_mean] * len(WIDTHS)
        root += [new_root / width for width in WIDTHS]
        apart = torch.stack([(z - m).square().sum(dim=-1) for m in mean[1:]]).amin(dim=0)  # (T, B)
        start = apart.argmax(dim=0)
    share = z.new_full((len(mean),), (1 - PRIOR_SHARE) / (len(mean) - 1))
    share[0] = PRIOR_SHARE
    return _Mixture(torch.stack(mean), torch.stack(root), share)


def _candidates(task: _Task, search: _Search, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Latents to begin the search for modes at, and how far to go for derivatives, `(T, B, D)` each.

    Prior images that suit the observed pixels fill in the missing ones, and the encoder reads the result: one step of
    pseudo-Gibbs. The latents of the highest p(x_o, z) come first. Where no pixel is missing there is but one.
    """
    if task.observed.all():
        z, scale = _encode(task.model, task.x[None])
        return z, DIFFERENCE * scale
    mask = task.observed.to(task.x.dtype)
    scores = (task.x * mask) @ search.logits.T - mask @ F.softplus(search.logits).T  # log p(x_o | z), (B, P)
    suiting = scores.topk(STARTS, dim=1).indices.T  # (STARTS, B)
    z, scale = _encode(task.model, task.fill(search.logits[suiting], generator))
    order = task.log_joint(z, _decode(task.model, z)).argsort(dim=0, descending=True)  # (STARTS, B)
    return _pick(z, order), DIFFERENCE * _pick(scale, order)


def _pick(values: Tensor, indices: Tensor) -> Tensor:
    """Of values `(N, B, D)` those at indices `(M, B)`, for each image its own: `(M, B, D)`."""
    return values.gather(0, indices[..., None].expand(-1, -1, values.shape[-1]))


def _laplace(task: _Task, z: Tensor, difference: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Laplace's approximation of p(z | x_o): modes `(N, D)`, and R `(N, D, D)` with R Rᵀ the precision there.

    Gauss-Newton from latents `(N, D)`: with J the derivatives of the logits and p the pixel probabilities, the
    precision is I + Jᵀ diag(p (1 - p)) J over the observed pixels. J is the dearest part, a decoding for each
    direction, and is made once. A step that does not raise p(x_o, z) is tried again shorter, then dropped. Directions
    that images do not depend on keep the prior's mean and precision.
    """
    z = torch.zeros_like(z).index_copy(1, directions, z[:, directions])
    logits = _decode(task.model, z)
    jacobian = _jacobian(task.model, z, logits, difference, directions)  # (N, 784, D)
    for _ in range(MOVES):
        error = torch.where(task.observed, task.x - logits.sigmoid(), 0)
        gradient = torch.einsum("npd,np->nd", jacobian, error) - z
        move = torch.cholesky_solve(gradient[..., None], _root(task, logits, jacobian))[..., 0]
        tried = torch.stack([z, z + move, z + 0.3 * move])  # (3, N, D)
        tried_logits = torch.cat([logits[None], _decode(task.model, tried[1:])])
        best = task.log_joint(tried, tried_logits).argmax(dim=0, keepdim=True)  # (1, N)
        z, logits = _pick(tried, best)[0], _pick(tried_logits, best)[0]
    return z, _root(task, logits, jacobian)


def _root(task: _Task, logits: Tensor, jacobian: Tensor) -> Tensor:
    """The Cholesky factor `(N, D, D)` of the precision I + Jᵀ diag(p (1 - p)) J over the observed pixels."""
    p = logits.sigmoid()
    weight = torch.where(task.observed, p * (1 - p), 0)
    eye = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)
    return torch.linalg.cholesky(eye + torch.einsum("npd,np,npe->nde", jacobian, weight, jacobian))


def _jacobian(model: VAE, z: Tensor, logits: Tensor, difference: Tensor, directions: Tensor) -> Tensor:
    """Derivatives `(N, 784, D)` of the logits by forward differences `(N, D)`; 0 in all but the given directions."""
    steps = torch.diag_embed(difference)[:, directions]  # (N, A, D)
    moved = _decode(model, z[:, None] + steps)  # (N, A, 784)
    jacobian = logits.new_zeros((*logits.shape, z.shape[1]))  # (N, 784, D)
    jacobian[..., directions] = (moved - logits[:, None]).mT / difference[:, None, directions]
    return jacobian


# -------------------------------------------------------------------------------------------- log-likelihoods


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
            where no chains were asked for.
        completion: `(B, 1, 28, 28)`, the mean of p(x_m = 1 | z) over p(z | x_o) at missing pixels, and x at the others.
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

    Raises:
        ValueError: as `inpaint` does, or if `chains` is negative.
    """
    require_task(x, observed)
    if num_samples < 1 or chains < 0:
        raise ValueError(f"num_samples is at least 1 and chains at least 0, not {num_samples} and {chains}")
    search = _prepare(model, generator)
    parts = []
    for images, mask in zip(x.split(GROUP), observed.split(GROUP), strict=True):
        parts.append(_evidence(_Task.of(model, images, mask), search, num_samples, chains, generator))
    log_likelihood, upper, completion = (torch.cat(part) for part in zip(*parts, strict=True))
    return Evidence(log_likelihood, upper if chains else None, completion.view(x.shape))


def _evidence(
    task: _Task, search: _Search, num_samples: int, chains: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Estimates `(B,)`, upper bounds `(B,)` (infinite without chains) and mean completions `(B, 784)`."""
    mixture = _fit(task, search, generator)
    _, logits, log_weights = _weighted(task, mixture, num_samples, generator)  # (K, B, 784), (K, B)
    estimate = log_weights.logsumexp(dim=0) - math.log(num_samples)
    mean = torch.einsum("kb,kbp->bp", log_weights.softmax(dim=0), logits.sigmoid())
    completion = torch.where(task.observed, task.x, mean)
    if chains == 0:
        return estimate, torch.full_like(estimate, math.inf), completion
    z, logits = _chains(task, mixture, chains, ITERATIONS, generator)  # from other latents than the K
    replacing = task.log_joint(z, logits) - mixture.log_prob(z)  # (S, B)
    others = log_weights[1:].logsumexp(dim=0)  # (B,)
    upper = torch.logaddexp(others, replacing) - math.log(num_samples)
    return estimate, upper.mean(dim=0), completion


# ----------------------------------------------------------------------------------------------- local regrowth


def cells_of(observed: Tensor) -> Tensor:
    """The cells of the missing pixels: masks `(B, 1, 28, 28)` -> regions `(B, 1, 32, 32)`, True where to erase.

    Raises:
        ValueError: if the mask has another shape or is not bool.
    """
    if observed.dtype != torch.bool or observed.ndim != 4 or observed.shape[1:] != (1, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"a mask is bool (B, 1, {IMAGE_SIZE}, {IMAGE_SIZE}), not {observed.dtype} {tuple(observed.shape)}"
        )
    return F.pad(~observed, (BORDER, BORDER, BORDER, BORDER), value=False)


def coarsen(region: Tensor, size: int) -> Tensor:
    """A region on the grid of an earlier stage: the cells of which any descendant lies in it.

    Args:
        region: bool `(B, 1, H, H)`.
        size: side of the earlier grid, which `H` is a multiple of.

    Returns:
        bool `(B, 1, size, size)`.

    Raises:
        ValueError: if the region is not bool or not square, or its side is not a multiple of `size`.
    """
    side = _require_region(region).shape[-1]
    if size < 1 or side % size:
        raise ValueError(f"a grid of {side} x {side} cells does not come from one of {size} x {size} by doublings")
    return F.max_pool2d(region.float(), side // size) > 0


@torch.no_grad()
def regrow(
    decoder: DoublingDecoder | RegrowingDecoder, state: Tensor, region: Tensor, reseed: Tensor | None, steps: int
) -> Iterator[Tensor]:
    """Erase cells of a grid, plant seed cells there, and let the neighbors grow into the region, frame by frame.

    The update of all cells goes on, inside the region and outside it. With a `RegrowingDecoder` it takes `steps` steps.
    With a `DoublingDecoder` it takes `steps` steps on the grid as it is and then goes on as growth does: a doubling and
    the decoder's own number of steps, until the grid has 32 × 32 cells. So a state of the last stage is edited in
    place; a state of an earlier stage is edited coarsely, and its growth replayed.

    Args:
        decoder: the decoder that grew the state.
        state: cell state `(B, C, H, W)`, as `decoder.grow` yields it.
        region: bool `(B, 1, H, W)`, or `(1, 1, H, W)` for all states, True where cells are erased.
        reseed: what is planted there: latents `(B, C)`, copied to every erased cell; a cell state `(B, C, H, W)`, such
            as noise, whose cells in the region are taken; or None, and the erased cells stay zero.
        steps: steps on the grid of `state`.

    Yields:
        The erased state, the planted state (unless `reseed` is None), then the state after each step and doubling.

    Raises:
        ValueError: at the first frame, if a shape does not fit, the region is not bool, the decoder has no cells or
            its stages have no grid of this size, or `steps` is negative.
    """
    _require_edit(decoder, state, region, steps)
    state = torch.where(region, 0, state)
    yield state
    if reseed is not None:
        state = torch.where(region, _planted(reseed, state), state)
        yield state
    for event in ["step"] * steps + _rest(decoder, state.shape[-1]):
        state = cells.double(state) if event == "double" else state + decoder.update(state)
        yield state


def _rest(decoder: DoublingDecoder | RegrowingDecoder, size: int) -> list[str]:
    """What growth does after the stage in which the grid has `size × size` cells."""
    if isinstance(decoder, RegrowingDecoder):
        return []
    return [event for event, side in decoder.schedule() if side > size]


def _planted(reseed: Tensor, state: Tensor) -> Tensor:
    if reseed.shape == state.shape:
        return reseed
    if reseed.shape == state.shape[:2]:
        return reseed[:, :, None, None]  # (B, C) -> (B, C, 1, 1): every cell a copy of the latent, as in a seed
    raise ValueError(
        f"what is planted is a latent {tuple(state.shape[:2])} or a cell state {tuple(state.shape)}, "
        f"not {tuple(reseed.shape)}"
    )


def _require_edit(decoder: DoublingDecoder | RegrowingDecoder, state: Tensor, region: Tensor, steps: int) -> None:
    if not isinstance(decoder, DoublingDecoder | RegrowingDecoder):
        raise ValueError(f"a {type(decoder).__name__} has no cells that could grow again")
    cells.require_state(state)
    batch, channels, *grid = state.shape
    if channels != decoder.latent_size:
        raise ValueError(f"the cells of this decoder have {decoder.latent_size} channels, not {channels}")
    sizes = sorted({size for _, size in decoder.schedule()})
    if isinstance(decoder, DoublingDecoder) and (grid[0] != grid[1] or grid[0] not in sizes):
        raise ValueError(f"the stages of this decoder have grids of {sizes} cells squared, not {grid[0]} x {grid[1]}")
    _require_region(region)
    if region.shape not in {(batch, 1, *grid), (1, 1, *grid)}:
        raise ValueError(f"the region has the shape {(batch, 1, *grid)}, not {tuple(region.shape)}")
    if steps < 0:
        raise ValueError(f"the number of steps is at least 0, not {steps}")


def _require_region(region: Tensor) -> Tensor:
    if region.dtype != torch.bool or region.ndim != 4 or region.shape[1] != 1:
        raise ValueError(f"a region is bool (B, 1, H, W), not {region.dtype} {tuple(region.shape)}")
    return region
