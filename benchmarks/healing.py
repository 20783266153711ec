"""Measure whether grown images stay and heal: bits per pixel over further steps, and the error after damage.

    python benchmarks/healing.py doubling-mnist-small regrowing-mnist-small maturing-mnist-small

For shipped weights or the folders of runs; the figures go into `results/healing.json`, one entry for each name. All
steps are counted from the end of the growth, and every image starts from the mean of its posterior. A call that was cut
goes on when it is repeated.

An entry has three parts. `stability`: the bits per pixel of the test images, and how far the pixels moved, without any
damage. `recovery`: the same distance after a square hole of 25, 50 or 75 % of the cells. `repeated`: a new hole of
25 % every 64 steps. A distance is a mean over pixels (in the latest hole, outside it, everywhere) and images: `error`
of the absolute difference between a pixel's probability and that in the grown, undamaged image; `flips` the share of
pixels on the other side of one half. Where an image has numbers too large for float32 there is no mean: the figure is
null, and `finite` says how many images are left.
"""

import argparse
import datetime
import hashlib
import json
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from vnca import data, evaluation, files, hardware, healing, pretrained
from vnca.checks import differences
from vnca.decoders import crop
from vnca.seeds import seed_of
from vnca.vae import VAE, ModelConfig

RESULT = Path(__file__).resolve().parent.parent / "results" / "healing.json"
SEED = 0  # of the holes
CHUNKS = {"cpu": 16, "cuda": 200}  # images worked on at once

STABILITY = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # steps after the growth
SHARES = (0.25, 0.5, 0.75)  # of the cells, damaged
RECOVERY = (*range(65), 80, 96, 128, 160, 192, 256)  # steps after the damage
REPEATED = 0.25  # share of the cells damaged in each round
ROUNDS = 5
ROUND = (0, 1, 2, 4, 8, 16, 32, 64)  # steps after each damage

PLACES = ("inside", "outside", "everywhere")  # of the latest hole
Measure = Callable[[Tensor], Tensor]  # a cell state (B, C, 32, 32) -> (M, B), NaN for images that are not finite


def follow(decoder: torch.nn.Module, state: Tensor, points: Sequence[int], ask: Measure) -> tuple[Tensor, Tensor]:
    """What `ask` says of the states at some of the steps after `state`: `(T, M, B)`, and the last state."""
    rows = []
    for step, current in enumerate(healing.go_on(decoder, state, points[-1])):
        if step in points:
            rows.append(ask(current))
            if rows[-1].isnan().all():  # and will be forever
                current = torch.full_like(state, math.nan)
                break
    rows += [torch.full_like(rows[0], math.nan)] * (len(points) - len(rows))
    return torch.stack(rows), current


def finite_only(values: Tensor, logits: Tensor) -> Tensor:
    """`(M, B)` in double precision, with NaN for each image that has logits `(B, 1, 28, 28)` which are not finite."""
    finite = logits.isfinite().flatten(1).all(dim=1)  # (B,)
    return values.double().masked_fill(~finite, math.nan)


def distances(state: Tensor, undamaged: Tensor, hole: Tensor) -> Tensor:
    """Error and flips, each in the hole, outside and everywhere: `(6, B)`.

    Args:
        state: cell state `(B, C, 32, 32)`.
        undamaged: logits of the grown image `(B, 1, 28, 28)`.
        hole: `(B, 1, 28, 28)` bool.
    """
    logits = healing.image(state)
    places = (hole, ~hole, torch.ones_like(hole))
    changes = (healing.difference(logits, undamaged), healing.flips(logits, undamaged))
    return finite_only(torch.stack([healing.mean_where(c, place) for c in changes for place in places]), logits)


def bits_and_distances(state: Tensor, x: Tensor, undamaged: Tensor) -> Tensor:
    """Bits per pixel of the images `(B, 1, 28, 28)`, then error and flips everywhere: `(3, B)`."""
    logits = healing.image(state)
    changes = (healing.difference(logits, undamaged), healing.flips(logits, undamaged))
    rows = [healing.bits_per_pixel(logits.double(), x), *(change.double().mean(dim=(1, 2, 3)) for change in changes)]
    return finite_only(torch.stack(rows), logits)


# ------------------------------------------------------------------------------------------------ parts


class Subject:
    """A model, and the test images it is measured on.

    Args:
        name: of the weights, for the progress bar.
        model: a `VAE` with a decoder made of cells, on its device.
        images: `(N, 1, 28, 28)` binary.
    """

    def __init__(self, name: str, model: VAE, images: Tensor):
        self.name, self.model, self.images = name, model, images
        self.device = next(model.parameters()).device

    def over_images(self, part: str, run: Callable[[Tensor, Tensor, slice], Tensor]) -> Tensor:
        """Join what `run` returns, `(..., B)`, for the images of a chunk, their grown states and their places."""
        chunks = []
        size = CHUNKS[self.device.type]
        for first in tqdm(range(0, len(self.images), size), f"{self.name}, {part}", disable=None, leave=False):
            rows = slice(first, first + size)
            x = self.images[rows].to(self.device)
            chunks.append(run(x, healing.grown(self.model.decoder, self.model.encode(x).mean), rows).cpu())
        return torch.cat(chunks, dim=-1)


