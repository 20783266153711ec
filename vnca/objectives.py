"""What one update of training computes: the two terms of the ELBO, and for the regrowing VNCA its pool.

An objective works in three parts, so that an engine can split a batch over processes. `draw` makes every random
choice for the whole batch, the same in each process. `forward` computes the terms for a share of it: what `draw`
returned, tensors cut along their first dimension and whole numbers as they are. `keep` puts away what later updates
need, from the outcomes of all shares. The pool is the same in each process.
"""

from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from vnca import cells
from vnca.decoders import GRID_SIZE, IMAGE_SIZE, RegrowingDecoder, crop
from vnca.growing import Pool
from vnca.vae import VAE, bernoulli_log_likelihood, gaussian_kl, standard_normal

HOLE_SIZE = IMAGE_SIZE // 2  # cells along each side of a damage in training
POOL_SIZE = 1024
LARGEST = 50.0  # what a channel of a cell may grow to without a penalty


class Terms(NamedTuple):
    """What `forward` returns.

    Attributes:
        log_likelihood: log p(x | z), `(B,)` nats.
        kl: the KL divergence from the prior, `(B,)` nats.
        penalty: what else has to stay small, `(B,)`. The loss is the mean of `kl - log_likelihood + penalty`.
        fresh: which samples were grown from a seed, `(B,)` bool. Only for them are the two terms those of the ELBO.
        outcome: what `keep` takes, or None.
    """

    log_likelihood: Tensor
    kl: Tensor
    penalty: Tensor
    fresh: Tensor
    outcome: Tensor | None


class Elbo(nn.Module):
    """The ELBO with one sample of the latent (Kingma & Welling 2014), for any decoder.

    Args:
        model: a `VAE`.
    """

    def __init__(self, model: VAE):
        super().__init__()
        self.model = model

    def draw(self, x: Tensor, generator: Generator, host: Generator) -> dict[str, Tensor | int]:
        """The random choices of one update.

        Args:
            x: the batch's images `(B, 1, 28, 28)`.
            generator: source of what is drawn where the images live.
            host: source of what is drawn on the CPU; unused here.
        """
        return {"x": x, "noise": _noise(self.model, x, generator)}

    def forward(self, x: Tensor, noise: Tensor) -> Terms:
        """The terms for images `(B, 1, 28, 28)` and noise `(B, D)`."""
        z, kl = _sample_posterior(self.model, x, noise)
        log_likelihood = bernoulli_log_likelihood(self.model.decode(z), x)  # (B,)
        fresh = torch.ones_like(kl, dtype=torch.bool)
        return Terms(log_likelihood, kl, penalty=torch.zeros_like(kl), fresh=fresh, outcome=None)

    def keep(self, drawn: dict[str, Tensor | int], outcome: None) -> None:
        """Nothing outlives an update."""


