"""Local regrowth: erase cells of a grown grid, plant others there, and let the neighbors grow into the region."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vnca import cells
from vnca.decoders import BORDER, IMAGE_SIZE, CellDecoder, DoublingDecoder, RegrowingDecoder


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
        reseed: what is planted there: latents `(B, D)`, copied to every erased cell; a cell state `(B, C, H, W)`, such
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
        state = torch.where(region, _planted(decoder, reseed, state), state)
        yield state
    for event in ["step"] * steps + _rest(decoder, state.shape[-1]):
        state = cells.double(state) if event == "double" else decoder.step(state)
        yield state


def _rest(decoder: DoublingDecoder | RegrowingDecoder, size: int) -> list[str]:
    """What growth does after the stage in which the grid has `size × size` cells."""
    if isinstance(decoder, RegrowingDecoder):
        return []
    return [event for event, side in decoder.schedule() if side > size]


def _planted(decoder: CellDecoder, reseed: Tensor, state: Tensor) -> Tensor:
    if reseed.shape == state.shape:
        return reseed
    latent = (len(state), decoder.latent_size)
    if reseed.shape == latent:
        return decoder.seed(reseed, 1)  # (B, D) -> (B, C, 1, 1), for every cell
    raise ValueError(
        f"what is planted is a latent {latent} or a cell state {tuple(state.shape)}, not {tuple(reseed.shape)}"
    )


def _require_edit(decoder: DoublingDecoder | RegrowingDecoder, state: Tensor, region: Tensor, steps: int) -> None:
    if not isinstance(decoder, DoublingDecoder | RegrowingDecoder):
        raise ValueError(f"a {type(decoder).__name__} has no cells that could grow again")
    decoder.require_steps(state, steps)
    batch, _, *grid = state.shape
    sizes = sorted({size for _, size in decoder.schedule()})
    if isinstance(decoder, DoublingDecoder) and (grid[0] != grid[1] or grid[0] not in sizes):
        raise ValueError(f"the stages of this decoder have grids of {sizes} cells squared, not {grid[0]} x {grid[1]}")
    _require_region(region)
    if region.shape not in {(batch, 1, *grid), (1, 1, *grid)}:
        raise ValueError(f"the region has the shape {(batch, 1, *grid)}, not {tuple(region.shape)}")


def _require_region(region: Tensor) -> Tensor:
    if region.dtype != torch.bool or region.ndim != 4 or region.shape[1] != 1:
        raise ValueError(f"a region is bool (B, 1, H, W), not {region.dtype} {tuple(region.shape)}")
    return region
