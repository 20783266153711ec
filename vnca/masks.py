"""Masks: which pixels of an image are observed, `(B, 1, 28, 28)` bool, True where a pixel is observed."""

from collections.abc import Callable

import torch
from torch import Tensor

from vnca.decoders import IMAGE_SIZE


def center_square(n: int, size: int = 14) -> Tensor:
    """Masks `(n, 1, 28, 28)` that hide a square of `size × size` pixels in the middle.

    Raises:
        ValueError: if `n` is negative, or `size` does not lie between 0 and 28.
    """
    if not 0 <= size <= IMAGE_SIZE:
        raise ValueError(f"the hidden square has a side of 0 to {IMAGE_SIZE} pixels, not {size}")
    first = (IMAGE_SIZE - size) // 2
    observed = _all_observed(n)
    observed[..., first : first + size, first : first + size] = False
    return observed


def left_half(n: int) -> Tensor:
    """Masks `(n, 1, 28, 28)` that hide the left half; raises `ValueError` if `n` is negative."""
    observed = _all_observed(n)
    observed[..., : IMAGE_SIZE // 2] = False
    return observed


def random_half(n: int, seed: int = 0) -> Tensor:
    """Masks `(n, 1, 28, 28)` that hide half of the pixels, drawn for each image anew.

    The first masks of a longer batch are those of a shorter one. Raises `ValueError` if `n` is negative.
    """
    observed = _all_observed(n).flatten(1)
    order = torch.rand((n, IMAGE_SIZE**2), generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    return observed.scatter(1, order[:, : IMAGE_SIZE**2 // 2], False).view(n, 1, IMAGE_SIZE, IMAGE_SIZE)


def stroke(n: int, seed: int = 0, width: float = 5.0) -> Tensor:
    """Masks `(n, 1, 28, 28)` that hide what a thick pen crossed out: a bent stroke, drawn for each image anew.

    Each stroke is a quadratic Bézier curve from one side of the image to the opposite one, `width` pixels wide. The
    first masks of a longer batch are those of a shorter one.

    Raises:
        ValueError: if `n` is negative or `width` is not above 0.
    """
    if not width > 0:
        raise ValueError(f"the stroke is more than 0 pixels wide, not {width}")
    observed = _all_observed(n)
    draw = torch.rand((n, 4), generator=torch.Generator().manual_seed(seed))  # start, bend, end, and its direction
    across = draw[:, :3] * (IMAGE_SIZE - 1)  # (n, 3)
    t = torch.linspace(0, 1, 57)
    weights = torch.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])  # (3, T)
    rows = across @ weights  # (n, T)
    columns = (t * (IMAGE_SIZE - 1)).expand_as(rows)
    grid = torch.arange(IMAGE_SIZE)
    distance = (rows[:, None, None] - grid[:, None, None]) ** 2 + (columns[:, None, None] - grid[:, None]) ** 2
    hidden = distance.amin(dim=-1) < (width / 2) ** 2  # (n, 28, 28)
    hidden = torch.where(draw[:, 3, None, None] < 0.5, hidden, hidden.mT)  # from left to right, or from top to bottom
    return observed & ~hidden[:, None]


def _all_observed(n: int) -> Tensor:
    if n < 0:
        raise ValueError(f"the number of masks is at least 0, not {n}")
    return torch.ones((n, 1, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.bool)


MASKS: dict[str, Callable[[int], Tensor]] = {
    "center square": center_square,
    "left half": left_half,
    "random half": random_half,
    "stroke": stroke,
}
