"""The growing automaton: one learned update that grows a picture from a single cell, keeps it and repairs it.

This is the model of Mordvintsev et al., "Growing Neural Cellular Automata", Distill 2020, as chapter 2 teaches it.
Channels 0 to 3 of a cell are its red, green, blue and opacity; the colors are premultiplied by the opacity. The
other channels are hidden.

>>> automaton = GrowingAutomaton(channels=16, hidden=96)
>>> state = single_cell(batch=1, channels=16, size=22)
>>> automaton(state).shape
torch.Size([1, 16, 22, 22])
"""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from vnca import pretrained
from vnca.cells import require_state

FOLDER = pretrained.FOLDER / "automata"
"""Trained automata that come with the package, each a folder with `config.json` and `model.safetensors`."""

ALPHA = 3
"""The channel of opacity."""

NUMBER = 4
"""The channel in which a seed can carry a number: the first of the hidden ones."""

LIVING = 0.1
"""A cell lives if its opacity, or that of a neighbor, is above this (Mordvintsev et al., "living cells")."""


def perceive(state: Tensor) -> Tensor:
    """What each cell sees: its own state and the two Sobel gradients of its neighborhood, channel by channel.

    The filters are fixed. Beyond the border the state counts as zero.

    Args:
        state: cell state `(B, C, H, W)`.

    Returns:
        `(B, 3C, H, W)`: for each channel in turn its value, its change along x (to the right) and along y (down).

    Raises:
        ValueError: if `state` is not four-dimensional.
    """
    require_state(state)
    channels = state.shape[1]
    itself = state.new_tensor([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    sobel = state.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    filters = torch.stack([itself, sobel, sobel.T]).repeat(channels, 1, 1)[:, None]  # (3C, 1, 3, 3)
    return F.conv2d(state, filters, padding=1, groups=channels)  # (B, 3C, H, W)


def living(state: Tensor) -> Tensor:
    """Which cells live, `(B, 1, H, W)` bool: those with an opacity above 0.1 in their 3 × 3 neighborhood."""
    require_state(state)
    return F.max_pool2d(state[:, ALPHA : ALPHA + 1], kernel_size=3, stride=1, padding=1) > LIVING


def single_cell(batch: int, channels: int, size: int) -> Tensor:
    """The seed: one opaque black cell in the middle of an empty grid, its hidden channels at 1.

    Args:
        batch: number of grids `B`.
        channels: channels `C` of a cell, at least 4.
        size: side of the grid, in cells.

    Returns:
        Cell state `(B, C, size, size)`.

    Raises:
        ValueError: if there are fewer than 4 channels.
    """
    if channels <= ALPHA:
        raise ValueError(f"a growing cell needs at least 4 channels (red, green, blue, opacity), not {channels}")
    state = torch.zeros(batch, channels, size, size)
    state[:, ALPHA:, size // 2, size // 2] = 1
    return state


def seed_with(z: Tensor, channels: int = 16, size: int = 22) -> Tensor:
    """Seeds that carry a number each, in the first hidden channel; with 1 it is the seed of `single_cell`.

    Args:
        z: the numbers `(B,)`.
        channels: channels `C` of a cell, at least 5.
        size: side of the grid, in cells.

    Returns:
        Cell state `(B, C, size, size)`.

    Raises:
        ValueError: if `z` has another shape or there are fewer than 5 channels.
    """
    if z.ndim != 1:
        raise ValueError(f"one number for each seed has the shape (B,), not {tuple(z.shape)}")
    if channels <= NUMBER:
        raise ValueError(f"a seed with a number needs at least {NUMBER + 1} channels, not {channels}")
    state = single_cell(len(z), channels, size)
    state[:, NUMBER, size // 2, size // 2] = z
    return state


class GrowingAutomaton(nn.Module):
    """The update of Mordvintsev et al. 2020, applied to a random part of the cells; dead cells stay empty.

    Args:
        channels: channels `C` of a cell, at least 4.
        hidden: width of the hidden layer. With 16 channels, 96 gives the 6,240 parameters of chapter 2, and 128 the
            article's 8,320.
        fire_rate: the probability with which a cell takes part in a step.

    Raises:
        ValueError: if `channels` is below 4, `hidden` below 1 or `fire_rate` outside (0, 1].
    """

    def __init__(self, channels: int = 16, hidden: int = 96, fire_rate: float = 0.5):
        super().__init__()
        if channels <= ALPHA or hidden < 1 or not 0 < fire_rate <= 1:
            raise ValueError(
                "a growing automaton needs channels >= 4, hidden >= 1 and 0 < fire_rate <= 1, "
                f"not {channels}, {hidden} and {fire_rate}"
            )
        self.fire_rate = fire_rate
        self.think = nn.Conv2d(3 * channels, hidden, 1)
        self.change = nn.Conv2d(hidden, channels, 1, bias=False)
        nn.init.zeros_(self.change.weight)  # an untrained cell does not change

    def update(self, state: Tensor) -> Tensor:
        """The change that each cell would make if it fired: `(B, C, H, W)` -> `(B, C, H, W)`."""
        return self.change(F.relu(self.think(perceive(state))))

    def forward(self, state: Tensor, generator: Generator | None = None) -> Tensor:
        """One step: `(B, C, H, W)` -> `(B, C, H, W)`. The generator decides which cells fire."""
        chance = torch.rand(state[:, :1].shape, generator=generator, device=state.device)  # (B, 1, H, W)
        after = state + self.update(state) * (chance < self.fire_rate)
        return after * (living(state) & living(after))


def load(name: str = "toadstool", folder: Path = FOLDER) -> GrowingAutomaton:
    """A trained automaton, in eval mode; `scripts/train_toadstool.py` trained those that come with the package.

    `"toadstool"` grows from `single_cell`. `"two-toadstools"` and `"turned-toadstools"` grow from `seed_with`, the one
    for the numbers 1 and -1, the other one for all from 1 to -1.

    Raises:
        ValueError: if there is no such automaton (the message lists those there are), or its files are damaged.

    >>> automaton = load("toadstool")
    >>> automaton.fire_rate
    0.5
    """
    path = folder / name
    names = sorted(found.parent.name for found in folder.glob("*/model.safetensors"))
    if name not in names:
        raise ValueError(f"no automaton named {name!r}: there are {', '.join(names) or 'none yet'}")
    config = pretrained.read_config(path)["model"]
    try:
        automaton = GrowingAutomaton(**config)
        automaton.load_state_dict(load_file(path / "model.safetensors"))
    except (OSError, TypeError, ValueError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the weights in {path} cannot be read, train or copy them again: {reason}") from None
    return automaton.eval()


class Pool(nn.Module):
    """States from earlier in training, each known by its index; what else belongs to a state goes by the same index.

    The states are a buffer: they move with a model that has the pool, and are saved with it.

    Args:
        states: the first states `(N, C, H, W)`; they are copied.

    >>> pool = Pool(single_cell(batch=64, channels=16, size=22))
    >>> index, states = pool.sample(8)
    >>> pool.commit(index, 2 * states)
    """

    def __init__(self, states: Tensor):
        super().__init__()
        require_state(states)
        self.register_buffer("states", states.detach().clone())  # (N, C, H, W)

    def __len__(self) -> int:
        return len(self.states)

    def sample(self, size: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw `size` different entries at random: their indices `(size,)` and copies of their states.

        Raises:
            ValueError: if the pool holds fewer than `size` states.
        """
        if size > len(self):
            raise ValueError(f"a pool of {len(self)} states cannot give {size} different ones")
        index = torch.randperm(len(self), generator=generator, device=self.states.device)[:size]
        return index, self.states[index]

    def commit(self, index: Tensor, states: Tensor) -> None:
        """Put states `(size, C, H, W)` in the places `index`, in the pool's precision, cut off from their graph.

        Raises:
            ValueError: if there is not one index for each state.
        """
        if len(index) != len(states):
            raise ValueError(f"{len(states)} states need as many indices, not {len(index)}")
        self.states[index] = states.detach().to(self.states.dtype)


def toadstool(size: int = 16, padding: int = 3, z: float = 1.0) -> Tensor:
    """The targets of chapter 2, drawn from discs and bands: red cap, white spots, pale stem, a patch of grass.

    With another `z` than 1 it is turned clockwise by `90 (1 - z)` degrees, and the shares of red and blue go over into
    each other: at `z = -1` it is upside down, and the cap is blue.

    Args:
        size: side of the upright drawing, in pixels.
        padding: empty pixels added on each side. What a turned drawing needs beyond them is cut off.
        z: the number of the picture, in [-1, 1].

    Returns:
        Premultiplied red, green, blue and opacity, `(4, size + 2 padding, size + 2 padding)` in [0, 1].

    Raises:
        ValueError: if `z` lies outside [-1, 1].
    """
    if not -1 <= z <= 1:
        raise ValueError(f"the toadstools have numbers from -1 to 1, not {z}")
    samples = 8  # along each side of a pixel, for smooth edges
    side = size + 2 * padding
    down, right = (np.mgrid[: side * samples, : side * samples] + 0.5) / (size * samples) - (0.5 + padding / size)
    cos, sin = np.cos(np.pi / 2 * (1 - z)), np.sin(np.pi / 2 * (1 - z))
    x, y = 0.5 + cos * right + sin * down, 0.5 - sin * right + cos * down  # 0 to 1 across the upright drawing
    canvas = np.zeros((*x.shape, 4), dtype=np.float32)
    blue = (1 - z) / 2  # the share of the colors with red and blue swapped

    def disc(center_x: float, center_y: float, radius_x: float, radius_y: float) -> np.ndarray:
        return ((x - center_x) / radius_x) ** 2 + ((y - center_y) / radius_y) ** 2 < 1

    stem = (abs(x - 0.5) < 0.13 + 0.09 * np.clip((y - 0.5) / 0.45, 0, 1) ** 2) & (y > 0.45) & (y < 0.93)
    cap = disc(0.5, 0.52, 0.47, 0.47) & (y < 0.56)
    spots = disc(0.5, 0.22, 0.11, 0.09) | disc(0.25, 0.38, 0.08, 0.09) | disc(0.76, 0.37, 0.09, 0.09)
    layers = [
        (stem, (0.96, 0.88, 0.72)),
        (stem & (x > 0.53), (0.86, 0.72, 0.52)),  # its shaded side
        (cap, (0.84, 0.13, 0.16)),
        (cap & (y > 0.49), (0.62, 0.06, 0.13)),  # its shaded rim
        (cap & spots, (1.0, 0.97, 0.92)),
        (disc(0.5, 0.97, 0.42, 0.09) & (y < 0.99), (0.25, 0.55, 0.22)),
    ]
    for where, (red, green, azure) in layers:
        canvas[where] = (red + (azure - red) * blue, green, azure + (red - azure) * blue, 1)
    # Samples outside the drawing are zero in all four channels, so the mean comes out premultiplied.
    pixels = canvas.reshape(side, samples, side, samples, 4).mean(axis=(1, 3))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # (4, H, W)
