"""What one update of training computes: the two terms of the ELBO, and for the regrowing VNCA its pool.

An objective works in parts, so that an engine can split a batch over processes. `draw` makes every random choice for
the whole batch, the same in each process. `forward` computes the terms for a share of it: what `draw` returned, tensors
cut along their first dimension and whole numbers as they are. Where these have an outcome, `keep` puts away what later
updates need, from the outcomes of all shares. The pool is the same in each process.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.distributions import Normal

from vnca import cells
from vnca.decoders import BORDER, GRID_SIZE, IMAGE_SIZE, PersistentDecoder, RegrowingDecoder, crop
from vnca.growing import Pool
from vnca.priors import standard_normal
from vnca.vae import VAE, bernoulli_log_likelihood, sample_posterior

HOLE_SIZE = IMAGE_SIZE // 2  # cells along each side of a damage in training
POOL_SIZE = 1024
ENTERING = 1 / 16  # of a batch, the fresh states that enter the pool
LARGEST = 20.0  # what a channel of a cell may grow to without a penalty
PENALTY = 10.0  # nats for each unit beyond that, on average over cells and channels


class Terms(NamedTuple):
    """What `forward` returns.

    Attributes:
        log_likelihood: log p(x | z), `(B,)` nats.
        kl: the KL divergence from the prior, `(B,)` nats; of the importance-weighted bound what stands for it.
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

    def draw(self, x: Tensor, generator: Generator, host: Generator, update: int = 0) -> dict[str, Tensor | int]:
        """The random choices of one update.

        Args:
            x: the batch's images `(B, 1, 28, 28)`.
            generator: source of what is drawn where the images live.
            host: source of what is drawn on the CPU; unused here.
            update: how many updates came before; unused here.
        """
        return {"x": x, "noise": _noise(self.model, x, generator)}

    def forward(self, x: Tensor, noise: Tensor) -> Terms:
        """The terms for images `(B, 1, 28, 28)` and noise `(B, D)`."""
        z, kl = sample_posterior(self.model, x, noise)
        log_likelihood = bernoulli_log_likelihood(self.model.decode(z), x)  # (B,)
        fresh = torch.ones_like(kl, dtype=torch.bool)
        return Terms(log_likelihood, kl, penalty=torch.zeros_like(kl), fresh=fresh, outcome=None)


class ImportanceWeighted(nn.Module):
    """The importance-weighted bound with K samples of the latent (Burda et al. 2016), for any decoder.

    It is nearer to log p(x) than the ELBO is, so training spends less on posteriors that suit the encoder. The encoder
    gets the doubly reparameterized gradient (Tucker et al., "Doubly Reparameterized Gradient Estimators for Monte Carlo
    Objectives", ICLR 2019): the plain one is lost in its own noise as K grows.

    Args:
        model: a `VAE`.
        samples: the number K.

    Raises:
        ValueError: if `samples` is below 1.
    """

    def __init__(self, model: VAE, samples: int):
        super().__init__()
        if samples < 1:
            raise ValueError(f"the importance-weighted bound needs at least 1 sample, not {samples}")
        self.model = model
        self.samples = samples

    def draw(self, x: Tensor, generator: Generator, host: Generator, update: int = 0) -> dict[str, Tensor | int]:
        """The random choices of one update: as `Elbo` draws them, with noise `(B, K, D)`."""
        shape = (len(x), self.samples, self.model.latent_size)
        return {"x": x, "noise": standard_normal(shape, x, generator)}

    def forward(self, x: Tensor, noise: Tensor) -> Terms:
        """The terms for images `(B, 1, 28, 28)` and noise `(B, K, D)`.

        The log-likelihood is the weighted mean over the samples, and what stands for the KL term is its difference from
        the bound: so the two make up the bound, as those of the ELBO make up the ELBO.
        """
        model = self.model
        posterior = model.encode(x)
        z = posterior.mean[:, None] + posterior.stddev[:, None] * noise  # (B, K, D)
        still = Normal(posterior.mean[:, None].detach(), posterior.stddev[:, None].detach(), validate_args=False)
        repeated = x.repeat_interleave(self.samples, dim=0)  # (B K, 1, 28, 28)
        log_likelihood = bernoulli_log_likelihood(model.decode(z.flatten(0, 1)), repeated).view(z.shape[:2])  # (B, K)
        log_weight = log_likelihood + model.prior.log_prob(z) - still.log_prob(z).sum(dim=-1)  # (B, K)
        weight = log_weight.detach().softmax(dim=1)
        bound = log_weight.detach().logsumexp(dim=1) - math.log(self.samples)  # (B,)
        if z.requires_grad:
            z.register_hook(lambda gradient: weight[..., None] * gradient)  # on the way to the encoder a second time
        surrogate = (weight * log_weight).sum(dim=1)  # its gradient is that of the bound, and its value is not
        bound = bound + surrogate - surrogate.detach()
        log_likelihood = (weight * log_likelihood.detach()).sum(dim=1)  # (B,)
        fresh = torch.ones_like(bound, dtype=torch.bool)
        return Terms(log_likelihood, log_likelihood - bound, torch.zeros_like(bound), fresh=fresh, outcome=None)