class PersistentElbo(nn.Module):
    """The ELBO of the regrowing VNCA, with a pool and damage, so that an image stays and heals (Palm et al. 2022).

    The first half of a batch is fresh: images are encoded and grown from their seeds. The second half goes on from
    states of the pool, each with the image it was grown for; half of those, a quarter of the batch, start with a hole
    of 14 × 14 cells. All take the same random number of steps. Afterwards resumed states return to their places and
    the fresh ones replace others, drawn at random. While the pool fills up, a place may be drawn that is still empty:
    the sample is then fresh.

    No pixel shows the hidden channels, so nothing keeps them from growing from one resumption to the next; without a
    penalty they reached millions within 500 updates. The penalty is the mean, over cells and channels, of what
    exceeds 50 in absolute value, like the overflow loss of Niklasson et al., "Self-Organising Textures", Distill 2021.
    The released code of the VNCA paper has none.

    A resumed state was made by an encoder of the past, so its likelihood says nothing about today's encoder, and its
    KL term is zero. The released code of the paper counts the KL term of these images too, which makes it weigh twice
    as much in what the encoder learns.

    Args:
        model: a `VAE` with a `RegrowingDecoder`.
        pool_size: states in the pool.

    Raises:
        ValueError: if the decoder is another one.
    """

    def __init__(self, model: VAE, pool_size: int = POOL_SIZE):
        super().__init__()
        if not isinstance(model.decoder, RegrowingDecoder):
            raise ValueError(f"only a RegrowingDecoder can go on from a state of a pool, not {model.decoder!r}")
        self.model = model
        states = torch.zeros(pool_size, model.latent_size, GRID_SIZE, GRID_SIZE, dtype=torch.bfloat16)
        self.pool = Pool(states.to(memory_format=torch.channels_last))
        self.register_buffer("images", torch.zeros(pool_size, 1, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.bool))
        self.register_buffer("filled", torch.zeros(pool_size, dtype=torch.bool))

    def draw(self, x: Tensor, generator: Generator, host: Generator) -> dict[str, Tensor | int]:
        """The random choices of one update: which states of the pool, where the holes are, and how many steps.

        Args:
            x: the batch's binary images `(B, 1, 28, 28)`, with B at most the size of the pool.
            generator: source of what is drawn where the images live.
            host: source of what is drawn on the CPU, so that a GPU need not be waited for.

        Raises:
            ValueError: if the batch is larger than the pool.
        """
        size, half = len(x), len(x) // 2
        place, start = self.pool.sample(size, generator)  # (B,), (B, C, 32, 32)
        second_half = torch.arange(size, device=x.device) >= size - half
        resumed = second_half & self.filled[place]  # (B,)
        for state in start[size - half : size - half + size // 4].split(1):
            row, col = torch.randint(GRID_SIZE - HOLE_SIZE + 1, (2,), generator=host).tolist()
            state.copy_(cells.damage(state, row, col, HOLE_SIZE))
        decoder = self.model.decoder
        return {
            "x": torch.where(_column(resumed), self.images[place], x).to(x.dtype),
            "noise": _noise(self.model, x, generator),
            "start": start,
            "resumed": resumed,
            "place": place,
            "steps": int(torch.randint(decoder.min_steps, decoder.max_steps + 1, (), generator=host)),
        }

    def forward(self, x: Tensor, noise: Tensor, start: Tensor, resumed: Tensor, place: Tensor, steps: int) -> Terms:
        """The terms of one share of what `draw` returned; the outcome are the last states, without a graph.

        Args:
            x: images `(B, 1, 28, 28)`.
            noise: of the latents, `(B, D)`.
            start: states of the pool `(B, C, 32, 32)`, used where a sample is resumed.
            resumed: which samples are, `(B,)` bool.
            place: where `keep` puts the outcome, `(B,)`; not used here.
            steps: how many steps all samples take.
        """
        decoder = self.model.decoder
        z, kl = _sample_posterior(self.model, x, noise)
        state = torch.where(_column(resumed), start.to(z.dtype), decoder.seed(z))  # (B, C, 32, 32)
        state = decoder.run(state, steps)
        return Terms(
            log_likelihood=bernoulli_log_likelihood(crop(state[:, :1]), x),
            kl=kl.masked_fill(resumed, 0),
            penalty=(state.abs() - LARGEST).relu().mean(dim=(1, 2, 3)),
            fresh=~resumed,
            outcome=state.detach().to(self.pool.states.dtype),
        )

    def keep(self, drawn: dict[str, Tensor | int], outcome: Tensor) -> None:
        """Put the last states `(B, C, 32, 32)` of a whole batch into the pool, each with its image.

        A state that is not finite leaves its place empty, so that it harms one update only.
        """
        place = drawn["place"]
        self.pool.commit(place, outcome)
        self.images[place] = drawn["x"].bool()
        self.filled[place] = outcome.isfinite().flatten(1).all(dim=1)


def objective(model: VAE) -> Elbo | PersistentElbo:
    """What to train a model with: a regrowing one with a pool, every other with the ELBO alone."""
    return PersistentElbo(model) if isinstance(model.decoder, RegrowingDecoder) else Elbo(model)


def _noise(model: VAE, x: Tensor, generator: Generator) -> Tensor:
    return standard_normal((len(x), model.latent_size), x, generator)  # (B, D)


def _sample_posterior(model: VAE, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The latents `(B, D)` that the noise makes of q(z | x), and the KL term `(B,)`."""
    posterior = model.encode(x)
    z = posterior.mean + posterior.stddev * noise
    return z, gaussian_kl(posterior.mean, posterior.stddev.log())


def _column(flags: Tensor) -> Tensor:
    return flags[:, None, None, None]  # (B,) -> (B, 1, 1, 1)
