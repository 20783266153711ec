"""Figures of the book: grids and strips of pictures, films, and colors for hidden channels.

Pictures come as tensors or arrays in [0, 1] (uint8 in [0, 255] is taken too): grey ``(H, W)`` or ``(1, H, W)``,
RGB ``(3, H, W)``, or RGBA ``(4, H, W)`` with premultiplied colors, shown on white. Values outside [0, 1] are
clipped; NaN is an error. A returned figure is shown where it is the last line of a cell, or by ``display(figure)``.
"""

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from vnca.player import Film

Picture = torch.Tensor | np.ndarray

# Okabe and Ito's colors, told apart by color-blind readers; yellow is left out, too pale on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def use_style() -> None:
    """Sets matplotlib's defaults for the book: white and opaque, readable when a page narrows it, no ornaments."""
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
            "axes.grid": True,
            "grid.alpha": 0.25,
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
        images: ``(N, H, W)``, ``(N, 1, H, W)``, ``(N, 3, H, W)`` or ``(N, 4, H, W)``, or a list of N pictures.
            Pictures of different sizes are drawn equally wide.
        titles: N texts, one above each picture.
        columns: pictures in a row.
        scale: size of each picture, in 0.8 inch.

    Raises:
        ValueError: shapes other than the above, NaN, or a number of titles other than N.
    """
    pictures = _pictures(images)
    if titles is not None and len(titles) != len(pictures):
        raise ValueError(f"{len(pictures)} images need as many titles, got {len(titles)}")
    columns = min(_positive("columns", columns), len(pictures))
    rows = math.ceil(len(pictures) / columns)
    height, width = pictures[0].shape[:2]
    # One picture is 1 wide on the axes; a title needs 0.2 inch of the row, whatever the scale.
    inch, gap = 0.8 * scale, 0.06
    tall = height / width
    pitch = tall + (0.2 / inch if titles is not None else gap)
    size = (columns * (1 + gap) * inch, rows * pitch * inch)
    figure = plt.figure(figsize=size, layout="none")
    axes = figure.add_axes((0, 0, 1, 1))
    for index, picture in enumerate(pictures):
        left, bottom = (index % columns) * (1 + gap), -(index // columns) * pitch
        axes.imshow(
            picture,
            extent=(left, left + 1, bottom, bottom + tall),
            cmap="gray",
            vmin=0,
            vmax=255,
            interpolation="nearest",
        )
        if titles is not None:
            axes.text(
                left + 0.5, bottom + tall + 0.03 / inch, titles[index], ha="center", va="bottom", fontsize=9
            )
    axes.set(xlim=(-gap / 2, columns * (1 + gap) - gap / 2), ylim=(tall - rows * pitch, pitch))
    axes.set_axis_off()
    # Closed, or a notebook would show it a second time; a closed figure still draws and saves.
    plt.close(figure)
    return figure


def strip(
    frames: Sequence[Picture], labels: Sequence[str], *, columns: int = 10, scale: float = 1.0
) -> Figure:
    """Frames of a growth side by side: grids of different sizes, drawn equally large, a label above each.

    Args:
        frames: T pictures, for example ``(1, 2, 2)``, ``(1, 4, 4)`` ... ``(1, 32, 32)``.
        labels: T texts.
        columns: frames in a row.
        scale: size of each frame, in 0.8 inch.

    Raises:
        ValueError: as for `show_images`.
    """
    return show_images(frames, titles=labels, columns=columns, scale=scale)


def image_grid(images: Picture | Sequence[Picture], columns: int = 8, pad: int = 2) -> np.ndarray:
    """One picture made of N equally large ones, row by row, white between them.

    Args:
        images: as for `show_images`, all of one size.
        columns: pictures in a row.
        pad: white pixels around each picture.

    Returns:
        uint8 ``(height, width)`` for grey, ``(height, width, 3)`` for color.

    Raises:
        ValueError: wrong shapes, several sizes, NaN.
    """
    pictures = _one_size(_pictures(images))
    columns = min(_positive("columns", columns), len(pictures))
    rows = math.ceil(len(pictures) / columns)
    height, width = pictures.shape[1:3]
    grid = np.full(
        (rows * (height + pad) + pad, columns * (width + pad) + pad, *pictures.shape[3:]), 255, dtype=np.uint8
    )
    for index, picture in enumerate(pictures):
        top, left = pad + (index // columns) * (height + pad), pad + (index % columns) * (width + pad)
        grid[top : top + height, left : left + width] = picture
    return grid


def save_png(images: Picture | Sequence[Picture], path: str | os.PathLike, columns: int = 8) -> None:
    """Writes `image_grid` of the images as a PNG; an existing file is replaced only by a complete new one.

    Raises:
        ValueError: as for `image_grid`.
        OSError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    beside = path.with_name(path.name + ".partial")
    Image.fromarray(image_grid(images, columns)).save(beside, format="PNG", optimize=True)
    os.replace(beside, path)


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
        frames: ``(T, H, W)`` or ``(T, 1|3|4, H, W)``, or a list of T pictures. Smaller pictures are enlarged to
            the largest, whose sides must be a whole multiple of theirs.
        alt: what the film shows, for readers who cannot see it.
        labels: T texts, shown under the frames; frame numbers if left out.
        fps: frames per second.
        scale: screen pixels per pixel of the largest frame; by default the film is at most 288 wide.
        poster: the frame that is seen before the film plays and in print.

    Raises:
        ValueError: wrong shapes or sizes, NaN, no alt text, a number of labels other than T, a poster that is not
            among the frames, fps or scale not above zero, or a page fragment over 300 kB.
    """
    pictures = _enlarged(_pictures(frames))
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
    scale = max(1, 288 // width) if scale is None else _positive("scale", scale)
    return Film(pictures, labels, alt=alt, fps=fps, scale=scale, poster=poster)


def hidden_colors(states: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Colors for cell states: their channels' three principal components as red, green and blue.

    One principal component analysis is made over the cells of all states, so that a color means the same in each.
    Each component runs from its 1 % quantile (0) to its 99 % quantile (1); values beyond are clipped.

    Args:
        states: cell states ``(C, H, W)`` with C at least 3; the grids may differ in size.

    Returns:
        One float32 ``(3, H, W)`` in [0, 1] on the CPU for each state: frames for `film` or `strip`.

    Raises:
        ValueError: no states, other shapes, different C, or values that are not finite.
    """
    states = [state.detach().to("cpu", torch.float64) for state in states]
    if not states or any(
        state.ndim != 3 or len(state) < 3 or len(state) != len(states[0]) for state in states
    ):
        shapes = sorted({tuple(state.shape) for state in states})
        raise ValueError(
            f"hidden_colors needs cell states (C, H, W) of one C, at least 3; got {shapes or 'none'}"
        )
    cells = torch.cat([state.flatten(1).T for state in states])  # (cells of all states, C)
    if not cells.isfinite().all():
        raise ValueError("hidden_colors needs finite states, got NaN or infinity")
    axes = (
        torch.linalg.eigh(torch.cov(cells.T)).eigenvectors[:, -3:].flip(1)
    )  # (C, 3), largest variance first
    # An eigenvector's sign is arbitrary; its largest entry is made positive so that colors do not flip.
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))  # (1, 3)
    values = (cells - cells.mean(0)) @ (axes * largest.sign())
    low, high = (torch.from_numpy(np.quantile(values.numpy(), q, axis=0)) for q in (0.01, 0.99))
    spread = (high - low).clamp_min(torch.finfo(torch.float64).tiny)
    colors = ((values - low) / spread).clamp(0, 1).float()
    counts = [state[0].numel() for state in states]
    return [
        part.T.reshape(3, *state.shape[1:]) for part, state in zip(colors.split(counts), states, strict=True)
    ]