class PersistentElbo(nn.Module):
    """The ELBO of the regrowing VNCA, with a pool and damage, so that an image stays and heals (Palm et al. 2022).

    The same for a doubling VNCA that goes on living on its last grid, which is not in the paper.

    The first half of a batch is fresh: images are encoded and grown from their seeds. The second half goes on from
    states of the pool, each with the image it was grown for; half of those, a quarter of the batch, start with a hole
    of 14 × 14 cells. Afterwards resumed states return to their places, and an eighth of the fresh ones replace others,
    drawn at random. While the pool fills up, a place may be drawn that is still empty: the sample is then fresh.

    Five things differ from the code of the VNCA paper's figure 9 (revision 4b2dc09 of its repository).

    - There the grid has the 28 × 28 cells of the image, and each cell changes in a step with probability one half (in
      later revisions all change). Here it has 32 × 32, as in the reproduction of Aillet & Sondén, and all cells change.
    - There an update draws a number of steps from the decoder's range and takes the likelihood after it. Here the
      likelihood is the mean over all numbers of the range: the same in expectation, without the noise of the draw.
      What is drawn is the number of steps after which the state goes into the pool.
    - There all fresh states enter the pool, and so a state is resumed once, on average, before another one takes its
      place. Here it is resumed eight times, so that training sees what becomes of a state in the long run.
    - No pixel shows the hidden channels, so nothing keeps them from growing from one resumption to the next; without a
      penalty they reached millions within 500 updates. The penalty is 10 times the mean, over cells and channels of
      the last state, of what exceeds 20 in absolute value, like the overflow loss of Niklasson et al.,
      "Self-Organising Textures", Distill 2021.
    - A resumed state was made by an encoder of the past, so its likelihood says nothing about today's encoder, and its
      KL term is zero. There the KL term of these images counts too, and so weighs twice as much in what the encoder
      learns.

    The cells around a hole tell much about the digit that was there. So cells with a genome learn to guess from their
    neighbors, and hardly to read. With `planted` all resumed states get a hole, and half of them the genome of another
    image in all cells that are left. In the hole that other image is wanted, which no neighbor can tell. Such a state
    is not put back: its genome and its picture are of two images.

    Args:
        model: a `VAE` with a `RegrowingDecoder`, or a `PersistentDecoder`, whose steps count from its last doubling.
        pool_size: states in the pool.
        planted: whether wounded cells learn to read the genome of another image. It is not in the paper.

    Raises:
        ValueError: if the decoder is another one, or `planted` is asked for and its cells have no genome.
    """

    def __init__(self, model: VAE, pool_size: int = POOL_SIZE, planted: bool = False):
        super().__init__()
        if not isinstance(model.decoder, PersistentDecoder | RegrowingDecoder):
            raise ValueError(
                "only a PersistentDecoder or a RegrowingDecoder can go on from a state of a pool, "
                f"not a {type(model.decoder).__name__}"
            )
        if planted and not isinstance(model.decoder.update, cells.MaturingUpdate):
            raise ValueError("only cells with a genome can get another's: the latent needs fewer numbers than channels")
        self.model = model
        self.planted = planted
        states = torch.zeros(pool_size, model.decoder.channels, GRID_SIZE, GRID_SIZE, dtype=torch.bfloat16)
        self.pool = Pool(states.to(memory_format=torch.channels_last))
        self.register_buffer("images", torch.zeros(pool_size, 1, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.bool))
        self.register_buffer("filled", torch.zeros(pool_size, dtype=torch.bool))

    def draw(self, x: Tensor, generator: Generator, host: Generator, update: int = 0) -> dict[str, Tensor | int]:
        """The random choices of one update: which states of the pool, where the holes are, and how many steps.

        Args:
            x: the batch's binary images `(B, 1, 28, 28)`, with B at most the size of the pool.
            generator: source of what is drawn where the images live.
            host: source of what is drawn on the CPU, so that a GPU need not be waited for.
            update: how many updates came before; unused here.

        Raises:
            ValueError: if the batch is larger than the pool.
        """
        size, half = len(x), len(x) // 2
        place, start = self.pool.sample(size, generator)  # (B,), (B, C, 32, 32)
        index = torch.arange(size, device=x.device)
        second_half = index >= size - half
        resumed = second_half & self.filled[place]  # (B,)
        wounded = half if self.planted else size // 4
        hole = _wound(start[size - half : size - half + wounded], host)  # (wounded, 1, 32, 32)
        hole = F.pad(hole, (0, 0, 0, 0, 0, 0, size - half, half - wounded))  # (B, 1, 32, 32)
        planted = resumed & (index >= size - half // 2) if self.planted else torch.zeros_like(resumed)
        past = _column(resumed) & ~(_column(planted) & crop(hole))  # pixels wanted as they were
        decoder = self.model.decoder
        return {
            "x": torch.where(_column(resumed & ~planted), self.images[place], x).to(x.dtype),
            "wanted": torch.where(past, self.images[place], x).to(x.dtype),
            "noise": _noise(self.model, x, generator),
            "start": start,
            "resumed": resumed,
            "planted": planted,
            "place": place,
            "kept": (second_half & ~planted) | (index < max(1, round(ENTERING * size))),
            "steps": int(torch.randint(decoder.min_steps, decoder.max_steps + 1, (), generator=host)),
        }

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        wanted: Tensor,
        start: Tensor,
        resumed: Tensor,
        planted: Tensor,
        place: Tensor,
        kept: Tensor,
        steps: int,
    ) -> Terms:
        """The terms of one share of what `draw` returned; the outcome are states to resume, without a graph.

        Args:
            x: images `(B, 1, 28, 28)` to encode.
            noise: of the latents, `(B, D)`.
            wanted: images `(B, 1, 28, 28)` to be drawn: those encoded, but for planted samples.
            start: states of the pool `(B, C, 32, 32)`, used where a sample is resumed.
            resumed: which samples are, `(B,)` bool.
            planted: which of them get the latent of `x` as their genome, `(B,)` bool.
            place, kept: where `keep` puts which outcomes, `(B,)` each; not used here.
            steps: how many steps the outcome has taken.
        """
        decoder = self.model.decoder
        z, kl = sample_posterior(self.model, x, noise)
        state = torch.where(_column(resumed), start.to(z.dtype), decoder.settle(z))  # (B, C, 32, 32)
        if self.planted:
            state = torch.where(_column(planted), cells.plant(state, z.detach()), state)

        def compare(state: Tensor) -> Tensor:
            return bernoulli_log_likelihood(crop(state[:, :1]), wanted)

        first, last = decoder.min_steps, decoder.max_steps
        log_likelihood, outcome, state = _follow(decoder, state, compare, first, last, steps)
        return Terms(
            log_likelihood=log_likelihood,
            kl=kl.masked_fill(resumed, 0),
            penalty=_overflow(state),
            fresh=~resumed,
            outcome=outcome.detach().to(self.pool.states.dtype),
        )

    def keep(self, drawn: dict[str, Tensor | int], outcome: Tensor) -> None:
        """Put states `(B, C, 32, 32)` of a whole batch into the pool, each with its image: those that `draw` chose.

        A state that is not finite leaves its place empty, so that it harms one update only.
        """
        kept = drawn["kept"]
        place, outcome = drawn["place"][kept], outcome[kept]
        self.pool.commit(place, outcome)
        self.images[place] = drawn["wanted"][kept].bool()
        self.filled[place] = outcome.isfinite().flatten(1).all(dim=1)


