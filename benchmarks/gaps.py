"""Measure how far the ELBO and the importance-weighted bound of a model lie below log p(x), image by image.

    python benchmarks/gaps.py conv-mnist doubling-mnist-small best-mnist-small --images 64
    python benchmarks/gaps.py doubling-mnist --images 16

For shipped weights or the folders of runs, on the same test images, drawn at random. Five figures for each of them:

- `elbo`: the ELBO with the encoder's Gaussian;
- `elbo_searched`: the ELBO with a Gaussian that a search from there finds, by the function of chapter 7;
- `bound`: the importance-weighted bound of 128 samples from the encoder's Gaussian, as results report it;
- `lower`, `upper`: bounds of log p(x) from both sides, by `vnca.evidence`, as far as its chains have converged.

Each model is a row of `results/gaps.json` that holds the figures of all images, written after every few of them; a call
that was cut, or one that asks for more images, goes on from there.
"""

import argparse
import datetime
import functools
import json
import sys
import time
from pathlib import Path

import torch
from proposals import load_model
from sharing import defined
from torch import Tensor

from vnca import data, evaluation, evidence, files, hardware
from vnca.seeds import seed_of
from vnca.vae import VAE

ROOT = Path(__file__).resolve().parent.parent
CHAPTER = ROOT / "book" / "07-past-the-paper.ipynb"
RESULT = ROOT / "results" / "gaps.json"
DATA = "binarized-mnist"
SEED = 0
AT_ONCE = 8  # images between two writes
SETTINGS = {"num_samples": 128, "samples_of_both_sides": 256, "chains": 4, "iterations": 16, "updates_of_search": 100}
FIGURES = ("elbo", "elbo_searched", "bound", "lower", "upper")


@functools.cache
def search() -> dict:
    """The functions with which chapter 7 searches for better Gaussians."""
    return defined(CHAPTER, ("imports", "search"))


def measure(model: VAE, x: Tensor, first: int) -> dict[str, list[float]]:
    """The figures of images `(B, 1, 28, 28)`, the first of which is number `first` of all."""
    cells = search()
    samples, generator = SETTINGS["num_samples"], torch.Generator().manual_seed(seed_of(SEED, f"gaps {first}"))
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(SEED, f"search {first}"))
        better = cells["searched"](model, x, SETTINGS["updates_of_search"])
        with torch.no_grad():
            elbo, elbo_searched = (cells["elbo_of"](model, x, q, samples) for q in (model.encode(x), better))
    bound = evaluation.bounds(model, x, samples, seed_of(SEED, f"bound {first}")).iwaes
    sides = evidence.evidence(
        model,
        x,
        torch.ones_like(x, dtype=torch.bool),
        SETTINGS["samples_of_both_sides"],
        generator,
        chains=SETTINGS["chains"],
        iterations=SETTINGS["iterations"],
    )
    found = (elbo, elbo_searched, bound, sides.log_likelihood, sides.upper)
    return {name: values.tolist() for name, values in zip(FIGURES, found, strict=True)}


def kept(out: Path) -> dict[str, dict]:
    """The rows that are there already, by model.

    Raises:
        ValueError: if they were measured with other settings.
    """
    if not out.exists():
        return {}
    table = json.loads(out.read_text())
    if table["settings"] != SETTINGS:
        raise ValueError(f"{out} was measured with {table['settings']}, not with {SETTINGS}: give another --out")
    return {row["model"]: row for row in table["rows"]}


def measure_model(name: str, images: int, out: Path) -> dict:
    """The row of a model, with figures of so many images."""
    name, model = load_model(name)
    model.requires_grad_(False)
    every = data.load(DATA, "test").tensors[0]
    device = hardware.best_device()
    x = evaluation.choose(every, images).to(device)  # the first of those that a call for more images would choose
    identity = {
        "weights": evaluation.digest(model.state_dict().values()),
        "pixels": evaluation.digest([every.bool()]),
    }
    row = kept(out).get(name)
    if row is None or row["identity"] != identity:
        row = {"model": name, "identity": identity, "minutes": 0.0, "figures": {key: [] for key in FIGURES}}
    row |= {"machine": hardware.machine(device), "precision": "float32", "commit": hardware.commit()}
    while (done := len(row["figures"]["elbo"])) < images:
        started = time.monotonic()
        for key, values in measure(model, x[done : done + AT_ONCE], done).items():
            row["figures"][key] += values
        row["minutes"] = round(row["minutes"] + (time.monotonic() - started) / 60, 2)
        row["date"] = datetime.date.today().isoformat()
        rows = [*(other for other in kept(out).values() if other["model"] != name), row]
        files.write_json(out, {"data": DATA, "split": "test", "seed": SEED, "settings": SETTINGS, "rows": rows})
    return row


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", help="names of shipped weights or folders of runs")
    parser.add_argument("--images", type=int, default=64, help="test images, drawn at random (default: 64)")
    parser.add_argument("--out", type=Path, default=RESULT, help="default: results/gaps.json")
    options = parser.parse_args(arguments)
    if options.images < 1 or options.images % AT_ONCE:  # else the noise would depend on where earlier calls ended
        parser.error(f"--images is a multiple of {AT_ONCE}, not {options.images}")
    for name in options.weights:
        row = measure_model(name, options.images, options.out)
        means = {key: sum(values) / len(values) for key, values in row["figures"].items()}
        print(f"{row['model']}: " + ", ".join(f"{key} {mean:.2f}" for key, mean in means.items()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
