"""Schematic diagrams of the book: what feeds what, drawn with boxes, grids and arrows.

Three colors mean the same everywhere: blue is learned, green is left to chance, and vermilion is what the loss sees.
A returned figure is shown where it is the last line of a cell, or by ``display(figure)``. Its look does not depend on
`plotting.use_style`.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path

from vnca.growing import toadstool
from vnca.pictures import Picture, in_color, to_pixels
from vnca.plotting import COLORS

__all__ = ["autoencoder", "bound", "cell_step", "growth", "pool", "three_lives"]

LEARNED, CHANCE, LOSS = COLORS[0], COLORS[2], COLORS[1]
INK, FAINT = "#333333", "#6E6E6E"
# Lengths are in inches. A phone shows the figures at half their size, so the type is large.
WIDTH, SIZE, SMALL = 7.0, 13.0, 12.0
SIDES = (2, 4, 8, 16, 32)  # of the grids of a doubling decoder
# White on black, as the images of the book are.
THREE = (
    "..........",
    "..######..",
    ".##....##.",
    ".......##.",
    "...####...",
    ".......##.",
    ".......##.",
    ".##....##.",
    "..######..",
    "..........",
)

Point = tuple[float, float]


class Box(NamedTuple):
    """A rectangle by its middle and its size, with the points at which arrows begin and end."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> Point:
        return self.x - self.width / 2, self.y

    @property
    def right(self) -> Point:
        return self.x + self.width / 2, self.y

    @property
    def top(self) -> Point:
        return self.x, self.y + self.height / 2

    @property
    def bottom(self) -> Point:
        return self.x, self.y - self.height / 2


def autoencoder() -> Figure:
    """The variational autoencoder: from an image to a latent and back, and where the two terms of the ELBO stand.

    The upper row runs from the image to mean and scale of the latent, the lower row back from the latent to the
    probabilities of the pixels. The noise comes from outside.
    """
    axes = _canvas(4.05)
    upper, middle, lower = 3.13, 2.02, 0.93
    image = np.array([[pixel == "#" for pixel in row] for row in THREE], dtype=float)
    x = _grid(axes, Box(0.8, upper, 1.0, 1.0), 10, image)
    guess = _grid(axes, Box(0.8, lower, 1.0, 1.0), 10, _blurred(image))
    encoder = _box(axes, Box(2.95, upper, 1.4, 0.85), "encoder\nweights $\\phi$", LEARNED)
    decoder = _box(axes, Box(2.95, lower, 1.4, 0.85), "decoder\nweights $\\theta$", LEARNED)
    q = _box(axes, Box(4.95, upper, 1.5, 0.85), "mean $\\mu$\nscale $\\sigma$")
    z = _box(axes, Box(4.95, lower, 1.5, 0.85), "$z = \\mu + \\sigma\\,\\epsilon$")
    noise = _box(axes, Box(6.27, middle, 1.25, 0.75), "noise $\\epsilon$\n$\\mathcal{N}(0, I)$", CHANCE)
    fit = _box(axes, Box(1.15, middle, 2.0, 0.5), "$\\mathbb{E}_q[\\log p(x\\,|\\,z)]$", LOSS)
    cost = _box(axes, Box(3.62, middle, 2.1, 0.5), "$\\mathrm{KL}(q(z\\,|\\,x)\\,\\|\\,p(z))$", LOSS)
    _text(axes, x.x, 3.83, "image $x$")
    _text(axes, q.x, 3.83, "$q(z\\,|\\,x)$")
    _text(axes, guess.x, 0.23, "probabilities")
    _text(axes, 1.8, lower + 0.17, "logits")
    _arrow(axes, x.right, encoder.left)
    _arrow(axes, encoder.right, q.left)
    _arrow(axes, q.bottom, z.top)
    _arrow(axes, noise.bottom, (noise.x, lower), z.right, color=CHANCE)
    _arrow(axes, z.left, decoder.right)
    _arrow(axes, decoder.left, guess.right)
    _arrow(axes, x.bottom, (x.x, fit.top[1]), color=LOSS, head=False)
    _arrow(axes, (x.x, fit.bottom[1]), guess.top, color=LOSS, head=False)
    _arrow(axes, (4.4, q.bottom[1]), (4.4, cost.top[1]), color=LOSS, head=False)
    return _finished(axes)


