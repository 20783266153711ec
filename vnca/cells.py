"""What a grid of cells is: its seed, its updates, its doubling, its damage.

A cell state is a tensor `(B, C, H, W)`: `B` grids of `H × W` cells with `C` channels each. Channel 0 is the logit of
the cell's pixel; the other channels are hidden. Everything here follows Palm et al., "Variational Neural Cellular
Automata", ICLR 2022.

States start with the channels of a cell side by side in memory (`torch.channels_last`), and every step and doubling
keeps them so: convolutions then need no copies.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vnca.checks import whole


def require_state(state: Tensor) -> None:
    """Raise `ValueError` unless `state` is a tensor of the shape `(B, C, H, W)`."""
    if not isinstance(state, Tensor):
        raise ValueError(f"a cell state is a torch.Tensor (B, C, H, W), not a {type(state).__name__}")
    if state.ndim != 4:
        raise ValueError(f"a cell state has the shape (B, C, H, W), but this one is {tuple(state.shape)}")


def seed(z: Tensor, size: int = 2) -> Tensor:
    """The first grid: every one of its `size × size` cells starts as a copy of the latent.

    Args:
        z: latents `(B, D)`.
        size: side of the grid, in cells.

    Returns:
        Cell state `(B, D, size, size)`.

    Raises:
        ValueError: if `z` is not two-dimensional or `size` is below 1.
    """
    if z.ndim != 2:
        raise ValueError(f"latents have the shape (B, D), but these are {tuple(z.shape)}")
    if size < 1:
        raise ValueError(f"a seed needs a size of at least 1 cell, not {size}")
    grid = z[:, :, None, None].expand(-1, -1, size, size)  # (B, D, size, size)
    return grid.contiguous(memory_format=torch.channels_last)


class Residual(nn.Module):
    """Two pointwise layers whose result is added to their input: `x + W2 elu(W1 x)`, in each cell by itself."""

    def __init__(self, hidden: int):
        super().__init__()
        elu = nn.ELU(inplace=True)  # its gradient needs the result alone, so nothing else is kept
        self.layers = nn.Sequential(nn.Conv2d(hidden, hidden, 1), elu, nn.Conv2d(hidden, hidden, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # (B, hidden, H, W)


class Update(nn.Module):
    """The update of the doubling VNCA: from each cell's 3 × 3 neighborhood to the change of its state.

    A 3 × 3 convolution looks at the neighborhood, residual blocks think it over in each cell, and a last pointwise
    layer writes the change. That layer starts at zero: an untrained cell does not change.

    Args:
        channels: channels `C` of a cell.
        hidden: channels inside the update.
        residual_blocks: how many residual blocks.

    Raises:
        ValueError: if `channels` or `hidden` is below 1, `residual_blocks` is negative, or one is no whole number.
    """

    def __init__(self, channels: int, hidden: int, residual_blocks: int = 4):
        super().__init__()
        channels, hidden, residual_blocks = whole(channels=channels, hidden=hidden, residual_blocks=residual_blocks)
        if channels < 1 or hidden < 1 or residual_blocks < 0:
            raise ValueError(
                "an update needs channels >= 1, hidden >= 1 and residual_blocks >= 0, "
                f"not {channels}, {hidden} and {residual_blocks}"
            )
        change = nn.Conv2d(hidden, channels, 1)
        nn.init.zeros_(change.weight)
        nn.init.zeros_(change.bias)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1),
            *[Residual(hidden) for _ in range(residual_blocks)],
            change,
        )

    def forward(self, state: Tensor) -> Tensor:
        return self.layers(state)  # (B, C, H, W) -> (B, C, H, W)


class SimpleUpdate(nn.Module):
    """The update of the regrowing VNCA: one look at the 3 × 3 neighborhood, one pointwise layer for the change.

    The last layer starts at zero and has no bias (Palm et al., the non-doubling variant): an untrained cell does not
    change.

    Args:
        channels: channels `C` of a cell.
        hidden: channels inside the update.

    Raises:
        ValueError: if `channels` or `hidden` is below 1 or no whole number.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        channels, hidden = whole(channels=channels, hidden=hidden)
        if channels < 1 or hidden < 1:
            raise ValueError(f"an update needs channels >= 1 and hidden >= 1, not {channels} and {hidden}")
        change = nn.Conv2d(hidden, channels, 1, bias=False)
        nn.init.zeros_(change.weight)
        self.layers = nn.Sequential(nn.Conv2d(channels, hidden, 3, padding=1), nn.ELU(inplace=True), change)

    def forward(self, state: Tensor) -> Tensor:
        return self.layers(state)  # (B, C, H, W) -> (B, C, H, W)


