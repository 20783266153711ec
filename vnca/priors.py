"""Where latents come from: the standard normal prior of the paper, and mixtures of Gaussians that are learned.

The ELBO charges each image the divergence of its posterior from the prior. On average over images that is the
information that the latents carry about the images, plus the divergence of the aggregated posterior (the mean of all
posteriors) from the prior (Hoffman & Johnson, "ELBO surgery", 2016). A prior that can take the shape of the aggregated
posterior makes the second part smaller (Tomczak & Welling, "VAE with a VampPrior", AISTATS 2018).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Normal

FIT_UPDATES = 1500
FIT_BATCH = 512  # latents an update
FIT_RATE = 1e-2  # Adam's, at its peak


def standard_normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise on the device and in the type of `like`, drawn where the generator lives.

    Raises:
        ValueError: if `generator` is neither a generator nor None.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"the generator is a torch.Generator, not {generator!r}: torch.Generator().manual_seed(0)")
    device = like.device if generator is None else generator.device
    return torch.randn(shape, dtype=like.dtype, device=device, generator=generator).to(like.device)


def at_least_float32(t: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is already wider."""
    return t if t.dtype == torch.float64 else t.float()


def without_autocast(like: Tensor) -> torch.autocast:
    """A block whose products are made in the type of their factors, whatever the autocast around it.

    In 16 bits log densities would be off by whole nats. Networks alone are to be faster there.
    """
    return torch.autocast(like.device.type, enabled=False)


