"""The variational autoencoder around any decoder, and the two bounds on its log-likelihood.

Encoder and model are those of Palm et al., "Variational Neural Cellular Automata", ICLR 2022; the ELBO is that of
Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014; the importance-weighted bound that of Burda et al.,
"Importance Weighted Autoencoders", ICLR 2016. All bounds are in nats per image.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal
from torch.utils.checkpoint import checkpoint

from vnca.checks import require_tensor, whole
from vnca.decoders import BORDER, DECODERS, IMAGE_SIZE
from vnca.priors import CorrelatedMixturePrior, MixturePrior, StandardNormal, at_least_float32, standard_normal


class Encoder(nn.Module):
    """Five 5 × 5 convolutions and a linear layer: from an image to a Gaussian over latents.

    With the standard width the convolutions have 32, 64, 128, 256 and 512 channels, as in the paper; the last four
    have stride 2 and lead from 32 × 32 (the image with its border) to 2 × 2.

    Args:
        latent_size: size `D` of the latent.
        width: channels of the first convolution; each following one has twice as many.

    Raises:
        ValueError: if an argument is no whole number or below 1.
    """

    def __init__(self, latent_size: int = 256, width: int = 32):
        super().__init__()
        latent_size, width = whole(latent_size=latent_size, width=width)
        if latent_size < 1 or width < 1:
            raise ValueError(f"Encoder needs latent_size and width >= 1, not {latent_size} and {width}")
        self.latent_size = latent_size
        layers: list[nn.Module] = [nn.Conv2d(1, width, 5, padding=2), nn.ELU(inplace=True)]
        for channels in (width, 2 * width, 4 * width, 8 * width):  # 32 -> 16 -> 8 -> 4 -> 2
            layers += [nn.Conv2d(channels, 2 * channels, 5, stride=2, padding=2), nn.ELU(inplace=True)]
        layers += [nn.Flatten(), nn.Linear(16 * width * 2 * 2, 2 * latent_size)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-scale, `(B, D)` each, for images `(B, 1, 28, 28)`."""
        x = F.pad(x, (BORDER, BORDER, BORDER, BORDER))  # (B, 1, 28, 28) -> (B, 1, 32, 32)
        mean, log_scale = self.layers(x).chunk(2, dim=1)  # (B, 2D) -> 2 x (B, D)
        return mean, log_scale


class VAE(nn.Module):
    """A variational autoencoder with a Gaussian posterior and Bernoulli pixels.

    Args:
        encoder: maps images `(B, 1, 28, 28)` to mean and log-scale, `(B, D)` each.
        decoder: maps latents `(B, D)` to logits `(B, 1, 28, 28)`; any module that does so fits.
        prior: where latents come from; the standard normal unless another is given.

    Raises:
        ValueError: if encoder and decoder disagree on the size of the latent.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, prior: nn.Module | None = None):
        super().__init__()
        if encoder.latent_size != decoder.latent_size:
            raise ValueError(
                f"the encoder makes latents of size {encoder.latent_size}, "
                f"but the decoder takes latents of size {decoder.latent_size}"
            )
        self.latent_size = encoder.latent_size
        self.encoder = encoder
        self.decoder = decoder
        self.prior = StandardNormal() if prior is None else prior

    def encode(self, x: Tensor) -> Normal:
        """The approximate posterior q(z | x) of images `(B, 1, 28, 28)`: a `Normal` of batch shape `(B, D)`.

        Raises:
            ValueError: if the images are no tensor or have another shape.
        """
        require_tensor("images are", x)
        if x.ndim != 4 or x.shape[1:] != (1, IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(f"images have the shape (B, 1, {IMAGE_SIZE}, {IMAGE_SIZE}), not {tuple(x.shape)}")
        mean, log_scale = self.encoder(x.to(next(self.parameters()).dtype))
        return Normal(at_least_float32(mean), at_least_float32(log_scale).exp(), validate_args=False)

    def decode(self, z: Tensor) -> Tensor:
        """Logits `(B, 1, 28, 28)` of the pixels, p(x | z), for latents `(B, D)`.

        Raises:
            ValueError: if the latents are no tensor or have another shape.
        """
        require_tensor("latents are", z)
        return at_least_float32(self.decoder(z.to(next(self.parameters()).dtype)))

    @torch.no_grad()
    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` latents from the prior, `(n, D)`."""
        noise = standard_normal((n, self.latent_size), next(self.parameters()), generator)
        return self.prior.draw(noise, generator)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Pixel probabilities `(n, 1, 28, 28)` of `n` latents drawn from the prior.

        Raises:
            ValueError: if `n` is negative or no whole number.
        """
        (n,) = whole(n=n)
        if n < 0:
            raise ValueError(f"the number of samples is at least 0, not {n}")
        z = self.draw(n, generator)
        return torch.cat([self.decode(part).sigmoid() for part in z.split(CHUNK_SIZE)])  # bounds the memory


def bernoulli_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """log p(x | z) of Bernoulli pixels, summed over the image, in nats: 2 × `(B, 1, H, W)` -> `(B,)`.

    In float32 at least, whatever the autocast: a sum over 784 pixels in bfloat16 would be off by whole nats.
    """
    logits = at_least_float32(logits)
    per_pixel = F.binary_cross_entropy_with_logits(logits, x.to(logits.dtype), reduction="none")  # (B, 1, H, W)
    return -per_pixel.flatten(1).sum(dim=1)  # (B,)


def sample_posterior(model: VAE, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The latents `(B, D)` that the noise `(B, D)` makes of q(z | x), and KL(q || prior), `(B,)` nats.

    The latter is exact with a standard normal prior, and estimated from these latents with a mixture.
    """
    posterior = model.encode(x)
    z = posterior.mean + posterior.stddev * noise
    return z, model.prior.divergence(posterior, z)


