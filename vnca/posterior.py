"""The latents that go with the observed pixels of an image: p(z | x_o), and Gaussians fitted to it.

A mask `observed` `(B, 1, 28, 28)` is bool, True where a pixel is observed. Given a latent the pixels are independent,
so with x_o the observed pixels

    p(z | x_o) ∝ p(z) p(x_o | z),

where log p(x_o | z) is the Bernoulli log-likelihood summed over the observed pixels alone. The encoder has never seen
an image with holes. So the Gaussians here are fitted to p(z | x_o) itself, by Laplace's approximation: a mode found by
Gauss-Newton steps, and the curvature there.

Grey pixels are taken as everywhere in this package: as targets of the Bernoulli log-likelihood.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from vnca.checks import require_tensor
from vnca.decoders import IMAGE_SIZE
from vnca.priors import gaussian_kl, standard_normal, without_autocast
from vnca.vae import CHUNK_SIZE, VAE, at_least_float32, encode_in_chunks, require_pixels

PIXELS = IMAGE_SIZE**2
BANK = 512  # latents drawn from the prior, in whose images the search for modes begins
STARTS = 8  # of them, so many are looked at for each image
MODES = 2  # and so many end in a Gaussian
MOVES = 2  # Gauss-Newton steps towards a mode
WIDTHS = (1.0, 1.3)  # of the Gaussians: tails of p(z | x_o) are heavier than those of its Laplace approximation
PRIOR_SHARE = 0.05  # of latents drawn from the prior, so that no weight exceeds 20 p(x_o | z)
USED = 0.05  # nats: directions of the latent with less information on images are left to the prior
DIFFERENCE = 2.0  # of latents, in deviations of the encoder's posterior: such secants serve better than tangents


def require_task(x: Tensor, observed: Tensor) -> None:
    """Raise `ValueError` unless `x` and `observed` are images and their mask, as `inpaint` takes them."""
    require_tensor("images are", x)
    if x.ndim != 4 or x.shape[1:] != (1, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(f"images have the shape (B, 1, {IMAGE_SIZE}, {IMAGE_SIZE}), not {tuple(x.shape)}")
    require_tensor("the mask is", observed)
    if observed.dtype != torch.bool:
        raise ValueError(f"the mask is bool, True where a pixel is observed, not {observed.dtype}; compare: mask > 0")
    if observed.shape != x.shape:
        raise ValueError(f"the mask has the shape of the images, {tuple(x.shape)}, not {tuple(observed.shape)}")
    if x.isnan().any():
        raise ValueError("the images hold NaN; put any number in [0, 1] where a pixel is missing: the mask tells that")
    require_pixels(x)


@dataclass(frozen=True)
class Task:
    """Images and which of their pixels are observed, `(..., B, 784)` each, with the model that completes them."""

    model: VAE
    x: Tensor
    observed: Tensor

    @classmethod
    def of(cls, model: VAE, x: Tensor, observed: Tensor) -> "Task":
        x = x.to(at_least_float32(next(model.parameters())).dtype)  # that of the logits
        return cls(model, x.flatten(1), observed.flatten(1))

    def log_likelihood(self, logits: Tensor) -> Tensor:
        """log p(x_o | z) from logits `(..., B, 784)`: `(..., B)`; -inf where the logits have overflowed."""
        per_pixel = self.x * logits - F.softplus(logits)
        return without_nan(torch.where(self.observed, per_pixel, 0).sum(dim=-1))

    def log_joint(self, z: Tensor, logits: Tensor) -> Tensor:
        """log p(x_o, z) from latents `(..., B, D)` and their logits `(..., B, 784)`: `(..., B)`."""
        return self.log_likelihood(logits) + self.model.prior.log_prob(z)

    def fill(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        """Whole images `(..., B, 784)`: the missing pixels drawn from p(x_m | z)."""
        drawn = uniform(logits.shape, logits, generator) < logits.sigmoid()
        return torch.where(self.observed, self.x, drawn.to(self.x.dtype))

    def suiting(self, logits: Tensor, count: int) -> Tensor:
        """Of logits `(P, 784)` those that suit the observed pixels best, the best first: `(count, B, 784)`."""
        mask = self.observed.to(self.x.dtype)
        with without_autocast(logits):
            scores = (self.x * mask) @ logits.T - mask @ F.softplus(logits).T  # log p(x_o | z), (B, P)
        return logits[without_nan(scores).topk(count, dim=1).indices.T]


def without_nan(scores: Tensor) -> Tensor:
    """The scores with -inf for NaN, which PyTorch ranks above all numbers."""
    return scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def log_normal(z: Tensor, mean: Tensor | float, scale: Tensor | float) -> Tensor:
    """Log density of independent Gaussians, summed over the last dimension."""
    return Normal(mean, scale, validate_args=False).log_prob(z).sum(dim=-1)


def uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform noise on the device and in the type of `like`, drawn where the generator lives."""
    device = like.device if generator is None else generator.device
    return torch.rand(shape, dtype=like.dtype, device=device, generator=generator).to(like.device)