def bound() -> Figure:
    """The ELBO and the marginal likelihood on one axis of nats that goes down from zero; not to scale.

    The left bar goes down by the expected log-likelihood and further by the KL divergence to the prior, and ends at
    the ELBO. The right bar ends at log p(x). What is missing to the level of the ELBO is the gap.
    """
    axes = _canvas(3.75)
    zero, fit, evidence, elbo = 3.25, 1.6, 1.25, 0.35
    left, right = 3.0, 4.2
    _bar(axes, left, zero, fit, facecolor=_tint(LOSS))
    _bar(axes, left, fit, elbo, facecolor=_tint(LOSS, 0.6))
    _bar(axes, right, zero, evidence, facecolor="#E3E3E3")
    _bar(axes, right, evidence, elbo, fill=False, hatch="///", linestyle="--")
    axes.plot([1.0, WIDTH - 0.15], [zero, zero], color=INK, linewidth=1.4)
    axes.plot([left, right], [elbo, elbo], color=INK, linewidth=1, linestyle="--", zorder=0)
    _text(axes, 0.9, zero, "0 nats", ha="right")
    _text(axes, left, zero + 0.25, "$\\mathrm{ELBO}(x)$")
    _text(axes, right, zero + 0.25, "$\\log p(x)$")
    _text(axes, 2.5, 2.57, "$\\mathbb{E}_q[\\log p(x\\,|\\,z)]$", ha="right")
    _text(axes, 2.5, 2.27, "how well $z$ explains $x$", ha="right")
    _text(axes, 2.5, 1.12, "$-\\,\\mathrm{KL}(q(z\\,|\\,x)\\,\\|\\,p(z))$", ha="right")
    _text(axes, 2.5, 0.82, "what $z$ costs", ha="right")
    _text(axes, 4.7, 0.95, "$\\mathrm{KL}(q(z\\,|\\,x)\\,\\|\\,p(z\\,|\\,x))$", ha="left")
    _text(axes, 4.7, 0.65, "how wrong the guess is", ha="left")
    _text(axes, WIDTH - 0.15, 2.97, "not to scale", ha="right", size=SMALL, color=FAINT)
    return _finished(axes)


def cell_step() -> Figure:
    """One step of the growing automaton, row by row: a cell perceives, thinks, and fires if chance lets it."""
    axes = _canvas(4.95)
    see, think, act = 3.95, 2.4, 0.95
    _text(axes, 0.35, 4.75, "state: 16 channels", ha="left")
    state = _stack(axes, Box(1.0, see, 1.0, 1.0), marked=3)
    perception = _box(axes, Box(3.7, see, 3.0, 1.25))
    _text(axes, perception.x, 4.75, "perception")
    sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 2
    filters = (("itself", np.diag([0, 1, 0])), ("$S_x$", sobel), ("$S_y$", sobel.T))
    for x, (name, weights) in zip((2.7, 3.7, 4.7), filters, strict=True):
        _grid(axes, Box(x, see + 0.16, 0.6, 0.6), 3, 0.5 + weights / 2)
        _text(axes, x, see - 0.38, name)
    numbers = _box(axes, Box(6.25, see, 1.2, 0.8), "$p$: 48\nnumbers")
    first = _box(axes, Box(6.25, think, 1.2, 0.8), "$W_1,\\; b$\nReLU", LEARNED)
    hidden = _box(axes, Box(4.6, think, 1.2, 0.8), "96\nnumbers")
    second = _box(axes, Box(2.9, think, 1.3, 0.8), "$W_2$, zero\nat first", LEARNED)
    change = _box(axes, Box(1.1, think, 1.4, 0.8), "change $\\Delta$\n16 numbers")
    fires = _box(axes, Box(1.1, act, 1.4, 0.8), "fires with\nchance ½", CHANCE)
    plus = _box(axes, Box(2.4, act, 0.5, 0.5), "+")
    living = _box(axes, Box(4.05, act, 1.8, 0.8), "lives before and\nafter? else zero")
    after = _stack(axes, Box(6.1, act, 1.0, 1.0), marked=1)
    _text(axes, after.x, 0.2, "new state")
    _arrow(axes, state.right, perception.left)
    _arrow(axes, perception.right, numbers.left)
    _arrow(axes, numbers.bottom, first.top)
    _arrow(axes, first.left, hidden.right)
    _arrow(axes, hidden.left, second.right)
    _arrow(axes, second.left, change.right)
    _arrow(axes, change.bottom, fires.top)
    _arrow(axes, fires.right, plus.left)
    _arrow(axes, state.left, (0.2, see), (0.2, 0.2), (plus.x, 0.2), plus.bottom)
    _arrow(axes, plus.right, living.left)
    _arrow(axes, living.right, after.left)
    return _finished(axes)