def stability(subject: Subject) -> dict:
    """Bits per pixel and distance from the grown image over further steps, without damage."""

    def run(x: Tensor, state: Tensor, _: slice) -> Tensor:
        ask = partial(bits_and_distances, x=x, undamaged=healing.image(state))
        return follow(subject.model.decoder, state, STABILITY, ask)[0]

    bits, error, flips = subject.over_images("stability", run).unbind(dim=1)  # (T, N) each
    finite = bits.isfinite()
    return {
        "steps": list(STABILITY),
        "bits_per_pixel": means(bits, finite),
        "standard_error": standard_errors(bits),
        "drift_standard_error": standard_errors(bits - bits[0]),  # each image against itself
        "error": means(error, finite),
        "flips": means(flips, finite),
        "finite": finite.sum(dim=1).tolist(),
    }


def rounds_of_damage(subject: Subject, part: str, share: float, rounds: int, points: Sequence[int]) -> list[dict]:
    """The distances from the grown image at some steps after each of several rounds of damage."""
    size = healing.hole_size(share)
    generator = torch.Generator().manual_seed(seed_of(SEED, "holes", part))
    corners = [healing.random_corners(len(subject.images), size, generator) for _ in range(rounds)]

    def run(_: Tensor, state: Tensor, rows: slice) -> Tensor:
        undamaged, curves = healing.image(state), []
        for places in corners:
            state, hole = healing.damage_each(state, places[rows], size)
            ask = partial(distances, undamaged=undamaged, hole=crop(hole))
            values, state = follow(subject.model.decoder, state, points, ask)
            curves.append(values)
        return torch.stack(curves)  # (R, T, 6, B)

    return [summary(values, points) for values in subject.over_images(part, run)]


def summary(values: Tensor, points: Sequence[int]) -> dict:
    """One round's figures, from `(T, 6, N)`."""
    error, flips = values.split(len(PLACES), dim=1)  # (T, 3, N) each
    finite = error[:, PLACES.index("everywhere")].isfinite()  # (T, N)
    return {
        "steps": list(points),
        "error": {place: means(error[:, i], finite) for i, place in enumerate(PLACES)},
        "standard_error": standard_errors(error[:, PLACES.index("everywhere")]),
        "flips": {place: means(flips[:, i], finite) for i, place in enumerate(PLACES)},
        "finite": finite.sum(dim=1).tolist(),
    }


def recovery(subject: Subject, share: float) -> dict:
    """The distances after one hole."""
    (curve,) = rounds_of_damage(subject, f"recovery {share:.0%}", share, 1, RECOVERY)
    return {"size": healing.hole_size(share), **curve}


def repeated(subject: Subject) -> dict:
    """The distances in rounds of damage, each with a hole at another place."""
    rounds = rounds_of_damage(subject, "repeated damage", REPEATED, ROUNDS, ROUND)
    return {"size": healing.hole_size(REPEATED), "rounds": rounds}


PARTS: dict[str, Callable[[Subject], dict]] = {
    "stability": stability,
    **{f"recovery {share:.0%}": partial(recovery, share=share) for share in SHARES},
    "repeated": repeated,
}

# ------------------------------------------------------------------------------------------------ figures


def means(values: Tensor, finite: Tensor) -> list[float | None]:
    """The means over images, `(T, N)` and `(T, N)` bool -> T figures, None where an image is not finite.

    An image without any pixel at the place in question, such as outside a hole that covers it all, is left out.
    """
    return [number(row.nanmean()) if whole else None for row, whole in zip(values, finite.all(dim=1), strict=True)]


def standard_errors(values: Tensor) -> list[float | None]:
    """The standard errors of the means over images, `(T, N)` -> T figures, None where an image is not finite."""
    return [number(row.std() / len(row) ** 0.5) for row in values]


def number(value: Tensor) -> float | None:
    """Five digits of it, or None if it is not finite."""
    return float(f"{value.item():.5g}") if value.isfinite() else None


# ------------------------------------------------------------------------------------------------ the program


def prepare(weights: str, limit: int) -> tuple[Subject, dict]:
    """What is measured, and what determines the figures, as JSON values by name.

    Raises:
        ValueError: if the weights cannot be measured, or `limit` is below 2.
        vnca.data.DataError: if the data cannot be had.
    """
    if limit < 2:
        raise ValueError(f"a mean with a standard error needs a --limit of at least 2 images, not {limit}")
    folder = pretrained.find(weights)
    config, model = pretrained.read_config(folder), pretrained.load(folder)
    kind = ModelConfig(**config["model"]).decoder
    if not hasattr(model.decoder, "update"):
        raise ValueError(f"{weights} has no cells that could heal: its decoder is {kind!r}")
    if "training" not in config:
        raise ValueError(f"{folder / 'config.json'} does not say on which data the weights were trained")
    data_name = config["training"]["data"]
    images = evaluation.choose(data.binarize(data.load(data_name, "test").tensors[0]), limit)
    identity = {
        "decoder": kind,
        "growth_steps": sum(event == "step" for event, _ in model.decoder.schedule()),
        "weights_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "data": data_name,
        "split": "test",
        "images": len(images),
        "seed": SEED,
    }
    model.to(hardware.best_device(), memory_format=torch.channels_last)
    return Subject(folder.resolve().name, model, images), identity