def _positive(name: str, value: int) -> int:
    if int(value) != value or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value}")
    return int(value)


def _pictures(images: Picture | Sequence[Picture]) -> list[np.ndarray]:
    """Each picture as uint8 ``(H, W)`` or ``(H, W, 3)``."""
    pictures = [_pixels(image) for image in images]
    if not pictures:
        raise ValueError("no images given")
    return pictures


def _pixels(image: Picture) -> np.ndarray:
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    image = np.asarray(image)
    if not (image.ndim == 2 or (image.ndim == 3 and len(image) in (1, 3, 4))) or image.size == 0:
        raise ValueError(
            f"each image must have shape (H, W), (1, H, W), (3, H, W) or (4, H, W), got {image.shape}; "
            "a single image needs a leading dimension: image[None]"
        )
    if image.dtype == np.uint8:
        image = image / 255
    elif image.dtype != bool and not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"images must be floating point in [0, 1], uint8 or bool, got {image.dtype}")
    if np.isnan(image).any():
        raise ValueError("an image holds NaN; show the frames before that one, or replace it with nan_to_num")
    image = np.clip(image.astype(np.float32), 0, 1)
    if image.ndim == 3:
        if len(image) == 4:
            # Premultiplied colors already carry their share: white fills what is not opaque.
            image = np.clip(image[:3] + 1 - image[3:], 0, 1)
        image = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    return np.rint(image * 255).astype(np.uint8)


def _one_size(pictures: list[np.ndarray]) -> np.ndarray:
    """Stacks pictures: ``(N, H, W)`` or ``(N, H, W, 3)``."""
    shapes = {picture.shape for picture in pictures}
    if len(shapes) > 1:
        raise ValueError(
            f"images must be of one size and all grey or all color, got {sorted(shapes, key=str)}"
        )
    return np.stack(pictures)


def _enlarged(pictures: list[np.ndarray]) -> np.ndarray:
    """Stacks pictures, each enlarged to the largest by whole copies of its pixels."""
    height, width = max(picture.shape[:2] for picture in pictures)
    for index, picture in enumerate(pictures):
        rows, columns = picture.shape[:2]
        if height % rows or width % columns or height // rows != width // columns:
            raise ValueError(
                f"frame {index} of {rows}x{columns} cannot be enlarged by a whole factor to {height}x{width}; "
                "crop or resize the frames first"
            )
        times = height // rows
        pictures[index] = picture.repeat(times, axis=0).repeat(times, axis=1)
    return _one_size(pictures)
