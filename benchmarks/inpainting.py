"""Measure how well models predict missing pixels: four masks, test images of binarized MNIST, and two baselines.

    OMP_NUM_THREADS=1 python benchmarks/inpainting.py doubling-mnist-small regrowing-mnist-small

For shipped weights or the folders of runs; without names the baselines alone. Each pair of model and mask is a row of
`results/inpainting.json`, written as soon as it is measured. A call that was cut goes on when it is repeated, and rows
that are there already are kept as long as weights, images and settings are the same.

A row holds three means over images, each with its standard error:

- `nats_per_pixel`: log p(x_m | x_o) over the number of missing pixels. For a model it is log p(x) - log p(x_o), both
  estimated by `vnca.evidence.evidence`; `bounds` says between what it lies.
- `squared_error`: mean over missing pixels of the squared difference between the image and its mean completion p.
- `expected_error`: mean over missing pixels of p (1 - p). It is what the squared error would be if pixels were white as
  often as p says; where the squared error is larger, the prediction is too sure of itself.

The baselines predict each missing pixel independently of the others. `pixel mean` takes its mean over the training
images. `neighbors` takes its mean over the k training images nearest to the observed pixels (Hamming distance), mixed
with the pixel mean; k and the share of the latter are those of the highest likelihood on validation images, chosen for
each mask, and `settings` names them.
"""

import argparse
import datetime
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from vnca import data, evaluation, evidence, files, hardware, inpainting, masks, pretrained
from vnca.seeds import seed_of
from vnca.vae import VAE

RESULT = Path(__file__).resolve().parent.parent / "results" / "inpainting.json"
DATA = "binarized-mnist"
SEED = 0
BATCH = inpainting.GROUP  # images between two writes of what is kept
CHAINS = 4  # of each image, for the upper bounds and the mean completions
ITERATIONS = 16  # of each chain

NEIGHBORS = (1, 2, 4, 8, 16, 32, 64, 128)
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)  # of the pixel mean in the prediction of the neighbors


class Table:
    """The rows of the result file, each written as soon as it is there."""

    def __init__(self, path: Path, x: Tensor):
        self.path = path
        self.head = {"data": DATA, "split": "test", "images": len(x), "seed": SEED}
        self.rows = json.loads(path.read_text())["rows"] if path.exists() else []

    def has(self, model: str, mask: str, identity: dict) -> bool:
        return any((row["model"], row["mask"], row["identity"]) == (model, mask, identity) for row in self.rows)

    def put(self, row: dict) -> None:
        row |= {"date": datetime.date.today().isoformat(), "commit": hardware.commit()}
        self.rows = [other for other in self.rows if (other["model"], other["mask"]) != (row["model"], row["mask"])]
        self.rows.append(row)
        files.write_json(self.path, {**self.head, "rows": self.rows})
        print(
            f"{row['model']}, {row['mask']}: {row['nats_per_pixel'][0]:.4f} ± {row['nats_per_pixel'][1]:.4f} nats, "
            f"squared error {row['squared_error'][0]:.4f} ± {row['squared_error'][1]:.4f} per missing pixel",
            flush=True,
        )