def pool() -> Figure:
    """One training update with a pool: a batch is drawn and prepared, grows, is judged, and goes back to its places.

    Each square is a state: a seed, a young toadstool, a grown one, one gone astray, or one with a hole.
    """
    axes = _canvas(4.15)
    drawn, ready, grow, grown = 3.45, 2.55, 1.5, 0.45
    home = Box(1.02, 2.0, 1.74, 1.74)
    kept = "old young old seed", "old old astray old", "young old old old", "old seed old young"
    for line, names in enumerate(kept):
        _states(axes, home.left[0] + 0.195, home.top[1] - 0.195 - 0.45 * line, names)
    before = _states(axes, 2.6, drawn, "astray young old old old old old old")
    prepared = _states(axes, 2.6, ready, "seed young old old old hurt hurt hurt")
    after = _states(axes, 2.6, grown, "young old old old old old old old")
    rule = _box(axes, Box(4.175, grow, 3.54, 0.55), "grow 20 to 30 steps", LEARNED)
    error = _box(axes, Box(6.53, grown, 0.74, 0.5), "error", LOSS)
    _text(axes, home.left[0], 3.15, "pool", ha="left")
    _text(axes, 1.7, drawn + 0.18, "draw")
    _text(axes, before[0].left[0], drawn + 0.42, "worst: new seed", ha="left")
    _text(axes, before[-1].right[0], drawn + 0.42, "best: a hole", ha="right")
    _text(axes, rule.right[0] + 0.1, grow + 0.2, "gradient", ha="left")
    _text(axes, 1.7, grown + 0.18, "put back")
    _arrow(axes, home.top, (home.x, drawn), before[0].left, color=CHANCE)
    for one, other in zip(before, prepared, strict=True):
        _arrow(axes, one.bottom, other.top)
    _arrow(axes, (rule.x, prepared[0].bottom[1] - 0.05), rule.top)
    _arrow(axes, rule.bottom, (rule.x, after[0].top[1] + 0.05))
    _arrow(axes, after[-1].right, error.left)
    _arrow(axes, error.top, (error.x, grow), rule.right, color=LEARNED)
    _arrow(axes, after[0].left, (home.x, grown), home.bottom)
    return _finished(axes)