def decode(model: VAE, z: Tensor) -> Tensor:
    """Logits `(..., 784)` of latents `(..., D)`."""
    logits = [model.decode(part).flatten(1) for part in z.flatten(0, -2).split(CHUNK_SIZE)]
    return torch.cat(logits).view(*z.shape[:-1], PIXELS)


def encode(model: VAE, images: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations `(..., D)` of q(z | x) for images `(..., 784)`."""
    posterior = encode_in_chunks(model, images.reshape(-1, 1, IMAGE_SIZE, IMAGE_SIZE), CHUNK_SIZE)
    return tuple(t.view(*images.shape[:-1], model.latent_size) for t in (posterior.mean, posterior.stddev))


def choose(log_weights: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Indices `(count, B)` drawn with the weights `exp(log_weights)` `(N, B)`, with replacement."""
    ends = log_weights.softmax(dim=0).cumsum(dim=0).T.contiguous()  # (B, N)
    point = uniform((count, log_weights.shape[1]), log_weights, generator).T.contiguous() * ends[:, -1:]
    return torch.searchsorted(ends, point, right=True).clamp(max=len(log_weights) - 1).T


@dataclass(frozen=True)
class Search:
    """What all images of a model share: images of the prior, and the directions of the latent that matter.

    Attributes:
        logits: `(P, 784)` of latents drawn from the prior.
        directions: `(A,)` indices of the entries of the latent that images depend on.
    """

    logits: Tensor
    directions: Tensor


def bank(model: VAE, size: int, generator: torch.Generator | None) -> Tensor:
    """The logits `(size, 784)` of latents drawn from the prior."""
    return decode(model, model.draw(size, generator))


def prepare(model: VAE, generator: torch.Generator | None) -> Search:
    """What `fit` needs to know of a model.

    Raises:
        ValueError: if no image of the model is finite.
    """
    logits = bank(model, BANK, generator)
    if not logits.isfinite().all(dim=1).any():
        raise ValueError("the model's images are not finite numbers: it was trained with too high a learning rate")
    mean, scale = encode(model, logits.sigmoid().round())  # (P, D)
    information = gaussian_kl(mean.T, scale.log().T) / BANK  # (D,)
    used = information >= min(USED, information.max().item())
    return Search(logits, used.nonzero()[:, 0])


@dataclass(frozen=True)
class Mixture:
    """The model's prior, and Gaussians over the latents of B images, C for each.

    Attributes:
        prior: of the model.
        mean: `(C, B, D)`.
        root: lower triangular R `(C, B, D, D)`; the precision is R Rᵀ.
        share: `(1 + C,)`, the weights of the prior and of the Gaussians.
    """

    prior: nn.Module
    mean: Tensor
    root: Tensor
    share: Tensor

    def sample(self, count: int, generator: torch.Generator | None) -> Tensor:
        """Latents `(count, B, D)`."""
        components, images, size = self.mean.shape
        log_share = self.share.log()[:, None].expand(-1, images)
        chosen = choose(log_share, count, generator)  # (K, B)
        noise = standard_normal((count, images, size), self.mean, generator)
        z = self.prior.draw(noise.flatten(0, 1), generator).view_as(noise)
        for component in range(components):
            drawn = self.mean[component] + self.spread(component, noise)
            z = torch.where((chosen == 1 + component)[..., None], drawn, z)
        return z

    def spread(self, component: int, noise: Tensor) -> Tensor:
        """Standard normal noise `(K, B, D)` with the covariance of one Gaussian."""
        drawn = torch.linalg.solve_triangular(self.root[component].mT, noise.permute(1, 2, 0), upper=True)
        return drawn.permute(2, 0, 1)  # (B, D, K) -> (K, B, D)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of latents `(K, B, D)`: `(K, B)`."""
        parts = [self.prior.log_prob(z)] + [self.log_gaussian(component, z) for component in range(len(self.mean))]
        return (self.share.log()[:, None, None] + torch.stack(parts)).logsumexp(dim=0)

    def log_gaussian(self, component: int, z: Tensor) -> Tensor:
        """Log density of one Gaussian at latents `(K, B, D)`: `(K, B)`."""
        root = self.root[component]
        with without_autocast(z):
            whitened = torch.einsum("bji,kbj->kbi", root, z - self.mean[component])
        return log_normal(whitened, 0, 1) + root.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)


