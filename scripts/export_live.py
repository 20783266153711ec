"""Write the models and still pictures of the live figures in the book's pages, into `book/_static/live`.

    python scripts/export_live.py

The models are the shipped small ones, as `python -m vnca export` writes them. The stills stand in for a figure until it
runs, and where it cannot. Run it after the weights changed; a test compares the models with the weights.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import vnca
from vnca import export, files

LIVE = Path(__file__).resolve().parent.parent / "book" / "_static" / "live"
MODELS = ("doubling-mnist-small", "regrowing-mnist-small")
INK, PAPER = (0x1C, 0x27, 0x33), (0xFB, 0xFA, 0xF6)  # those of live.css in the light
SCALE = 10  # pixels of a still for each cell


@torch.no_grad()
def grown_digit() -> torch.Tensor:
    """A digit of the regrowing cells, `(32, 32)` amounts of ink, border and all."""
    model = vnca.load("regrowing-mnist-small")
    z = torch.randn(1, model.latent_size, generator=torch.Generator().manual_seed(0))
    *_, last = model.decoder.grow(z)
    return last[0, 0].sigmoid()


STILLS = {"grow": grown_digit}  # by the name in `data-live`


def save_still(ink: torch.Tensor, path: Path) -> None:
    """Draw amounts of ink `(H, W)` in [0, 1] as ink on paper, each as a square of pixels."""
    share = ink.numpy()[:, :, None]
    pixels = np.rint(share * np.array(INK) + (1 - share) * np.array(PAPER)).astype(np.uint8)
    large = pixels.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    with files.replacing(path) as beside:
        Image.fromarray(large).save(beside, format="PNG", optimize=True)


def main() -> int:
    for name in MODELS:
        for path in export.export(name, LIVE / "models"):
            print(f"{path.name}: {path.stat().st_size:,} bytes")
    (LIVE / "stills").mkdir(exist_ok=True)
    for demo, draw in STILLS.items():
        save_still(draw(), LIVE / "stills" / f"{demo}.png")
        print(f"stills/{demo}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
