"""Measure what it costs that all stages of the doubling decoder share one rule, at the size of chapter 3.

    python benchmarks/sharing.py --seeds 0 1 2
    python benchmarks/sharing.py --seeds 0 --updates 4400

Trains three VAEs of that chapter from each seed, with the chapter's own cells and as many updates: its VNCA; the one of
the exercise "To share or not to share", which has as many layers and operations but a rule for each stage; and the
convolutional VAE. Those of one seed see the same images in the same order. Each is a row of `results/sharing.json`,
written as soon as it is measured; a call that was cut goes on when it is repeated.
"""

import argparse
import datetime
import json
import sys
import time
from pathlib import Path

import nbformat
import torch

import vnca
from vnca import data, hardware
from vnca.evaluation import choose, mean_and_error
from vnca.files import write_json
from vnca.seeds import seed_of
from vnca.vae import VAE

ROOT = Path(__file__).resolve().parent.parent
CHAPTER = ROOT / "book" / "03-doubling-decoder.ipynb"
CELLS = ("imports", "rule", "seed-double", "decoder", "small-vae", "data", "train-loop", "updates", "share-decoder")
RESULT = ROOT / "results" / "sharing.json"
DECODERS = ("one rule", "a rule for each stage", "convolutional")
NUM_SAMPLES = 16
IMAGES_OF_BOUND = 1000


def defined(chapter: Path, names: tuple[str, ...]) -> dict:
    """What cells of a chapter define, run one after another in a fresh namespace."""
    sources = {cell.id: cell.source for cell in nbformat.read(chapter, as_version=4).cells}
    namespace = {"__name__": chapter.stem}
    for name in names:
        exec(compile(sources[name], f"{chapter.name}[{name}]", "exec"), namespace)
    return namespace


def chapter() -> dict:
    """What the cells define that the chapter trains its models with."""
    return defined(CHAPTER, CELLS)


def newborn(cells: dict, decoder: str, seed: int) -> VAE:
    """One of the three VAEs, untrained. Their encoders begin alike."""
    channels, shape = cells["channels"], {"hidden": 64, "steps": 2, "residual_blocks": 2}  # as the cell "small-model"
    builds = {
        "one rule": lambda: cells["DoublingDecoder"](channels, **shape),
        "a rule for each stage": lambda: cells["StagedDecoder"](channels, **shape),
        "convolutional": lambda: vnca.ConvDecoder(latent_size=channels, width=16),
    }
    torch.manual_seed(seed_of(seed, "weights"))
    model = cells["small_vae"](builds["one rule"]())
    if decoder != "one rule":
        model.decoder = builds[decoder]()
    return model


@torch.no_grad()
def measure(model: VAE, x: torch.Tensor) -> dict:
    """Means over test images and their standard errors, in nats."""
    generator = torch.Generator().manual_seed(0)
    elbos = torch.cat([vnca.elbo(model, part, generator=generator) for part in x.split(250)])
    some = choose(x, IMAGES_OF_BOUND)
    bounds = torch.cat([vnca.iwae(model, part, NUM_SAMPLES, generator=generator) for part in some.split(50)])
    found = {}
    for name, values in {"elbo": elbos, "bound": bounds}.items():
        found[name], found[f"{name}_standard_error"] = mean_and_error(values)
        found[f"{name}_images"] = len(values)
    return found


def row_of(cells: dict, decoder: str, seed: int, updates: int, x: torch.Tensor) -> dict:
    """Train one of the VAEs and measure it."""
    model = newborn(cells, decoder, seed)
    torch.manual_seed(seed_of(seed, "training"))  # the same images in the same order for each decoder
    started = time.monotonic()
    elbos, _ = cells["train"](model, updates)
    return {
        "decoder": decoder,
        "seed": seed,
        "updates": updates,
        "parameters": sum(p.numel() for p in model.decoder.parameters()),
        "last_training_elbo": sum(elbos[-100:]) / len(elbos[-100:]),
        **measure(model, x),
        "num_samples": NUM_SAMPLES,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "hardware": hardware.describe(torch.device("cpu")),
        "date": datetime.date.today().isoformat(),
    }


def kept(out: Path) -> list[dict]:
    """The rows that are measured already."""
    return json.loads(out.read_text())["rows"] if out.exists() else []


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--decoders", nargs="+", choices=DECODERS, default=DECODERS, metavar="DECODER")
    parser.add_argument("--updates", type=int, help="instead of the chapter's number")
    parser.add_argument("--limit", type=int, help="measure on so many test images instead of all")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    cells = chapter()
    updates = options.updates or cells["updates"]
    x = data.binarize(choose(cells["test_set"].tensors[0], options.limit))
    for seed in options.seeds:
        for decoder in options.decoders:
            if (decoder, seed, updates) in {(row["decoder"], row["seed"], row["updates"]) for row in kept(options.out)}:
                continue
            row = row_of(cells, decoder, seed, updates, x)
            # Read once more: another call may have measured other decoders meanwhile.
            write_json(options.out, {"data": cells["test_set"].name, "rows": [*kept(options.out), row]})
            print(f"{decoder}, seed {seed}, {updates:,} updates: ELBO {row['elbo']:.2f} nats, {row['minutes']} min")
    return 0


if __name__ == "__main__":
    sys.exit(main())