def digest(*tensors: Tensor) -> str:
    """What tells tensors from others."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.contiguous().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def mean_and_error(values: Tensor) -> list[float]:
    return [values.mean().item(), (values.std() / len(values) ** 0.5).item()]


def hidden_by(mask: str, n: int) -> Tensor:
    """The masks `(n, 1, 28, 28)` of that name; "none" hides nothing."""
    return masks.center_square(n, 0) if mask == "none" else masks.MASKS[mask](n)


def over_missing(values: Tensor, observed: Tensor) -> Tensor:
    """Mean over the missing pixels, 0 where there are none: two `(N, 1, 28, 28)` -> `(N,)`."""
    missing = ~observed.flatten(1)
    return (values.flatten(1) * missing).sum(dim=1) / missing.sum(dim=1).clamp(min=1)


def errors(prediction: Tensor, x: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """The squared error and the expected one: three `(N, 1, 28, 28)` -> `(N,)` each."""
    spread = prediction * (1 - prediction)
    return over_missing((prediction - x).square(), observed), over_missing(spread, observed)


# ------------------------------------------------------------------------------------------------------- models


@dataclass(frozen=True)
class Measured:
    """What was measured on N images: `(N,)` each, but for the last.

    Attributes:
        log_likelihood: estimates of log p(x_o) in nats.
        upper: upper bounds of log p(x_o) in nats.
        squared_error, expected_error: of the mean completion, mean over missing pixels.
        seconds: the time it took.
    """

    log_likelihood: Tensor
    upper: Tensor
    squared_error: Tensor
    expected_error: Tensor
    seconds: float


FIGURES = 4  # of each image


@torch.no_grad()
def measure(model: VAE, x: Tensor, mask: str, num_samples: int, kept: evaluation.Kept, bar: tqdm) -> Measured:
    """log p(x_o) and the error of the mean completion, batch by batch; goes on from what is kept."""
    observed = hidden_by(mask, len(x))
    device = next(model.parameters()).device
    values, seconds = kept.load()
    bar.reset(len(x))
    for first in range(0, len(x), BATCH):
        part = slice(first, first + BATCH)
        images, seen = x[part].to(device), observed[part].to(device)
        bar.update(len(images))
        if len(values) > FIGURES * first:
            continue
        started = time.monotonic()
        # Of the mask and the batch alone, so that a measurement that was cut goes on as it would have.
        generator = torch.Generator().manual_seed(seed_of(SEED, mask, first))
        with hardware.autocast(device):
            found = evidence.evidence(model, images, seen, num_samples, generator, chains=CHAINS, iterations=ITERATIONS)
        rows = torch.stack([found.log_likelihood, found.upper, *errors(found.completion, images, seen)], dim=1)
        values += rows.double().flatten().tolist()
        seconds += time.monotonic() - started
        kept.save(values, seconds)
    return Measured(*torch.tensor(values, dtype=torch.float64).view(-1, FIGURES).T, seconds)


def row_of_model(whole: Measured, part: Measured, missing: Tensor) -> dict:
    """A row from log p(x), log p(x_o) and the number of missing pixels `(N,)`."""
    lower, upper = whole.log_likelihood - part.upper, whole.upper - part.log_likelihood
    middle = whole.log_likelihood - part.log_likelihood
    return {
        "nats_per_pixel": mean_and_error(middle / missing),
        "squared_error": mean_and_error(part.squared_error),
        "expected_error": mean_and_error(part.expected_error),
        "bounds": {"lower": mean_and_error(lower / missing), "upper": mean_and_error(upper / missing)},
        "minutes": round(part.seconds / 60, 2),
        "minutes_whole_images": round(whole.seconds / 60, 2),  # of log p(x), which all masks share
    }


def measure_model(name: str, x: Tensor, names: Sequence[str], num_samples: int, table: Table, overwrite: bool) -> None:
    """All rows of a model."""
    folder = pretrained.find(name)
    config = pretrained.read_config(folder)
    if config.get("training", {}).get("data") != DATA:
        raise ValueError(f"{folder} was not trained on {DATA}, and so its likelihoods compare with no other's here")
    name, device = folder.resolve().name, hardware.best_device()
    model = pretrained.load(folder).to(device, memory_format=torch.channels_last)
    settings = {
        "weights": digest(*model.state_dict().values()),
        "pixels": digest(x),
        "num_samples": num_samples,
        "chains": CHAINS,
        "iterations": ITERATIONS,
        "precision": "bfloat16 autocast" if hardware.has_bfloat16(device) else "float32",
        "seed": SEED,
    }
    wanted = [mask for mask in names if overwrite or not table.has(name, mask, settings)]
    if not wanted:
        return
    kept = {}
    for mask in ("none", *wanted):
        path = table.path.with_name(f"{table.path.name}.{name}.{mask.replace(' ', '-')}.part.safetensors")
        kept[mask] = evaluation.Kept(path, {**settings, "mask": mask})
        if overwrite:
            kept[mask].remove()
    with tqdm(disable=None, unit=" images", leave=False) as bar:
        bar.set_description(f"{name}, whole images")
        whole = measure(model, x, "none", num_samples, kept["none"], bar)
        for mask in wanted:
            bar.set_description(f"{name}, {mask}")
            part = measure(model, x, mask, num_samples, kept[mask], bar)
            row = row_of_model(whole, part, (~hidden_by(mask, len(x))).flatten(1).sum(dim=1))
            about = {"model": name, "decoder": config["model"]["decoder"], "mask": mask, "identity": settings}
            table.put({**about, **row, "machine": hardware.machine(device)})
            kept[mask].remove()
    kept["none"].remove()


# ---------------------------------------------------------------------------------------------------- baselines


def independent(probability: Tensor, x: Tensor, observed: Tensor) -> Tensor:
    """Nats per missing pixel `(N,)` of pixels that are independent with these probabilities `(N, 784)`."""
    missing = ~observed.flatten(1)
    per_pixel = -F.binary_cross_entropy(probability, x.flatten(1), reduction="none")
    return (per_pixel * missing).sum(dim=1) / missing.sum(dim=1)


def nearest(x: Tensor, observed: Tensor, train: Tensor, count: int) -> Tensor:
    """Indices `(N, count)` of the training images `(M, 784)` nearest on the observed pixels, the nearest first."""
    found = []
    for image, seen in zip(x.flatten(1).split(100), observed.flatten(1).float().split(100), strict=True):
        agreements = (image * seen) @ train.T + ((1 - image) * seen) @ (1 - train).T  # (100, M), of binary pixels
        found.append(agreements.topk(count, dim=1).indices)
    return torch.cat(found)


def neighbor_means(x: Tensor, observed: Tensor, train: Tensor) -> dict[int, Tensor]:
    """For each k the mean `(N, 784)` of the k nearest training images."""
    indices = nearest(x, observed, train, max(NEIGHBORS))
    return {k: torch.stack([train[row[:k]].mean(dim=0) for row in indices]) for k in NEIGHBORS}


def measure_baselines(
    x: Tensor, train: Tensor, valid: Tensor, names: Sequence[str], table: Table, overwrite: bool
) -> None:
    """The rows of both baselines, chosen on `valid`, from training images `(M, 784)`."""
    average = (train.sum(dim=0) + 0.5) / (len(train) + 1)  # in (0, 1) also where all training images agree
    settings = {"pixels": digest(x), "train": digest(train), "valid": digest(valid)}
    for mask in names:
        seen = hidden_by(mask, len(x))
        if overwrite or not table.has("pixel mean", mask, settings):
            put_baseline(table, "pixel mean", mask, settings, average.expand(len(x), -1), x, seen, {})
        if not overwrite and table.has("neighbors", mask, settings):
            continue
        seen_valid = hidden_by(mask, len(valid))
        means = neighbor_means(valid, seen_valid, train)
        scores = {
            (k, share): independent((1 - share) * means[k] + share * average, valid, seen_valid).mean().item()
            for k, share in itertools.product(NEIGHBORS, SHARES)
        }
        k, share = max(scores, key=scores.get)
        prediction = (1 - share) * neighbor_means(x, seen, train)[k] + share * average
        put_baseline(table, "neighbors", mask, settings, prediction, x, seen, {"k": k, "share_of_pixel_mean": share})


def put_baseline(
    table: Table, name: str, mask: str, identity: dict, probability: Tensor, x: Tensor, seen: Tensor, chosen: dict
) -> None:
    squared, expected = errors(probability.view_as(x), x, seen)
    table.put(
        {
            "model": name,
            "decoder": None,
            "mask": mask,
            "identity": identity,
            "nats_per_pixel": mean_and_error(independent(probability, x, seen)),
            "squared_error": mean_and_error(squared),
            "expected_error": mean_and_error(expected),
            "settings": chosen,
        }
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", nargs="*", help="names of shipped weights or folders of runs")
    parser.add_argument("--masks", nargs="+", default=list(masks.MASKS), choices=list(masks.MASKS))
    parser.add_argument("--images", type=int, default=500, help="test images, drawn at random (default: 500)")
    parser.add_argument("--num-samples", type=int, default=64, help="latents an image for each term (default: 64)")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--overwrite", action="store_true", help="measure rows again that are there already")
    options = parser.parse_args(arguments)
    test, valid, train = (data.load(DATA, split).tensors[0] for split in ("test", "valid", "train"))
    x = evaluation.choose(test, options.images)
    table = Table(options.out, x)
    valid = evaluation.choose(valid, options.images)
    measure_baselines(x, train.flatten(1), valid, options.masks, table, options.overwrite)
    for name in options.weights:
        measure_model(name, x, options.masks, options.num_samples, table, options.overwrite)
    return 0


if __name__ == "__main__":
    sys.exit(main())
