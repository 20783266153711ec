"""Damage to a grown image and what its cells make of it: steps after the growth, holes, and how far an image is off.

After its growth the grid of any VNCA can go on taking steps. The regrowing and the persistent one are trained to stay
and to heal; the doubling one is not. The functions here treat both alike, so that the two can be compared.

>>> import vnca
>>> decoder = vnca.RegrowingDecoder(channels=4, hidden=4, min_steps=1, max_steps=1)
>>> state = grown(decoder, torch.ones(2, 4))
>>> corners = random_corners(2, hole_size(0.25), torch.Generator().manual_seed(0))
>>> damaged, hole = damage_each(state, corners, hole_size(0.25))
>>> hole.sum(dim=(1, 2, 3))
tensor([256, 256])
>>> *_, last = go_on(decoder, damaged, 3)
>>> difference(image(last), image(state)).shape
torch.Size([2, 1, 28, 28])
"""

import math
from collections import deque
from collections.abc import Iterator

import torch
from torch import Generator, Tensor, nn

from vnca import cells
from vnca.decoders import GRID_SIZE, crop
from vnca.vae import at_least_float32, bernoulli_log_likelihood


def grown(decoder: nn.Module, z: Tensor) -> Tensor:
    """The cell state `(B, C, 32, 32)` at the end of the growth from latents `(B, D)`.

    Raises:
        ValueError: if the decoder has no cells, or the latents have another shape.
    """
    _require_cells(decoder)
    return deque(decoder.grow(z), maxlen=1).pop()


def go_on(decoder: nn.Module, state: Tensor, steps: int) -> Iterator[Tensor]:
    """Yield the cell state itself, then the state after each of `steps` further steps.

    Args:
        decoder: a `DoublingDecoder` or a `RegrowingDecoder`.
        state: cell state `(B, C, H, W)`.
        steps: how many steps to take.

    Raises:
        ValueError: at once, if the decoder has no cells, the state does not fit it, or `steps` is negative.
    """
    _require_cells(decoder)
    decoder.require_steps(state, steps)

    def states() -> Iterator[Tensor]:
        current = state
        yield current
        for _ in range(steps):
            current = decoder.step(current)
            yield current

    return states()


def _require_cells(decoder: nn.Module) -> None:
    if not hasattr(decoder, "step"):
        raise ValueError(f"a {type(decoder).__name__} has no cells that could take a step: take a VNCA")


def image(state: Tensor) -> Tensor:
    """The logits `(B, 1, 28, 28)` of a grown cell state `(B, C, 32, 32)`: channel 0 without the border.

    Raises:
        ValueError: if the grid has another size.
    """
    cells.require_state(state)
    if state.shape[2:] != (GRID_SIZE, GRID_SIZE):
        raise ValueError(f"an image is read from {GRID_SIZE} x {GRID_SIZE} cells, not from {tuple(state.shape)}")
    return at_least_float32(crop(state[:, :1]))


def hole_size(share: float) -> int:
    """The side, in cells, of the square that comes closest to a share of the 32 × 32 cells.

    Raises:
        ValueError: if the share does not lie in [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share of the cells lies between 0 and 1, not {share}")
    return round(GRID_SIZE * math.sqrt(share))


def random_corners(n: int, size: int, generator: Generator) -> Tensor:
    """Upper left cells `(n, 2)`, row and column, of squares of `size` cells that lie wholly on the 32 × 32 grid.

    Raises:
        ValueError: if such a square does not fit on the grid, or `n` is negative.
    """
    if n < 0 or not 0 < size <= GRID_SIZE:
        raise ValueError(f"n is at least 0 and size from 1 to {GRID_SIZE}, not {n} and {size}")
    return torch.randint(GRID_SIZE - size + 1, (n, 2), generator=generator, device=generator.device)


def damage_each(state: Tensor, corners: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Damage a square of cells in each grid, at a place of its own.

    Args:
        state: cell state `(B, C, H, W)`.
        corners: row and column of each square's upper left cell, `(B, 2)`.
        size: side of the squares, in cells.

    Returns:
        The damaged state, and the holes `(B, 1, H, W)` bool, True where cells were set to zero.

    Raises:
        ValueError: if there is not one corner for each grid, or as `cells.damage` does.
    """
    cells.require_state(state)
    if corners.shape != (len(state), 2):
        raise ValueError(f"{len(state)} grids need corners ({len(state)}, 2), not {tuple(corners.shape)}")
    damaged = state.clone()
    hole = torch.zeros_like(state[:, :1], dtype=torch.bool)  # (B, 1, H, W)
    whole = torch.ones_like(state[:1, :1])
    for i, (row, col) in enumerate(corners.tolist()):
        damaged[i : i + 1] = cells.damage(state[i : i + 1], row, col, size)
        hole[i : i + 1] = cells.damage(whole, row, col, size) == 0
    return damaged, hole


def difference(logits: Tensor, undamaged: Tensor) -> Tensor:
    """How far each pixel's probability is from that of the undamaged image: 2 × `(B, 1, H, W)` logits -> the same."""
    return (logits.sigmoid() - undamaged.sigmoid()).abs()


def flips(logits: Tensor, undamaged: Tensor) -> Tensor:
    """Which pixels changed sides, their probability now above one half or no more: 2 × `(B, 1, H, W)` -> bool."""
    return (logits > 0) != (undamaged > 0)


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """The mean of each image's pixels where `where` is True, NaN where it nowhere is: 2 × `(B, 1, H, W)` -> `(B,)`."""
    where = where.to(at_least_float32(values).dtype)
    return (values * where).flatten(1).sum(dim=1) / where.flatten(1).sum(dim=1)


def bits_per_pixel(logits: Tensor, x: Tensor) -> Tensor:
    """The code length of an observed image under the Bernoulli pixels of a state, `(B,)` bits per pixel.

    It is −log2 p(x | z) over the number of pixels. The bits for the latent, the KL term, are not in it: they are the
    same after any number of steps.

    Args:
        logits: `(B, 1, H, W)`.
        x: the images `(B, 1, H, W)` in [0, 1].
    """
    nats = -bernoulli_log_likelihood(logits, x)  # (B,)
    return nats / (math.log(2) * x[0].numel())