def gaussian_kl(mean: Tensor, log_scale: Tensor) -> Tensor:
    """KL divergence from the standard normal, in nats: `(B, D)`, `(B, D)` -> `(B,)`.

    Closed form of Kingma & Welling 2014, appendix B, with s the log-scale: sum of (mean² + e^{2s} - 1 - 2s) / 2.
    """
    return 0.5 * (mean.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(dim=1)  # (B, D) -> (B,)


class StandardNormal(nn.Module):
    """The prior of the paper: every number of the latent is standard normal, independent of the others."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of latents: `(..., D)` -> `(...)` nats."""
        return Normal(0.0, 1.0, validate_args=False).log_prob(z).sum(dim=-1)

    def draw(self, noise: Tensor, generator: torch.Generator | None) -> Tensor:
        """Latents `(n, D)` made of standard normal noise `(n, D)`: itself."""
        return noise

    def divergence(self, posterior: Normal, z: Tensor) -> Tensor:
        """KL divergence of posteriors `(B, D)` from the prior, exact, whatever was drawn: `(B,)` nats."""
        return gaussian_kl(posterior.mean, posterior.stddev.log())


class _Mixture(nn.Module):
    """What mixtures have in common. `log_share` `(C,)` holds the logarithms of their shares, up to a constant.

    Whatever type the weights have, densities and draws are computed in float32 at least.
    """

    def divergence(self, posterior: Normal, z: Tensor) -> Tensor:
        """KL divergence of posteriors `(B, D)` from the prior, estimated from one latent of each: `(B,)` nats.

        There is no closed form. The estimate is log q(z) - log p(z), unbiased for z ~ q.

        Args:
            posterior: `Normal` of batch shape `(B, D)`.
            z: latents `(B, D)` drawn from it.
        """
        return posterior.log_prob(z).sum(dim=-1) - self.log_prob(z)

    def _choose(self, noise: Tensor, generator: torch.Generator | None) -> Tensor:
        """The component of each latent that will be made of noise `(n, D)`: `(n,)`."""
        device = noise.device if generator is None else generator.device
        shares = at_least_float32(self.log_share).softmax(dim=0).to(device)
        return torch.multinomial(shares, len(noise), replacement=True, generator=generator).to(noise.device)

    @torch.enable_grad()
    def _maximize(
        self,
        log_density: Callable[[Tensor], Tensor],
        mean: Tensor,
        scale: Tensor,
        updates: int,
        generator: torch.Generator,
    ) -> None:
        """Go up the gradient of the mean of `log_density`, at latents drawn from posteriors: `(N, D)` each."""
        optimizer = torch.optim.Adam(self.parameters(), FIT_RATE)
        for update in range(updates):
            optimizer.param_groups[0]["lr"] = FIT_RATE * (1 + math.cos(math.pi * update / updates)) / 2
            chosen = torch.randint(len(mean), (FIT_BATCH,), generator=generator)
            z = mean[chosen] + scale[chosen] * standard_normal((FIT_BATCH, mean.shape[1]), mean, generator)
            optimizer.zero_grad()
            (-log_density(z).mean()).backward()
            optimizer.step()


class MixturePrior(_Mixture):
    """A mixture of `C` Gaussians with diagonal covariances, all learned. It is not in the paper.

    A new one is the standard normal, `C` times; `fit` gives it the shape of latents.

    Args:
        latent_size: size `D` of the latent.
        components: their number `C`.

    Raises:
        ValueError: if an argument is below 1.
    """

    def __init__(self, latent_size: int, components: int):
        super().__init__()
        if latent_size < 1 or components < 1:
            raise ValueError(f"MixturePrior needs latent_size and components >= 1, not {latent_size} and {components}")
        self.mean = nn.Parameter(torch.zeros(components, latent_size))
        self.log_scale = nn.Parameter(torch.zeros(components, latent_size))
        self.log_share = nn.Parameter(torch.zeros(components))  # up to a constant

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of latents: `(..., D)` -> `(...)` nats."""
        with without_autocast(z):
            z, mean, log_scale, log_share = map(at_least_float32, (z, self.mean, self.log_scale, self.log_share))
            precision = (-2 * log_scale).exp()  # (C, D)
            # (z - m)² p, multiplied out: matrix products instead of all differences, which would be (..., C, D).
            squares = z.square() @ precision.T - 2 * z @ (mean * precision).T  # (..., C)
            squares = squares + (mean.square() * precision).sum(dim=1)
            log_norm = log_scale.sum(dim=1) + 0.5 * math.log(2 * math.pi) * z.shape[-1]  # (C,)
            parts = log_share.log_softmax(dim=0) - log_norm - 0.5 * squares  # (..., C)
            return parts.logsumexp(dim=-1)

    def draw(self, noise: Tensor, generator: torch.Generator | None) -> Tensor:
        """Latents `(n, D)` made of standard normal noise `(n, D)`, each moved to a component; in the noise's type.

        Args:
            noise: decides where in its component a latent lies.
            generator: decides which component that is.
        """
        if not len(noise):
            return noise
        chosen = self._choose(noise, generator)
        mean, log_scale = at_least_float32(self.mean), at_least_float32(self.log_scale)
        return (mean[chosen] + log_scale[chosen].exp() * noise).to(noise.dtype)

    def fit(self, mean: Tensor, scale: Tensor, generator: torch.Generator) -> None:
        """Maximize the mean log density of latents of given posteriors: the prior takes the shape of all of them.

        Each component starts at the mean of a posterior drawn by chance, as wide as all latents together. Numbers of
        the latent that are used for nothing are standard normal in all posteriors, and so are right from the start.

        Args:
            mean, scale: of the posteriors, `(N, D)` each.
            generator: source of all randomness.
        """
        with torch.no_grad():
            self.mean.copy_(_drawn(mean, len(self.mean), generator))
            self.log_scale.copy_(_spread(mean, scale).log().expand_as(self.log_scale))
            self.log_share.zero_()
        self._maximize(self.log_prob, mean, scale, FIT_UPDATES, generator)


class CorrelatedMixturePrior(_Mixture):
    """A mixture of `C` Gaussians with full covariances, in `A` of the `D` numbers of the latent, the most used ones.

    The other numbers are standard normal. A component with a full covariance can lie aslant between the axes, where
    many of those without would have to line up. Each has a lower triangular matrix R, such that R (z - m) is standard
    normal. A new prior is the standard normal; `fit` chooses the numbers.

    Args:
        latent_size: size `D` of the latent.
        components: their number `C`.
        correlated: how many numbers `A` of the latent the components are about.

    Raises:
        ValueError: if `components` is below 1, or `correlated` is not in 1 to `latent_size`.
    """

    def __init__(self, latent_size: int, components: int, correlated: int):
        super().__init__()
        if components < 1 or not 1 <= correlated <= latent_size:
            raise ValueError(
                "CorrelatedMixturePrior needs components >= 1 and correlated from 1 to latent_size, "
                f"not {components} and {correlated} of {latent_size}"
            )
        self.register_buffer("used", torch.arange(correlated))  # which numbers of the latent
        self.mean = nn.Parameter(torch.zeros(components, correlated))
        self.log_scale = nn.Parameter(torch.zeros(components, correlated))  # of each number, given those before it
        # Minus their influence on it: row by row, what lies below the diagonal.
        self.below = nn.Parameter(torch.zeros(components, correlated * (correlated - 1) // 2))
        self.log_share = nn.Parameter(torch.zeros(components))  # up to a constant

    def roots(self) -> Tensor:
        """R of all components: `(C, A, A)`."""
        log_scale, below = at_least_float32(self.log_scale), at_least_float32(self.below)
        components, size = log_scale.shape
        row, column = torch.tril_indices(size, size, -1, device=log_scale.device)
        influence = torch.eye(size, dtype=log_scale.dtype, device=log_scale.device).repeat(components, 1, 1)
        influence[:, row, column] = below
        return (-log_scale).exp()[..., None] * influence

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of latents: `(..., D)` -> `(...)` nats."""
        with without_autocast(z):
            z = at_least_float32(z)
            used = z.index_select(-1, self.used)  # (..., A)
            normal = StandardNormal().log_prob
            return self._log_prob_of_used(used) + normal(z) - normal(used)

    def _log_prob_of_used(self, used: Tensor) -> Tensor:
        """Log density of the numbers that the components are about: `(..., A)` -> `(...)` nats."""
        roots = self.roots()  # (C, A, A)
        mean, log_scale, log_share = map(at_least_float32, (self.mean, self.log_scale, self.log_share))
        center = (roots @ mean[..., None]).squeeze(-1)  # (C, A)
        noise = (used @ roots.flatten(0, 1).T).unflatten(-1, center.shape) - center  # R (z - m): (..., C, A)
        log_norm = log_scale.sum(dim=1) + 0.5 * math.log(2 * math.pi) * used.shape[-1]  # (C,)
        parts = log_share.log_softmax(dim=0) - log_norm - 0.5 * noise.square().sum(dim=-1)  # (..., C)
        return parts.logsumexp(dim=-1)

    def draw(self, noise: Tensor, generator: torch.Generator | None) -> Tensor:
        """Latents `(n, D)` made of standard normal noise `(n, D)`, as `MixturePrior.draw` makes them."""
        if not len(noise):
            return noise
        chosen = self._choose(noise, generator)
        used = at_least_float32(noise[:, self.used])  # (n, A)
        moved = torch.linalg.solve_triangular(self.roots()[chosen], used[..., None], upper=False).squeeze(-1)  # (n, A)
        z = noise.clone()
        z[:, self.used] = (self.mean[chosen] + moved).to(z.dtype)
        return z

    def fit(self, mean: Tensor, scale: Tensor, generator: torch.Generator) -> None:
        """As `MixturePrior.fit`, for the numbers whose posteriors diverge most from the standard normal, on average.

        It takes twice as many updates, because covariances take longer to learn.
        """
        with torch.no_grad():
            divergence = gaussian_kl(mean.T, scale.log().T)  # of each number, over all posteriors: (D,)
            self.used.copy_(divergence.topk(len(self.used)).indices.sort().values)
            self.mean.copy_(_drawn(mean, len(self.mean), generator)[:, self.used])
            self.log_scale.copy_(_spread(mean, scale)[self.used].log().expand_as(self.log_scale))
            self.below.zero_()
            self.log_share.zero_()
            mean, scale = mean[:, self.used], scale[:, self.used]  # the others have nothing to learn from
        self._maximize(self._log_prob_of_used, mean, scale, 2 * FIT_UPDATES, generator)


def _drawn(mean: Tensor, components: int, generator: torch.Generator) -> Tensor:
    """The means `(C, D)` of posteriors drawn by chance."""
    return mean[torch.randint(len(mean), (components,), generator=generator)]


def _spread(mean: Tensor, scale: Tensor) -> Tensor:
    """The standard deviation of all latents: 2 × `(N, D)` -> `(D,)`."""
    return (mean.var(dim=0, correction=0) + scale.square().mean(dim=0)).sqrt()
