"""Figures of the book: rows of pictures, films, colors for hidden channels, and learning curves.

What counts as a picture is said in `vnca.pictures`. A returned figure is shown where it is the last line of a
cell, or by ``display(figure)``.
"""

import io
import math
import os
import time
from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vnca import metrics
from vnca.pictures import Picture, image_grid, in_color, positive, save_png, stack_enlarged, to_pixels
from vnca.player import Film

__all__ = [
    "LivePlot",
    "curves",
    "film",
    "hidden_colors",
    "image_grid",
    "save_png",
    "show_images",
    "strip",
    "use_style",
]

# Okabe and Ito's colors, told apart by color-blind readers; yellow is left out, too pale on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def use_style() -> None:
    """Sets matplotlib's defaults for the book: white, opaque, and readable where a page narrows the figure."""
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 144,
            "savefig.dpi": 144,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "savefig.transparent": False,
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": plt.cycler(color=COLORS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 11,
            "axes.titlesize": 11,
            "legend.frameon": False,
            "lines.linewidth": 2,
            "image.cmap": "gray",
            "image.interpolation": "nearest",
        }
    )


def show_images(
    images: Picture | Sequence[Picture],
    *,
    titles: Sequence[str] | None = None,
    columns: int = 8,
    scale: float = 1.0,
) -> Figure:
    """A grid of pictures, row by row, enlarged without smoothing.

    Args:
        images: ``(N, H, W)`` or ``(N, 1|3|4, H, W)``, or a list of N pictures. Pictures of different sizes
            are drawn equally large.
        titles: N texts, one above each picture.
        columns: pictures in a row.
        scale: enlarges each picture; at 1 it is 0.8 inch wide, less where more than 8 stand in a row.

    Raises:
        ValueError: other shapes, different proportions, NaN, or a number of titles other than N.
    """
    pictures = to_pixels(images)
    if titles is not None and len(titles) != len(pictures):
        raise ValueError(f"{len(pictures)} images need as many titles, got {len(titles)}")
    columns = min(positive("columns", columns), len(pictures))
    rows = math.ceil(len(pictures) / columns)
    height, width = pictures[0].shape[:2]
    if any(picture.shape[0] * width != picture.shape[1] * height for picture in pictures):
        raise ValueError(f"images must have the same proportions, got {sorted({p.shape[:2] for p in pictures})}")
    # Lengths in widths of one picture; a title takes 0.2 inch of its row, whatever the scale.
    inch, gap, tall = scale * min(0.8, 6.4 / columns), 0.06, height / width
    pitch = tall + (0.2 / inch if titles is not None else gap)
    figure = plt.figure(figsize=(columns * (1 + gap) * inch, rows * pitch * inch), layout="none")
    axes = figure.add_axes((0, 0, 1, 1))
    for index, picture in enumerate(pictures):
        left, bottom = (index % columns) * (1 + gap), -(index // columns) * pitch
        extent = (left, left + 1, bottom, bottom + tall)
        axes.imshow(in_color(picture), extent=extent, interpolation="nearest")
        if titles is not None:
            axes.text(left + 0.5, bottom + tall + 0.03 / inch, titles[index], ha="center", va="bottom", size=9)
    axes.set(xlim=(-gap / 2, columns * (1 + gap) - gap / 2), ylim=((1 - rows) * pitch, pitch))
    axes.set_axis_off()
    # Closed, or a notebook would show it a second time; a closed figure still draws and saves.
    plt.close(figure)
    return figure


def strip(frames: Sequence[Picture], labels: Sequence[str], *, columns: int = 10, scale: float = 1.0) -> Figure:
    """Frames of a growth side by side: grids of different sizes, drawn equally large, a label above each.

    Args:
        frames: T pictures, for example ``(1, 2, 2)``, ``(1, 4, 4)`` ... ``(1, 32, 32)``.
        labels: T texts.
        columns: frames in a row.
        scale: as for `show_images`.

    Raises:
        ValueError: as for `show_images`.
    """
    return show_images(frames, titles=labels, columns=columns, scale=scale)


def film(
    frames: Picture | Sequence[Picture],
    *,
    alt: str,
    labels: Sequence[str] | None = None,
    fps: float = 8,
    scale: int | None = None,
    poster: int = -1,
) -> Film:
    """A film with play button and slider, for a notebook to show; it works offline and in the built page.

    Color films too large at full color keep their best 256 colors.

    Args:
        frames: ``(T, H, W)`` or ``(T, 1|3|4, H, W)``, or a list of T pictures. Smaller pictures are enlarged
            to the largest, whose sides must be a whole multiple of theirs.
        alt: what the film shows, for readers who cannot see it.
        labels: T texts, shown under the frames; frame numbers if left out.
        fps: frames per second.
        scale: screen pixels per pixel of the largest frame; by default the film is at most 288 wide.
        poster: the frame that is seen before the film plays and where scripts do not run.

    Raises:
        ValueError: wrong shapes or sizes, NaN, no alt text, a number of labels other than T, a poster that is
            not among the frames, fps or scale not above zero, or a page fragment over 300 kB.

    >>> film(torch.rand(3, 28, 28), alt="three frames of noise")
    Film(3 frames of 28x28: three frames of noise)
    """
    pictures = stack_enlarged(to_pixels(frames))
    count, _, width = pictures.shape[:3]
    if not alt.strip():
        raise ValueError("film needs an alt text: say what the film shows")
    if labels is None:
        labels = [f"{index + 1} / {count}" for index in range(count)]
    if len(labels) != count:
        raise ValueError(f"{count} frames need as many labels, got {len(labels)}")
    if not -count <= poster < count:
        raise ValueError(f"poster must be among the {count} frames, got {poster}")
    if not fps > 0:
        raise ValueError(f"fps must be above zero, got {fps}")
    scale = max(1, 288 // width) if scale is None else positive("scale", scale)
    return Film(pictures, labels, alt=alt, fps=fps, scale=scale, poster=poster)


def hidden_colors(states: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Colors for cell states: their channels' three principal components as red, green and blue.

    One principal component analysis is made over the cells of all states, so that a color means the same in
    each. Each component runs from its 1 % quantile (0) to its 99 % quantile (1); values beyond are clipped.

    Args:
        states: cell states ``(C, H, W)`` with C at least 3; the grids may differ in size.

    Returns:
        One float32 ``(3, H, W)`` in [0, 1] on the CPU for each state: frames for `film` or `strip`.

    Raises:
        ValueError: no states, other shapes, different C, fewer than two cells in all, or values that are not finite.

    >>> [tuple(frame.shape) for frame in hidden_colors([torch.rand(8, 2, 2), torch.rand(8, 4, 4)])]
    [(3, 2, 2), (3, 4, 4)]
    """
    states = [state.detach().to("cpu", torch.float64) for state in states]
    shapes = sorted({tuple(state.shape) for state in states})
    if not shapes or any(len(shape) != 3 or shape[0] < 3 or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"hidden_colors needs cell states (C, H, W) with the same C >= 3, got {shapes or 'none'}")
    cells = torch.cat([state.flatten(1).T for state in states])  # (cells of all states, C)
    if len(cells) < 2:
        raise ValueError("hidden_colors needs at least two cells: a single one has no directions in which it differs")
    if not cells.isfinite().all():
        raise ValueError("hidden_colors needs finite states, got NaN or infinity")
    axes = torch.linalg.eigh(torch.cov(cells.T)).eigenvectors[:, -3:].flip(1)  # (C, 3), largest variance first
    # An eigenvector's sign is arbitrary; its largest entry is made positive so that colors do not flip.
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))  # (1, 3)
    values = (cells - cells.mean(0)) @ (axes * largest.sign())
    low, high = (torch.from_numpy(np.quantile(values.numpy(), q, axis=0)) for q in (0.01, 0.99))
    spread = (high - low).clamp_min(torch.finfo(torch.float64).tiny)
    colors = ((values - low) / spread).clamp(0, 1).float()
    parts = colors.split([state[0].numel() for state in states])  # each (H * W, 3)
    return [part.T.reshape(3, *state.shape[1:]) for part, state in zip(parts, states, strict=True)]


def curves(run: str | os.PathLike | Sequence[dict]) -> Figure:
    """Learning curves: on the left the ELBO and the negative loss, on the right the KL term, in nats per image.

    ELBO and negative loss differ while the weight of the KL term rises, and agree from then on. The scale follows all
    but the first tenth of the records, which would flatten the rest. Where the importance-weighted bound was trained,
    it stands for the ELBO, and what the log-likelihood is above it for the KL term.

    Args:
        run: the folder of a run, or its records as `vnca.metrics.read` gives them.

    Raises:
        ValueError: if there are no records, or they cannot be read.
    """
    records = metrics.read(run) if isinstance(run, str | os.PathLike) else run
    if not records:
        raise ValueError("curves needs at least one record of a run, got none")
    update, nats, loss, kl = (np.array([record[key] for record in records]) for key in ("update", "nats", "loss", "kl"))
    width, height = plt.rcParams["figure.figsize"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(width, 0.8 * height), width_ratios=(3, 2))
    line = {"linewidth": 1.2, "marker": "." if len(records) == 1 else ""}  # a line of one point is not seen
    bound = metrics.bound_name(records[-1])
    # The bound lies on top: where both agree, it is the one to read, and the loss is seen as a light edge around it.
    left.plot(update, -loss, color=COLORS[5], label="negative loss", **line | {"linewidth": 4, "alpha": 0.5})
    left.plot(update, nats, color=COLORS[0], label=bound, **line)
    left.set(title=bound, ylabel="nats per image")
    left.legend(loc="lower right", reverse=True)
    right.plot(update, kl, color=COLORS[1], **line)
    right.set(title="KL term" if bound == "ELBO" else "log-likelihood − bound")
    _fit_to_late(left, -loss, nats)
    _fit_to_late(right, kl)
    for axes, intervals in ((left, 5), (right, 3)):  # more would not fit under the narrow one
        axes.set(xlabel="updates", xlim=(0, None))
        axes.locator_params(axis="x", nbins=intervals)
    # Closed, as in `show_images`.
    plt.close(figure)
    return figure


def _fit_to_late(axes: Axes, *series: np.ndarray) -> None:
    """Let the y axis span all but the first tenth of the values."""
    late = np.concatenate([values[len(values) // 10 :] for values in series])
    late = late[np.isfinite(late)]
    if late.size and np.ptp(late) > 0:
        margin = 0.05 * np.ptp(late)
        axes.set_ylim(late.min() - margin, late.max() + margin)


class LivePlot:
    """Learning curves that a notebook redraws in place during training: `train(..., on_log=LivePlot())`.

    At most one picture a second is drawn, so that it takes at most a twentieth of the time, and one at the end of the
    run, which the notebook keeps. Outside of a notebook nothing is drawn. For a whole run in a folder, see `curves`.
    """

    def __init__(self) -> None:
        self.records: list[dict] = []
        self.due = -math.inf  # when the next picture may be drawn
        self.handle = None

    def __call__(self, record: dict) -> None:
        """Take one record of the metrics."""
        self.records.append(record)
        started = time.monotonic()
        if record["fraction"] < 1 and started < self.due:
            return
        if getattr(get_ipython(), "kernel", None) is None:  # no notebook
            return
        picture = self._picture()
        if self.handle is None:
            self.handle = display(picture, display_id=True)
        else:
            self.handle.update(picture)
        finished = time.monotonic()
        self.due = finished + max(1, 19 * (finished - started))

    def _picture(self) -> Image:
        last = self.records[-1]
        file = io.BytesIO()
        with plt.rc_context():
            use_style()
            curves(self.records).savefig(file, format="png")
        bound = metrics.bound_name(last)
        rest = "the KL term" if bound == "ELBO" else "the log-likelihood above it by"
        alt = (
            f"Learning curves up to update {last['update']:,}, where the {bound} is {last['nats']:.1f} nats and "
            f"{rest} {last['kl']:.1f} nats"
        )
        return Image(file.getvalue(), format="png", alt=alt)