class CoarseToFine(nn.Module):
    """Lessons before the whole: the update of a regrowing decoder learns on small grids first.

    From the border of a 32 × 32 grid it takes 16 steps until its middle knows where it is, and a gradient as many to
    come back. On 8 × 8 cells it is 4 steps and a sixteenth of the cells, and the rule to be learned is much the same:
    it does not know how large its grid is. So lessons go from small grids to large ones. In a lesson on `s × s` cells

    - the image is the mean of the pixels that each cell stands for, with two pixels of border;
    - the range of steps shrinks with the side of the grid;
    - the likelihood counts `(32 / s)²` times, so that it compares with that of all pixels;
    - nothing teaches the encoder, so it should be one that was trained, with another decoder;
    - there is no pool. Where the pool would plant genomes (`PersistentElbo`), half of a batch is grown up without a
      gradient, loses a square of cells, and half of these get the genome of another image, which is wanted there.

    After the lessons comes `PersistentElbo`. None of this is in the VNCA paper.

    Args:
        persistent: what comes after the lessons.
        lessons: pairs of the side of the grid, a divisor of 32 that is at least 2, and the number of updates.

    Raises:
        ValueError: if a lesson is impossible.
    """

    def __init__(self, persistent: PersistentElbo, lessons: Sequence[tuple[int, int]]):
        super().__init__()
        for side, updates in lessons:
            if side < 2 or GRID_SIZE % side or updates < 1:
                raise ValueError(
                    f"a lesson has a grid with a side of 2, 4, 8, 16 or 32 and at least 1 update, not {(side, updates)}"
                )
        self.persistent = persistent
        self.sides = [side for side, updates in lessons for _ in range(updates)]

    @property
    def model(self) -> VAE:
        """What is trained."""
        return self.persistent.model

    def draw(self, x: Tensor, generator: Generator, host: Generator, update: int = 0) -> dict[str, Tensor | int]:
        """The random choices of one update, as `PersistentElbo` draws them.

        In a lesson it is the noise of the latents, with the side of the lesson's grid. With planted genomes it is also
        the holes, and the images and noise of the grids before their wounds: `hole`, `old` and `old_noise`.

        Args:
            x, generator, host: as for `PersistentElbo`.
            update: how many updates came before.
        """
        if update >= len(self.sides):
            return self.persistent.draw(x, generator, host)
        side, noise = self.sides[update], _noise(self.model, x, generator)
        drawn = {"x": x, "noise": noise, "side": side}
        if not self.persistent.planted:
            return drawn
        size, half = len(x), len(x) // 2
        hole = torch.zeros(size, 1, side, side, dtype=torch.bool, device=x.device)
        hole[size - half :] = _squares(half, side, HOLE_SIZE * side // GRID_SIZE, host).to(x.device)
        planted = _column(torch.arange(size, device=x.device) >= size - half // 2)
        old_noise = torch.where(planted[:, :, 0, 0], _noise(self.model, x, generator), noise)
        return drawn | {"hole": hole, "old": torch.where(planted, x.roll(1, dims=0), x), "old_noise": old_noise}

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        side: int | None = None,
        hole: Tensor | None = None,
        old: Tensor | None = None,
        old_noise: Tensor | None = None,
        **drawn: Tensor | int,
    ) -> Terms:
        """The terms of one share of what `draw` returned.

        Args:
            x: images `(B, 1, 28, 28)`.
            noise: of the latents, `(B, D)`.
            side: in a lesson, of its grid.
            hole: in a lesson with planted genomes, which cells are lost, `(B, 1, side, side)` bool.
            old, old_noise: what the wounded grids were before, as `x` and `noise`.
            drawn: after the lessons, what else `PersistentElbo` takes.
        """
        if side is None:
            return self.persistent(x, noise, **drawn)
        decoder, pixels = self.model.decoder, GRID_SIZE // side  # along each side of a cell
        z, kl = sample_posterior(self.model, x, noise)
        z, kl = (t.detach() + 0 * t for t in (z, kl))  # a gradient of zero: several processes want one for each weight
        target, state = _coarse(x, pixels), decoder.seed(z, side)  # (B, 1, side, side), (B, C, side, side)
        fresh = torch.ones_like(kl, dtype=torch.bool)
        if hole is not None:
            fresh = ~hole.flatten(1).any(dim=1)  # (B,)
            hurt = self._hurt(old[~fresh], old_noise[~fresh], hole[~fresh])
            state = state.index_put((~fresh,), cells.plant(hurt, z[~fresh]))
            target = torch.where(hole | _column(fresh), target, _coarse(old, pixels))

        def compare(state: Tensor) -> Tensor:
            return bernoulli_log_likelihood(state[:, :1], target)

        first, last = (max(1, steps // pixels) for steps in (decoder.min_steps, decoder.max_steps))
        log_likelihood, _, state = _follow(decoder, state, compare, first, last, last)
        return Terms(
            log_likelihood=pixels**2 * log_likelihood,
            kl=kl.masked_fill(~fresh, 0),
            penalty=_overflow(state),
            fresh=fresh,
            outcome=None,
        )

    @torch.no_grad()
    def _hurt(self, x: Tensor, noise: Tensor, hole: Tensor) -> Tensor:
        """Mature states of images `(B, 1, 28, 28)` without the cells of their holes `(B, 1, side, side)`."""
        decoder, side = self.model.decoder, hole.shape[-1]
        z, _ = sample_posterior(self.model, x, noise)
        return torch.where(hole, 0, decoder.run(decoder.seed(z, side), side))  # cells mature in as many steps

    def keep(self, drawn: dict[str, Tensor | int], outcome: Tensor) -> None:
        """As `PersistentElbo` does."""
        self.persistent.keep(drawn, outcome)


def objective(
    model: VAE, lessons: Sequence[tuple[int, int]] = (), samples: int = 1, planted: bool = False
) -> Elbo | ImportanceWeighted | PersistentElbo | CoarseToFine:
    """What to train a model with.

    A regrowing or persistent one is trained with a pool, a regrowing one after its lessons. Every other is trained with
    the ELBO, or with the importance-weighted bound of several samples.

    Raises:
        ValueError: if lessons, planted genomes or several samples are given for a decoder that cannot have any.
    """
    name = type(model.decoder).__name__
    if (lessons or planted) and not isinstance(model.decoder, RegrowingDecoder):
        raise ValueError(f"lessons and planted genomes are for a RegrowingDecoder, not for a {name}")
    if not isinstance(model.decoder, PersistentDecoder | RegrowingDecoder):
        return Elbo(model) if samples == 1 else ImportanceWeighted(model, samples)
    if samples != 1:
        raise ValueError(f"a {name} is trained with 1 sample an image, not with {samples}")
    persistent = PersistentElbo(model, planted=planted)
    return CoarseToFine(persistent, lessons) if lessons else persistent


def _noise(model: VAE, x: Tensor, generator: Generator) -> Tensor:
    return standard_normal((len(x), model.latent_size), x, generator)  # (B, D)


def _follow(
    decoder: PersistentDecoder | RegrowingDecoder,
    state: Tensor,
    compare: Callable[[Tensor], Tensor],
    first: int,
    last: int,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take `last` steps from a state `(B, C, H, W)`.

    Returns:
        The mean of `compare`, `(B,)`, over the states after `first` to `last` steps; the state after `steps` of them;
        and the last one.
    """
    total, outcome = 0.0, state
    for taken in range(last + 1):
        if taken > 0:
            state = decoder.step(state)
        if taken >= first:
            total = total + compare(state)
        if taken == steps:
            outcome = state
    return total / (last + 1 - first), outcome, state


def _wound(states: Tensor, host: Generator) -> Tensor:
    """Set a square of cells of each state `(B, C, 32, 32)` to zero, in place; where, `(B, 1, 32, 32)` bool."""
    hole = _squares(len(states), GRID_SIZE, HOLE_SIZE, host).to(states.device)
    states.masked_fill_(hole, 0)
    return hole


def _squares(count: int, side: int, size: int, host: Generator) -> Tensor:
    """Squares of `size × size` cells, each anywhere in a grid of its own: `(count, 1, side, side)` bool on the CPU."""
    found = torch.zeros(count, 1, side, side, dtype=torch.bool)
    for square in found:
        row, col = torch.randint(side - size + 1, (2,), generator=host).tolist()
        square[:, row : row + size, col : col + size] = True
    return found


def _coarse(x: Tensor, pixels: int) -> Tensor:
    """Images with their border on a grid whose cells are `pixels` wide: `(B, 1, 28, 28)` to `(B, 1, side, side)`."""
    return F.avg_pool2d(F.pad(x, (BORDER, BORDER, BORDER, BORDER)), pixels)


def _overflow(state: Tensor) -> Tensor:
    """The penalty on channels that are too large: `(B, C, H, W)` -> `(B,)`."""
    return PENALTY * (state.abs() - LARGEST).relu().mean(dim=(1, 2, 3))


def _column(flags: Tensor) -> Tensor:
    return flags[:, None, None, None]  # (B,) -> (B, 1, 1, 1)