def growth(pictures: Sequence[Picture] | None = None) -> Figure:
    """The doubling decoder: from the latent, through five grids that are ever finer, to the image.

    On each grid the same rule takes s steps; a doubling leads to the next one.

    Args:
        pictures: what the grids show: five tensors ``(1, n, n)`` in [0, 1], n = 2, 4, 8, 16, 32, for instance the
            probabilities of channel 0 at the end of each stage. Without them the grids are empty.

    Raises:
        ValueError: if there are not five pictures of these shapes, or one holds NaN.
    """
    shown = [None] * len(SIDES) if pictures is None else _checked(pictures)
    axes = _canvas(4.7)
    upper, middle, lower = 3.65, 2.35, 1.05
    z = _box(axes, Box(0.5, upper, 0.55, 0.55), "$z$")
    rule = _box(axes, Box(3.9, middle, 4.9, 0.5), "one rule for all steps", LEARNED)
    # From left to right, and back in the lower row.
    places = ((2.1, upper), (4.1, upper), (6.1, upper), (6.1, lower), (4.1, lower))
    grids = [
        _grid(axes, Box(*place, 1.15, 1.15), side, picture)
        for place, side, picture in zip(places, SIDES, shown, strict=True)
    ]
    image = _grid(axes, Box(1.6, lower, 1.0, 1.0), 28, None if pictures is None else shown[-1][2:-2, 2:-2])
    for grid, side in zip(grids, SIDES, strict=True):
        _loop(axes, grid, rule)
        _text(axes, grid.x, grid.y + (0.8 if grid.y == upper else -0.8), f"{side} × {side}")
    _text(axes, image.x, lower - 0.8, "28 × 28")
    _arrow(axes, z.right, grids[0].left)
    _text(axes, 1.15, upper + 0.17, "copies", size=SMALL)
    for one, other in zip(grids[:2], grids[1:3], strict=True):
        _arrow(axes, one.right, other.left)
        _text(axes, (one.x + other.x) / 2, upper + 0.17, "doubling", size=SMALL)
    down = 6.53
    _arrow(axes, (down, grids[2].bottom[1]), (down, grids[3].top[1]))
    _text(axes, down + 0.2, middle, "doubling", size=SMALL, rotation=270)
    _arrow(axes, grids[3].left, grids[4].right)
    _text(axes, 5.1, lower + 0.17, "doubling", size=SMALL)
    _arrow(axes, grids[4].left, image.right)
    _text(axes, 2.8, lower + 0.17, "channel 0", size=SMALL)
    _text(axes, 2.8, lower - 0.17, "cropped", size=SMALL)
    return _finished(axes)


def three_lives() -> Figure:
    """The lives of three decoders along an axis of steps, not to scale.

    The doubling VNCA is judged once, after its last step. The regrowing one begins on the full grid, is judged over a
    range of steps, and lives on from a pool, at times with a wound. The third doubles first and then lives like that.
    """
    axes = _canvas(4.9)
    first, second, third = 4.0, 2.5, 1.0
    for y, name in ((first, "doubling VNCA"), (second, "regrowing VNCA"), (third, "doubling VNCA, trained to stay")):
        _text(axes, 0.25, y + 0.52, name, ha="left", weight="bold")

    end = _doublings(axes, (0.25, first), 0.42)
    end = _judged(axes, end, 0.7, 1)
    _text(axes, end[0], first - 0.42, "judged once")
    _arrow(axes, end, (6.75, first), color=FAINT, head=False)
    _text(axes, 6.75, first - 0.42, "falls apart", ha="right")

    end = _grid(axes, Box(0.46, second, 0.42, 0.42), 32).right
    end = _judged(axes, end, 1.05, 4)
    _text(axes, end[0] - 0.25, second - 0.42, "judged")
    end = _kept(axes, end)
    _text(axes, end[0] - 0.21, second - 0.42, "pool")
    end = _judged(axes, end, 1.05, 4)
    end = _wounded(axes, _kept(axes, end))
    _text(axes, end[0] - 0.21, second - 0.42, "wound")
    end = _judged(axes, end, 1.05, 4)
    _arrow(axes, end, (6.75, second), head=False)

    end = grown = _doublings(axes, (0.25, third), 0.2)
    end = _judged(axes, end, 0.9, 4)
    end = _wounded(axes, _kept(axes, end))
    end = _judged(axes, end, 0.9, 4)
    _arrow(axes, end, (6.75, third), head=False)
    low = third - 0.52
    axes.fill([grown[0], 6.75, 6.75], [low, low, low + 0.22], color="#BBBBBB", linewidth=0)
    _text(axes, grown[0] - 0.1, third - 0.45, "age", ha="right")

    _text(axes, 0.25, 0.24, "steps", ha="left")
    _arrow(axes, (0.85, 0.24), (6.75, 0.24), color=FAINT)
    return _finished(axes)


