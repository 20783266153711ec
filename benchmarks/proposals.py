"""Measure what wider proposals add to the importance-weighted bound, image by image.

    python benchmarks/proposals.py doubling-mnist-small --split train --images 40 --trusts 0.85 0.7 0.55 0.4
    python benchmarks/proposals.py doubling-mnist --images 40 --trusts 0.7

For shipped weights or the folders of runs. The bound of 128 samples from the posterior itself, and once more from
`vnca.evaluation.wider(posterior, trust)` for each trust, on the same images with the same noise. Nothing about the
model changes, and both are lower bounds of the same log-likelihood. So the higher one is nearer to it.

Each of model, split and trust is a row of `results/proposals.json`, written as soon as it is measured; a call that was
cut goes on when it is repeated. A row holds both bounds, and in `gain` the mean difference with its standard error.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from vnca import data, evaluation, files, hardware, pretrained
from vnca.evaluation import Bounds
from vnca.vae import VAE

RESULT = Path(__file__).resolve().parent.parent / "results" / "proposals.json"
DATA = "binarized-mnist"
SAMPLES = 128
SEED = 0
KEY = ("model", "split", "trust")  # what there is one row of


def load_model(name: str) -> tuple[str, VAE]:
    """Name and model of shipped weights or of the folder of a run, on the best device."""
    folder = pretrained.find(name)
    if pretrained.read_config(folder).get("training", {}).get("data") != DATA:
        raise ValueError(f"{folder} was not trained on {DATA}, so its bounds there would say nothing")
    return folder.resolve().name, pretrained.load(folder).to(hardware.best_device())


def measure(model: VAE, x: torch.Tensor, trust: float, identity: dict, path: Path, title: str) -> Bounds:
    """The bounds of images `(N, 1, 28, 28)`, kept in a file until `measure_model` removes it."""
    kept = evaluation.Kept(path, identity | {"trust": trust})
    with tqdm(desc=f"{title}, trust {trust}", disable=None, unit=" samples", leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        bfloat16 = identity["precision"] != "float32"
        return evaluation.bounds(model, x, SAMPLES, SEED, trust=trust, bfloat16=bfloat16, kept=kept, progress=progress)


def write(path: Path, row: dict) -> None:
    """Add a row, in the place of an older one."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [other for other in rows if any(other[key] != row[key] for key in KEY)] + [row]
    files.write_json(path, {"data": DATA, "num_samples": SAMPLES, "seed": SEED, "rows": rows})


def measure_model(name: str, split: str, limit: int | None, trusts: list[float], out: Path) -> None:
    """All rows of a model."""
    name, model = load_model(name)
    device = hardware.best_device()
    x = evaluation.choose(data.load(DATA, split).tensors[0], limit)
    precision = "bfloat16 autocast" if hardware.has_bfloat16(device) else "float32"
    identity = {
        "weights": evaluation.digest(model.state_dict().values()),
        "pixels": evaluation.digest([x.bool()]),
        "num_samples": SAMPLES,
        "seed": SEED,
        "precision": precision,
    }
    paths = {trust: out.with_name(f"{out.name}.{name}.{split}.{trust}.part.safetensors") for trust in (1.0, *trusts)}
    plain = measure(model, x, 1.0, identity, paths[1.0], f"{name}, {split}")
    for trust in trusts:
        wide = measure(model, x, trust, identity, paths[trust], f"{name}, {split}")
        row = {
            "model": name,
            "split": split,
            "trust": trust,
            "images": len(x),
            "nats": plain.nats,
            "nats_wider": wide.nats,
            "gain": evaluation.mean_and_error(wide.iwaes - plain.iwaes),
            "minutes": round(plain.minutes + wide.minutes, 2),
            "machine": hardware.machine(device),
            "precision": precision,
            "date": datetime.date.today().isoformat(),
            "commit": hardware.commit(),
        }
        write(out, row)
        mean, error = row["gain"]
        print(f"{name}, {split}, trust {trust}: {mean:+.3f} ± {error:.3f} nats on {len(x)} images", flush=True)
    for path in paths.values():
        evaluation.Kept(path, {}).remove()


def trust(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"a trust is between 0 and 1, not {text}; 1 is measured anyway")
    return value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", help="names of shipped weights or folders of runs")
    parser.add_argument("--split", choices=("train", "test"), default="test", help="default: test")
    parser.add_argument("--images", type=int, help="so many images, drawn at random (default: all)")
    parser.add_argument("--trusts", type=trust, nargs="+", required=True, help="between 0 and 1", metavar="TRUST")
    parser.add_argument("--out", type=Path, default=RESULT, help="default: results/proposals.json")
    options = parser.parse_args(arguments)
    for name in options.weights:
        measure_model(name, options.split, options.images, options.trusts, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