class MaturingUpdate(nn.Module):
    """The update of cells that keep a copy of the latent and grow up. It is not in the paper.

    The last channels of a cell are its **genome**: read, never written, and taken from the neighbors by a cell that
    has lost it (`inherit`). Channel 1 is its **age**, from 0 to 1. It rises at every step, and is 1 after as many
    steps as news needs to cross the grid. All other channels change as `SimpleUpdate` changes them, but the less the
    older the cell is: the change is multiplied by one minus the age. So a mature cell stays as it is. Damage sets the
    age to zero: the cells of a hole are young.

    Args:
        channels: channels `C` of a cell.
        hidden: channels inside the update.
        genome: how many channels, the last ones, are the genome.

    Raises:
        ValueError: if `hidden` or `genome` is below 1, an argument is no whole number, or genome, age and pixel do not
            fit into the channels.
    """

    def __init__(self, channels: int, hidden: int, genome: int):
        super().__init__()
        channels, hidden, genome = whole(channels=channels, hidden=hidden, genome=genome)
        if hidden < 1 or genome < 1:
            raise ValueError(f"a maturing update needs hidden >= 1 and genome >= 1, not {hidden} and {genome}")
        if genome + 2 > channels:
            raise ValueError(
                f"a cell with a genome of {genome} needs at least {genome + 2} channels, with the pixel and its age, "
                f"not {channels}"
            )
        self.genome = genome
        change = nn.Conv2d(hidden, channels - genome - 1, 1, bias=False)
        nn.init.zeros_(change.weight)
        self.layers = nn.Sequential(nn.Conv2d(channels, hidden, 3, padding=1), nn.ELU(inplace=True), change)

    def forward(self, state: Tensor) -> Tensor:
        age, genome = state[:, 1:2], state[:, -self.genome :]  # (B, 1, H, W), (B, G, H, W)
        change = self.layers(state) * (1 - age)  # (B, C - G - 1, H, W)
        return torch.cat([change[:, :1], aging(age), change[:, 1:], inherit(genome)], dim=1)  # (B, C, H, W)


def aging(age: Tensor) -> Tensor:
    """By how much cells get older in a step: from 0 to 1 in as many steps as news needs to cross the grid.

    Args:
        age: of all cells, `(B, 1, H, W)` in [0, 1].

    Returns:
        The change `(B, 1, H, W)`.
    """
    return (1 - age).clamp(max=1 / max(age.shape[2:]))


@torch.no_grad()
def inherit(genome: Tensor) -> Tensor:
    """The change of a genome: a cell that has lost it takes the mean of its neighbors', all others keep theirs.

    So a genome never changes in a whole grid, and closes a hole from its rim, one cell a step. No gradient passes
    through the change: only cells with damage inherit, and no encoder waits for a gradient at the end of their past.

    Args:
        genome: channels of all cells `(B, G, H, W)`; a cell has none where all are zero.

    Returns:
        The change `(B, G, H, W)`.
    """
    alive = (genome != 0).any(dim=1, keepdim=True)  # (B, 1, H, W)
    # Sums over the neighborhood, both divided by nine. Beyond the border nobody lives.
    total, count = (F.avg_pool2d(t, 3, stride=1, padding=1) for t in (genome, alive.to(genome.dtype)))
    return torch.where(alive, 0, total / count.clamp(min=1 / 9))


def plant(state: Tensor, z: Tensor) -> Tensor:
    """The state with another genome in every cell that has one; those that have lost theirs stay without.

    Args:
        state: cell state `(B, C, H, W)`, the last `D` channels of which are the genome.
        z: latents `(B, D)`, what these channels get.

    Returns:
        `(B, C, H, W)`.

    Raises:
        ValueError: if a shape does not fit.
    """
    require_state(state)
    if z.ndim != 2 or len(z) != len(state) or z.shape[1] > state.shape[1]:
        raise ValueError(f"a genome for states {tuple(state.shape)} is a latent (B, D), not {tuple(z.shape)}")
    others, genome = state.split([state.shape[1] - z.shape[1], z.shape[1]], dim=1)
    alive = (genome != 0).any(dim=1, keepdim=True)  # (B, 1, H, W)
    return torch.cat([others, torch.where(alive, z[:, :, None, None].to(state.dtype), genome)], dim=1)


def double(state: Tensor) -> Tensor:
    """Each cell divides into a 2 × 2 block of exact copies: `(B, C, H, W)` -> `(B, C, 2H, 2W)`."""
    require_state(state)
    return F.interpolate(state, scale_factor=2, mode="nearest")


def damage(state: Tensor, row: int, col: int, size: int) -> Tensor:
    """A copy of the state with a square of cells set to zero, in every channel.

    Args:
        state: cell state `(B, C, H, W)`.
        row, col: the square's upper left cell, `0 <= row < H` and `0 <= col < W`.
        size: side of the square, in cells; what reaches past the border is cut off, and 0 changes nothing.

    Raises:
        ValueError: if the state is not four-dimensional, the corner lies outside the grid or `size` is negative.
    """
    require_state(state)
    height, width = state.shape[-2:]
    if not (0 <= row < height and 0 <= col < width):
        raise ValueError(
            f"damage starts at cell ({row}, {col}), outside the {height} x {width} grid: "
            f"rows go from 0 to {height - 1}, columns from 0 to {width - 1}"
        )
    if size < 0:
        raise ValueError(f"the size of a damage is at least 0 cells, not {size}")
    damaged = state.clone()
    damaged[:, :, row : row + size, col : col + size] = 0
    return damaged