def _canvas(height: float) -> Axes:
    """Axes over a whole new white figure, in inches from its lower left corner."""
    figure = plt.figure(figsize=(WIDTH, height), dpi=144, facecolor="white", layout="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, height))
    axes.set_axis_off()
    return axes


def _finished(axes: Axes) -> Figure:
    """The figure of the axes."""
    # Closed, as in `plotting.show_images`.
    plt.close(axes.figure)
    return axes.figure


def _text(axes: Axes, x: float, y: float, text: str, **options) -> None:
    """A text in the size and color of the diagrams, unless the options say otherwise."""
    options = {"size": SIZE, "color": INK, "ha": "center", "va": "center_baseline", "linespacing": 1.25} | options
    axes.text(x, y, text, **options)


def _tint(color: str, share: float = 0.25) -> tuple[float, ...]:
    """A color mixed with white."""
    return tuple(1 - share * (1 - part) for part in to_rgb(color))


def _box(axes: Axes, box: Box, text: str = "", color: str | None = None) -> Box:
    """A rounded box around a text, filled with a tint of the color."""
    pad = 0.08  # FancyBboxPatch adds it on each side
    corner, width, height = (box.left[0] + pad, box.bottom[1] + pad), box.width - 2 * pad, box.height - 2 * pad
    style = f"round,pad={pad},rounding_size=0.1"
    fill = "white" if color is None else _tint(color)
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=fill, edgecolor=INK, linewidth=1))
    _text(axes, box.x, box.y, text, va="center")
    return box


def _bar(axes: Axes, x: float, top: float, bottom: float, **options) -> None:
    """A bar between two levels."""
    axes.add_patch(Rectangle((x - 0.4, bottom), 0.8, top - bottom, edgecolor=INK, linewidth=1, **options))


def _arrow(axes: Axes, *points: Point, color: str = INK, head: bool = True) -> None:
    """An arrow through the points, or a dashed line where it has no head."""
    style, line = ("-|>", "-") if head else ("-", (0, (3, 2)))
    axes.add_patch(
        FancyArrowPatch(
            path=Path(points), arrowstyle=style, mutation_scale=12, color=color, linewidth=1.4, linestyle=line
        )
    )


def _grid(axes: Axes, box: Box, cells: int, picture: Picture | None = None) -> Box:
    """A square grid of so many cells on a side, with a picture in [0, 1] in them or empty."""
    (left, _), (right, _), (_, bottom), (_, top) = box.left, box.right, box.bottom, box.top
    if picture is None:
        pixels = np.full((1, 1), 255, dtype=np.uint8)
    else:
        (pixels,) = to_pixels([picture])
    # By itself an image would lie below all boxes, and lines above them.
    axes.imshow(in_color(pixels), extent=(left, right, bottom, top), interpolation="nearest", zorder=1)
    inner = np.linspace(0, box.width, cells + 1)[1:-1]
    lines = [((left + x, bottom), (left + x, top)) for x in inner]
    lines += [((left, bottom + y), (right, bottom + y)) for y in inner]
    thin = 0.5 if box.width / cells > 0.05 else 0.2
    axes.add_collection(LineCollection(lines, colors="0.6", linewidths=thin, zorder=1, snap=False), autolim=False)
    axes.add_patch(Rectangle((left, bottom), box.width, box.height, fill=False, edgecolor=INK, linewidth=1))
    return box


