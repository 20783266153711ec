"""Write the models and still pictures of the live figures in the book's pages, into `book/_static/live`.

    python scripts/export_live.py

The models are the shipped small ones, as `python -m vnca export` writes them, and the automaton of the toadstool. The
stills stand in for a figure until it runs, and where it cannot. Run it after the weights changed; a test compares the
models with the weights.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import vnca
from vnca import export, files, growing, masks
from vnca.decoders import GRID_SIZE, IMAGE_SIZE

LIVE = Path(__file__).resolve().parent.parent / "book" / "_static" / "live"
MODELS = ("doubling-mnist-small", "persistent-mnist-small")  # of cells
ENCODED = "persistent-mnist-small"  # its encoder, too
WALKED = "conv-mnist-small"  # its decoder alone
FITTED = "fitted-mnist-small"  # its prior alone; its cells are those of doubling-mnist-small
GROWN = "fitted-persistent-mnist-small"  # its prior alone; its cells are those of persistent-mnist-small
PLANT = "toadstool"
NUMBERED = ("two-toadstools", "turned-toadstools")  # automata whose seeds carry numbers
PAPER = (0xFB, 0xFA, 0xF6)  # that of live.css in the light
WIDTH = 640  # of a still, in pixels, or somewhat less


def model_scripts() -> dict[str, str]:
    """The models of the pages, by the names of their files."""
    scripts = {}
    for name in MODELS:
        scripts[f"{name}.js"] = export.decoder_script(vnca.load(name), name)
    scripts[f"{ENCODED}-encoder.js"] = export.encoder_script(vnca.load(ENCODED), f"{ENCODED}-encoder")
    scripts[f"{WALKED}.js"] = export.decoder_script(vnca.load(WALKED), WALKED)
    for name in (FITTED, GROWN):
        scripts[f"{name}-prior.js"] = export.prior_script(vnca.load(name), f"{name}-prior")
    size = growing.toadstool().shape[-1]
    for name in (PLANT, *NUMBERED):
        scripts[f"{name}.js"] = export.automaton_script(growing.load(name), name, size)
    return scripts


@torch.no_grad()
def grown_digit() -> torch.Tensor:
    """A digit of the cells that stay, `(32, 32)` in [0, 1], border and all."""
    model = vnca.load(GROWN)
    z = model.draw(1, torch.Generator().manual_seed(18))
    *_, last = model.decoder.grow(z)
    return last[0, 0].sigmoid()


@torch.no_grad()
def stages_of_growth() -> torch.Tensor:
    """A digit of the doubling cells at the end of its last four stages, two by two."""
    model = vnca.load("doubling-mnist-small")
    z = torch.randn(1, model.latent_size, generator=torch.Generator().manual_seed(3))
    states = list(model.decoder.grow(z))
    return tiles(
        [
            next(state for state in reversed(states) if state.shape[-1] == side)[0, 0]
            .sigmoid()
            .kron(torch.ones(GRID_SIZE // side, GRID_SIZE // side))
            for side in (4, 8, 16, 32)
        ]
    )


@torch.no_grad()
def completions_of_a_digit() -> torch.Tensor:
    """A sample of the cells that stay with a hole, and three completions of it, two by two."""
    model = vnca.load("persistent-mnist-small")
    x = model.sample(1, torch.Generator().manual_seed(35)).round()
    observed = masks.center_square(1, 12)
    found = vnca.inpaint(model, x, observed, 3, torch.Generator().manual_seed(0))
    return tiles([torch.where(observed, x, 0.5)[0, 0], *found[:, 0, 0]])


@torch.no_grad()
def digits_of_a_learned_prior() -> torch.Tensor:
    """Four digits of the doubling cells, two by two, their latents drawn from a learned prior."""
    images = vnca.load(FITTED).sample(4, torch.Generator().manual_seed(0))
    return tiles(list(images[:, 0]))


@torch.no_grad()
def walked_latents() -> torch.Tensor:
    """Five by five digits of the convolutional decoder, along the two numbers of a latent that change it most."""
    model = vnca.load(WALKED)
    across, up = (number for number, _ in export.telling_latents(model.decoder)[:2])
    z = torch.randn(1, model.latent_size, generator=torch.Generator().manual_seed(0)).repeat(25, 1)
    steps = torch.linspace(-2.4, 2.4, 5)
    z[:, up], z[:, across] = torch.cartesian_prod(-steps, steps).T
    images = model.decode(z).sigmoid().view(5, 5, IMAGE_SIZE, IMAGE_SIZE)
    return images.permute(0, 2, 1, 3).reshape(5 * IMAGE_SIZE, 5 * IMAGE_SIZE)


@torch.no_grad()
def grown_toadstool() -> torch.Tensor:
    """The picture of the growing automaton, `(4, 22, 22)` colors and opacity."""
    torch.manual_seed(0)
    automaton = growing.load(PLANT)
    state = growing.single_cell(1, automaton.change.out_channels, growing.toadstool().shape[-1])
    for _ in range(60):
        state = automaton(state)
    return state[0, :4]


@torch.no_grad()
def turned_toadstools() -> torch.Tensor:
    """Four pictures of the automaton whose seeds carry numbers, colors and opacity, two by two."""
    torch.manual_seed(0)
    automaton = growing.load("turned-toadstools")
    state = growing.seed_with(torch.linspace(1, -1, 4))
    for _ in range(60):
        state = automaton(state)
    return tiles(list(state[:, :4]))


def tiles(pictures: list[torch.Tensor]) -> torch.Tensor:
    """Four pictures `(H, H)` or `(C, H, H)`, two by two, with empty lines between them."""
    one, two, three, four = (F.pad(picture, (1, 1, 1, 1)) for picture in pictures)
    return torch.cat([torch.cat([one, two], dim=-1), torch.cat([three, four], dim=-1)], dim=-2)


# By the name in `data-live`.
STILLS = {
    "automaton": grown_toadstool,
    "grow": grown_digit,
    "growth": stages_of_growth,
    "inpaint": completions_of_a_digit,
    "latent": walked_latents,
    "priors": digits_of_a_learned_prior,
    "seeds": turned_toadstools,
}


def save_still(picture: torch.Tensor, path: Path) -> None:
    """Draw a digit `(H, H)` white on black, or premultiplied colors `(4, H, H)` on paper, in large pixels."""
    values = picture.clamp(0, 1).numpy()
    if values.ndim == 2:
        colors = 255 * values
    else:
        colors = 255 * values[:3].transpose(1, 2, 0) + (1 - values[3])[..., None] * np.array(PAPER)
    pixels = np.rint(colors).clip(0, 255).astype(np.uint8)
    scale = WIDTH // len(pixels)
    large = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    with files.replacing(path) as beside:
        Image.fromarray(large).save(beside, format="PNG", optimize=True)


def main() -> int:
    for name, script in model_scripts().items():
        files.write_text(LIVE / "models" / name, script)
        print(f"{name}: {len(script):,} bytes")
    (LIVE / "stills").mkdir(exist_ok=True)
    for demo, draw in STILLS.items():
        save_still(draw(), LIVE / "stills" / f"{demo}.png")
        print(f"stills/{demo}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