def measure(subject: Subject, identity: dict, out: Path, overwrite: bool) -> dict:
    """Measure the parts that `out` does not hold yet, and write the entry after each; returns it.

    Raises:
        ValueError: if `out` holds another measurement of these weights and `overwrite` is False, or its folder does
            not exist.
        OSError: if `out` cannot be written.
    """
    if not out.parent.is_dir():
        raise ValueError(f"--out {out} lies in a folder that does not exist")
    entry = identity | {"parts": {}}
    if not overwrite:
        entry |= kept(out, subject.name, identity)
    for part in PARTS:
        if part not in entry["parts"]:
            started = time.monotonic()
            # float32 is float32 on a GPU, too
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                figures = PARTS[part](subject)
            entry["parts"][part] = figures | {
                "minutes": round((time.monotonic() - started) / 60, 2),
                "hardware": f"{hardware.machine(subject.device)}, float32",
                "commit": hardware.commit(),
                "date": datetime.date.today().isoformat(),
            }
            write(out, read(out) | {subject.name: entry})
    return entry


def kept(out: Path, name: str, identity: dict) -> dict:
    """The entry that `out` holds of these weights, or nothing; raises `ValueError` if it is of another measurement."""
    entry = read(out).get(name, {})
    if entry and (others := differences({key: entry.get(key) for key in identity}, identity)):
        raise ValueError(
            f"{out} holds another measurement of {name}: {'; '.join(others)}. Add --overwrite to replace it, "
            "or name another file with --out"
        )
    return entry


def read(out: Path) -> dict:
    """The entries of a file by name, none if it does not exist; raises `ValueError` if it cannot be read."""
    if not out.exists():
        return {}
    try:
        return dict(json.loads(out.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{out} cannot be read ({error}): remove it, or name another file with --out") from None


def write(out: Path, entries: dict) -> None:
    """Write the entries, each list of numbers on one line."""
    text = json.dumps(entries, indent=2, allow_nan=False)
    one_line = re.sub(r"\[[-+.,\de\snul]*\]", lambda numbers: "[" + " ".join(numbers[0][1:-1].split()) + "]", text)
    files.write_text(out, one_line + "\n")


def show(name: str, entry: dict) -> None:
    """Print an entry as a table."""
    parts = entry["parts"]
    images, minutes = entry["images"], sum(part["minutes"] for part in parts.values())
    print(f"{name}: {images} images of {entry['data']} {entry['split']}, {minutes:.1f} minutes; after so many steps:")
    row("bits per pixel", parts["stability"], parts["stability"]["bits_per_pixel"], (0, 50, 200, 1000))
    row("error, no damage", parts["stability"], parts["stability"]["error"], (0, 50, 200, 1000))
    for share in SHARES:
        curve = parts[f"recovery {share:.0%}"]
        for place in ("inside", "outside"):
            row(f"error, {share:.0%} damaged, {place}", curve, curve["error"][place], (0, 8, 16, 64, 256))
    for i, curve in enumerate(parts["repeated"]["rounds"], start=1):
        row(f"error, damage {i} of {ROUNDS}, everywhere", curve, curve["error"]["everywhere"], (0, 8, 16, 64))


def row(label: str, curve: dict, values: list[float | None], points: Sequence[int]) -> None:
    """Print the values after some of the steps."""
    at = dict(zip(curve["steps"], values, strict=True))
    cells = (f"{step:5,}: {'not finite' if at[step] is None else format(at[step], '.4g'):10}" for step in points)
    print(f"  {label:34}", *cells)


def main(arguments: list[str] | None = None) -> int:
    """Measure each of the given weights; 0, or 1 if it failed or was stopped, or 2 for bad arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", help="shipped weights or the folder of a run")
    parser.add_argument("--limit", type=int, default=100, help="test images, drawn at random (default: 100)")
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON file (default: results/healing.json)")
    parser.add_argument("--overwrite", action="store_true", help="measure anew what the file holds already")
    options = parser.parse_args(arguments)
    try:
        for weights in options.weights:
            subject, identity = prepare(weights, options.limit)
            show(subject.name, measure(subject, identity, options.out, options.overwrite))
    except ValueError as error:
        print(f"healing: {error}", file=sys.stderr)
        return 2
    except (data.DataError, OSError) as error:
        print(f"healing: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same call goes on from here")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