def _stack(axes: Axes, box: Box, marked: int) -> Box:
    """Three sheets of 7 x 7 cells, one behind the other, for the channels of a state; some cells in front are gray."""
    side = box.width - 0.2
    cells = np.ones((7, 7))
    cells[3 - marked // 2 : 4 + marked // 2, 3 - marked // 2 : 4 + marked // 2] = 0.7
    for shift in (0.1, 0, -0.1):
        _grid(axes, Box(box.x + shift, box.y + shift, side, side), 7, None if shift >= 0 else cells)
    return box


def _loop(axes: Axes, grid: Box, rule: Box) -> None:
    """The steps on a grid: a loop at its side toward the rule, and a line from there."""
    down = grid.y > rule.y
    edge, sign = (grid.bottom[1], -1) if down else (grid.top[1], 1)
    angle = np.linspace(0, np.pi, 20)
    points = zip(grid.x - 0.17 * np.cos(angle), edge + sign * 0.22 * np.sin(angle), strict=True)
    _arrow(axes, *points, color=LEARNED)
    end = rule.top[1] if down else rule.bottom[1]
    _arrow(axes, (grid.x, edge + sign * 0.22), (grid.x, end), color=LEARNED, head=False)
    _text(axes, grid.x - 0.25, edge + sign * 0.2, "$s$ steps", ha="right")


def _doublings(axes: Axes, start: Point, length: float) -> Point:
    """The five grids of a doubling decoder, at some distance from each other along the time, and where they end."""
    x, y = start
    for side in SIDES:
        grid = _grid(axes, Box(x + 0.21, y, 0.42, 0.42), side)
        x = grid.right[0] + length
        if side < SIDES[-1]:
            _arrow(axes, grid.right, (x, y))
    return grid.right


def _judged(axes: Axes, start: Point, length: float, times: int) -> Point:
    """Steps along the time, with dots for the last ones, after which the loss looks, and where they end."""
    x, y = start[0] + length, start[1]
    axes.plot([start[0], x], [y, y], color=INK, linewidth=1.4)
    axes.plot(x - 0.14 * np.arange(times), np.full(times, y), "o", color=LOSS, markersize=6.5, markeredgewidth=0)
    return x, y


def _kept(axes: Axes, start: Point) -> Point:
    """A way into a pool of states along the time, and where it ends."""
    x, y = start[0] + 0.28, start[1]
    _arrow(axes, start, (x, y))
    for shift in (0.06, 0, -0.06):
        _grid(axes, Box(x + 0.21 + shift, y + shift, 0.3, 0.3), 1)
    return x + 0.42, y


def _wounded(axes: Axes, start: Point) -> Point:
    """A way to a grid with a hole along the time, and where it ends."""
    x, y = start[0] + 0.28, start[1]
    _arrow(axes, start, (x, y))
    grid = _grid(axes, Box(x + 0.21, y, 0.42, 0.42), 32)
    axes.add_patch(Rectangle((grid.x - 0.1, y - 0.13), 0.2, 0.2, facecolor="white", edgecolor=INK, linewidth=1))
    return grid.right


def _states(axes: Axes, x: float, y: float, names: str) -> list[Box]:
    """A row of states of the growing automaton, by what has become of them."""
    return [
        _grid(axes, Box(x + 0.45 * index, y, 0.39, 0.39), 1, _toadstool(name))
        for index, name in enumerate(names.split())
    ]


@cache
def _toadstool(name: str) -> torch.Tensor:
    """A state of the growing automaton: a seed, a young one, an old one, one astray or one that is hurt."""
    picture = toadstool()
    middle = torch.arange(picture.shape[-1]) - picture.shape[-1] // 2
    if name == "hurt":
        picture[:, 2:13, 9:20] = 0
    elif name == "seed":  # one cell would be too small to see
        near = middle.abs() <= 1
        picture = torch.zeros_like(picture)
        picture[3] = near[:, None] & near
    elif name == "astray":  # its rows have slipped
        rows = enumerate(picture.unbind(1))
        picture = torch.stack([row.roll(round(4 * math.sin(index / 2)), -1) for index, row in rows], 1)
    elif name == "young":
        picture = picture * (middle[:, None] ** 2 + middle**2 < 49)
    return picture


def _blurred(image: np.ndarray) -> np.ndarray:
    """An image as a decoder in doubt would give it."""
    for axis in (0, 1):
        image = (np.roll(image, 1, axis) + 4 * image + np.roll(image, -1, axis)) / 6
    return image


def _checked(pictures: Sequence[Picture]) -> list[np.ndarray]:
    """The pixels of five pictures, one for each stage of a growth."""
    shapes, wanted = [tuple(np.shape(picture)) for picture in pictures], [(1, side, side) for side in SIDES]
    if shapes != wanted:
        raise ValueError(f"growth needs five pictures of the shapes {wanted}, got {shapes}")
    return to_pixels(pictures)
