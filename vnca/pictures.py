"""Pictures as bytes: from tensors to uint8 pixels, grids and PNG files.

Pictures come as tensors or arrays in [0, 1] (uint8 in [0, 255] is taken too): grey ``(H, W)`` or
``(1, H, W)``, RGB ``(3, H, W)``, or RGBA ``(4, H, W)`` with premultiplied colors, shown on white. Values
outside [0, 1] are clipped; NaN is an error.
"""

import base64
import io
import math
import os
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from vnca import files

Picture = torch.Tensor | np.ndarray


def image_grid(images: Picture | Sequence[Picture], columns: int = 8, pad: int = 2) -> np.ndarray:
    """One picture made of N equally large ones, row by row, white between them.

    Args:
        images: ``(N, H, W)`` or ``(N, 1|3|4, H, W)``, or a list of N pictures of one size.
        columns: pictures in a row.
        pad: white pixels around each picture.

    Returns:
        uint8 ``(height, width)`` for grey, ``(height, width, 3)`` for color.

    Raises:
        ValueError: other shapes, several sizes, NaN, or a negative pad.

    >>> image_grid(torch.zeros(4, 1, 8, 8), columns=2).shape
    (22, 22)
    """
    pictures = stack(to_pixels(images))
    columns = min(positive("columns", columns), len(pictures))
    if pad < 0:
        raise ValueError(f"pad is at least 0 pixels, not {pad}")
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
        OSError: the folder does not exist or cannot be written, or `path` is a folder.
    """
    grid = Image.fromarray(image_grid(images, columns))
    with files.replacing(path) as beside:
        grid.save(beside, format="PNG", optimize=True)


def data_url(pixels: np.ndarray, *, palette: bool = False, optimize: bool = True) -> str:
    """A PNG of uint8 pixels ``(H, W)`` or ``(H, W, 3)`` as a data URL.

    Args:
        pixels: the picture.
        palette: keep the best 256 colors only.
        optimize: search for the shortest PNG, which takes several times as long.
    """
    image = Image.fromarray(pixels)
    if palette:
        image = image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=optimize)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def read_png(path: str | os.PathLike) -> torch.Tensor:
    """The picture of a PNG file in grey: float32 ``(1, H, W)`` in [0, 1].

    Transparent pixels are shown on white; then colors become their luma, 0.299 red + 0.587 green + 0.114 blue
    (ITU-R BT.601).

    Raises:
        ValueError: the file cannot be read, is no PNG, is damaged, or has more than 89 million pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as image:
                image.load()
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not a PNG file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path} cannot be read as a PNG file: {error}") from None
    if image.mode.startswith("I"):  # 16 bits of grey, of which one may stand for transparent
        values = np.asarray(image, dtype=np.float32) / 65535
        values = np.where(np.asarray(image) == image.info.get("transparency", -1), np.float32(1), values)
    else:
        opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        values = np.asarray(opaque.convert("L"), dtype=np.float32) / 255
    return torch.from_numpy(values)[None]


def to_pixels(images: Picture | Sequence[Picture]) -> list[np.ndarray]:
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


def in_color(pixels: np.ndarray) -> np.ndarray:
    """Pixels ``(H, W)`` or ``(H, W, 3)`` as ``(H, W, 3)``: matplotlib draws exact greys so, without a color map."""
    return pixels if pixels.ndim == 3 else np.dstack([pixels] * 3)


def stack(pictures: list[np.ndarray]) -> np.ndarray:
    """Stacks pictures: ``(N, H, W)`` or ``(N, H, W, 3)``."""
    shapes = {picture.shape for picture in pictures}
    if len(shapes) > 1:
        raise ValueError(f"images must be of one size and all grey or all color, got {sorted(shapes, key=str)}")
    return np.stack(pictures)


def stack_enlarged(pictures: list[np.ndarray]) -> np.ndarray:
    """Stacks pictures as `stack` does, each enlarged to the largest by copies of its pixels."""
    height, width = max(picture.shape[:2] for picture in pictures)
    enlarged = []
    for index, picture in enumerate(pictures):
        rows, columns = picture.shape[:2]
        if height % rows or width % columns or height // rows != width // columns:
            raise ValueError(
                f"frame {index} of {rows}x{columns} does not fit {height}x{width} a whole number of times; "
                "crop or resize the frames first"
            )
        times = height // rows
        enlarged.append(picture.repeat(times, axis=0).repeat(times, axis=1))
    return stack(enlarged)


def positive(name: str, value: int) -> int:
    """The value, if it is a whole number of at least 1; otherwise a ValueError that names it."""
    if int(value) != value or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value}")
    return int(value)