def elbo_terms(model: VAE, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """The two terms of the ELBO, in nats: log p(x | z) for one reparameterized z ~ q(z | x), and KL(q || prior).

    The second term is that of `sample_posterior`.

    Args:
        model: a `VAE`.
        x: images `(B, 1, 28, 28)` in [0, 1]; not checked, so that a training loop pays nothing.
        generator: source of the noise.

    Returns:
        `(B,)` and `(B,)`; the ELBO is the first minus the second.
    """
    like = at_least_float32(next(model.parameters()))  # as the latents are
    z, kl = sample_posterior(model, x, standard_normal((len(x), model.latent_size), like, generator))
    return bernoulli_log_likelihood(model.decode(z), x), kl


def elbo(model: VAE, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The evidence lower bound with one sample of the latent: `(B,)` nats.

    Args:
        model: a `VAE`.
        x: images `(B, 1, 28, 28)` in [0, 1].
        generator: source of the noise, for reproducible figures.

    Raises:
        ValueError: if `x` has another shape or pixels outside [0, 1].
    """
    require_pixels(x)
    log_likelihood, kl = elbo_terms(model, x, generator)
    return log_likelihood - kl


CHUNK_SIZE = 64  # latents decoded at once when nobody asks for another number; 256 are slower on a CPU


def encode_in_chunks(model: VAE, x: Tensor, chunk_size: int) -> Normal:
    """As `model.encode`, so many images at once."""
    posteriors = [model.encode(part) for part in x.split(chunk_size)]
    mean, stddev = (torch.cat([getattr(q, name) for q in posteriors]) for name in ("mean", "stddev"))
    return Normal(mean, stddev, validate_args=False)


def iwae(
    model: VAE,
    x: Tensor,
    num_samples: int = 128,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The importance-weighted bound log 1/K Σ p(x, z_k) / q(z_k | x), z_k ~ q(z | x): `(B,)` nats.

    Equation 8 of Burda et al. With K = 1 it is the ELBO in expectation; it grows with K towards log p(x).

    Args:
        model: a `VAE`.
        x: images `(B, 1, 28, 28)` in [0, 1].
        num_samples: the number K of latents an image.
        chunk_size: how many images are encoded and latents decoded at once (None: 64). It bounds the memory and
            leaves the result as it is up to rounding. Where gradients are recorded, each chunk is computed a second
            time in the backward pass instead of being kept.
        generator: source of the noise, for reproducible figures.

    Raises:
        ValueError: if `x` has another shape or pixels outside [0, 1], or if `num_samples` or `chunk_size` is below 1 or
            no whole number.
    """
    require_pixels(x)
    chunk_size = CHUNK_SIZE if chunk_size is None else chunk_size
    num_samples, chunk_size = whole(num_samples=num_samples, chunk_size=chunk_size)
    if num_samples < 1 or chunk_size < 1:
        raise ValueError(f"num_samples and chunk_size are at least 1, not {num_samples} and {chunk_size}")
    posterior = encode_in_chunks(model, x, chunk_size)
    at_once = max(1, chunk_size // max(1, len(x)))  # samples of the whole batch that fit one chunk
    log_weights = []
    for first in range(0, num_samples, at_once):
        count = min(at_once, num_samples - first)
        # Drawn sample by sample, so that the noise does not depend on the chunks.
        noise = torch.stack([standard_normal(posterior.mean.shape, posterior.mean, generator) for _ in range(count)])
        z = posterior.mean + posterior.stddev * noise  # (K', B, D)
        chunks = zip(z.flatten(0, 1).split(chunk_size), x.repeat(count, 1, 1, 1).split(chunk_size), strict=True)
        terms = zip(*[_log_joint(model, *chunk) for chunk in chunks], strict=True)
        log_likelihood, log_prior = (torch.cat(term).view(count, -1) for term in terms)  # (K', B) each
        log_weights.append(log_likelihood + (log_prior - posterior.log_prob(z).sum(dim=-1)))
    return torch.cat(log_weights).logsumexp(dim=0) - math.log(num_samples)  # (K, B) -> (B,)


def _log_joint(model: VAE, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x | z) and log p(z) of pairs, `(N, D)` and `(N, 1, 28, 28)` -> 2 × `(N,)`.

    Nothing inside is kept for the backward pass: the decoder's grids are large, and so is a learned prior's distance of
    each latent from each component.
    """

    def compute(z: Tensor) -> tuple[Tensor, Tensor]:
        return bernoulli_log_likelihood(model.decode(z), x), model.prior.log_prob(z)

    return checkpoint(compute, z, use_reentrant=False) if torch.is_grad_enabled() else compute(z)


def require_pixels(x: Tensor) -> None:
    """Raise `ValueError` unless the images are a tensor whose values all lie in [0, 1] (a NaN does not)."""
    require_tensor("images are", x)
    if x.numel() and not bool(((x >= 0) & (x <= 1)).all()):
        if x.isnan().any():
            raise ValueError("pixels lie in [0, 1], but these images hold NaN")
        low, high = x.min().item(), x.max().item()
        advice = ": divide 8-bit images by 255" if low >= 0 and 1 < high < math.inf else ""
        raise ValueError(f"pixels lie in [0, 1], but these images go from {low:g} to {high:g}{advice}")


@dataclass(frozen=True)
class ModelConfig:
    """All that is needed to build a model again; written to and read from `config.json`.

    Attributes:
        decoder: `"doubling"`, `"persistent"`, `"regrowing"` or `"conv"`.
        latent_size: size `D` of the latent. The cells of the doubling decoder have as many channels, those of the
            persistent one have their age besides, and those of the regrowing one have as many, too, unless its options
            name another number of `channels`.
        encoder_width: channels of the encoder's first convolution.
        decoder_options: further arguments of the decoder's class, such as `hidden` and `steps`.
        components: of a learned `MixturePrior`; 0 for the standard normal prior of the paper.
        correlated: numbers of the latent in which the components have full covariances, as in a
            `CorrelatedMixturePrior`; 0 for diagonal ones in all numbers.
    """

    decoder: str = "doubling"
    latent_size: int = 256
    encoder_width: int = 32
    decoder_options: dict[str, int] = field(default_factory=dict)
    components: int = 0
    correlated: int = 0


def build(config: ModelConfig) -> VAE:
    """A freshly initialized model.

    Raises:
        ValueError: if the decoder is unknown, an option is not one of its arguments, or a value is out of range.
    """
    if config.decoder not in DECODERS:
        raise ValueError(f"unknown decoder {config.decoder!r}; there are {', '.join(sorted(DECODERS))}")
    size = config.latent_size
    sizes = {
        "conv": {"latent_size": size},
        "doubling": {"channels": size},
        "persistent": {"channels": size},
        "regrowing": {"channels": size, "latent_size": size},
    }
    try:
        decoder = DECODERS[config.decoder](**sizes[config.decoder] | config.decoder_options)
    except TypeError as error:
        raise ValueError(f"decoder {config.decoder!r} does not take {config.decoder_options}: {error}") from None
    return VAE(Encoder(size, config.encoder_width), decoder, _prior(config))


def _prior(config: ModelConfig) -> nn.Module:
    if config.correlated:
        return CorrelatedMixturePrior(config.latent_size, config.components, config.correlated)
    return MixturePrior(config.latent_size, config.components) if config.components else StandardNormal()