def fit(task: Task, search: Search, generator: torch.Generator | None) -> Mixture:
    """The prior, and Gaussians at modes of p(z | x_o), each in several widths.

    Where the Gaussians lie, the standard normal stands for a prior that was learned. They are widened only in
    directions that images depend on: in the others the narrow one is right, and each of many would cost weight for
    nothing. The search for the first mode begins at the candidate of the highest p(x_o, z), the search for each further
    one at the candidate farthest from the modes found.
    """
    z, scale = _candidates(task, search, generator)  # (T, B, D) each, best first
    mean, root = [], []  # (B, D), (B, D, D) each
    start = torch.zeros_like(z[0, :, 0], dtype=torch.long)  # (B,), the best candidate
    for _ in range(min(MODES, len(z))):
        new_mean, new_root = _laplace(task, pick(z, start[None])[0], pick(scale, start[None])[0], search.directions)
        mean += [new_mean] * len(WIDTHS)
        # R has no entry that joins these rows with others, so this divides the precision in their directions alone.
        root += [new_root.index_copy(1, search.directions, new_root[:, search.directions] / w) for w in WIDTHS]
        apart = torch.stack([(z - m).square().sum(dim=-1) for m in mean]).amin(dim=0)  # (T, B)
        start = apart.argmax(dim=0)
    share = z.new_tensor([PRIOR_SHARE, *[(1 - PRIOR_SHARE) / len(mean)] * len(mean)])
    return Mixture(task.model.prior, torch.stack(mean), torch.stack(root), share)


def _candidates(task: Task, search: Search, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Latents to begin the search for modes at, and how far to go for derivatives, `(T, B, D)` each.

    Prior images that suit the observed pixels fill in the missing ones, and the encoder reads the result: one step of
    pseudo-Gibbs. The latents of the highest p(x_o, z) come first. Where no pixel is missing there is but one.
    """
    if task.observed.all():
        z, scale = encode(task.model, task.x[None])
        return z, DIFFERENCE * scale
    z, scale = encode(task.model, task.fill(task.suiting(search.logits, STARTS), generator))
    order = task.log_joint(z, decode(task.model, z)).argsort(dim=0, descending=True)  # (STARTS, B)
    return pick(z, order), DIFFERENCE * pick(scale, order)


def pick(values: Tensor, indices: Tensor) -> Tensor:
    """Of values `(N, B, D)` those at indices `(M, B)`, for each image its own: `(M, B, D)`."""
    return values.gather(0, indices[..., None].expand(-1, -1, values.shape[-1]))


def _laplace(task: Task, z: Tensor, difference: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Laplace's approximation of p(z | x_o): modes `(N, D)`, and R `(N, D, D)` with R Rᵀ the precision there.

    Gauss-Newton from latents `(N, D)`: with J the derivatives of the logits and p the pixel probabilities, the
    precision is I + Jᵀ diag(p (1 - p)) J over the observed pixels. J is the dearest part, a decoding for each
    direction, and is made once. A step that does not raise p(x_o, z) is tried again shorter, then dropped. Directions
    that images do not depend on keep the prior's mean and precision.
    """
    z = torch.zeros_like(z).index_copy(1, directions, z[:, directions])
    logits = decode(task.model, z)
    jacobian = _jacobian(task.model, z, logits, difference, directions)  # (N, 784, D)
    for _ in range(MOVES):
        error = torch.where(task.observed, task.x - logits.sigmoid(), 0)
        with without_autocast(z):
            gradient = torch.einsum("npd,np->nd", jacobian, error) - z
        move = torch.cholesky_solve(gradient[..., None], _root(task, logits, jacobian))[..., 0]
        tried = torch.stack([z, z + move, z + 0.3 * move])  # (3, N, D)
        tried_logits = torch.cat([logits[None], decode(task.model, tried[1:])])
        best = task.log_joint(tried, tried_logits).argmax(dim=0, keepdim=True)  # (1, N)
        z, logits = pick(tried, best)[0], pick(tried_logits, best)[0]
    return z, _root(task, logits, jacobian)


def _root(task: Task, logits: Tensor, jacobian: Tensor) -> Tensor:
    """The Cholesky factor `(N, D, D)` of the precision I + Jᵀ diag(p (1 - p)) J over the observed pixels."""
    p = logits.sigmoid()
    weight = torch.where(task.observed, p * (1 - p), 0)
    eye = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)
    with without_autocast(logits):
        return torch.linalg.cholesky(eye + torch.einsum("npd,np,npe->nde", jacobian, weight, jacobian))


def _jacobian(model: VAE, z: Tensor, logits: Tensor, difference: Tensor, directions: Tensor) -> Tensor:
    """Derivatives `(N, 784, D)` of the logits by forward differences `(N, D)`; 0 in all but the given directions."""
    steps = torch.diag_embed(difference)[:, directions]  # (N, A, D)
    moved = decode(model, z[:, None] + steps)  # (N, A, 784)
    jacobian = logits.new_zeros((*logits.shape, z.shape[1]))  # (N, 784, D)
    jacobian[..., directions] = (moved - logits[:, None]).mT / difference[:, None, directions]
    return jacobian


def weighted(
    task: Task, mixture: Mixture, count: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents `(K, B, D)` from the mixture, their logits `(K, B, 784)` and log importance weights `(K, B)`."""
    z = mixture.sample(count, generator)
    logits = decode(task.model, z)
    return z, logits, task.log_joint(z, logits) - mixture.log_prob(z)
