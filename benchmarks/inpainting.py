"""Measure how well models predict missing pixels: four masks, test images of binarized MNIST, and two baselines.

    OMP_NUM_THREADS=1 python benchmarks/inpainting.py doubling-mnist-small regrowing-mnist-small

For shipped weights or the folders of runs; without names the baselines alone. Each pair of model and mask is a row of
`results/inpainting.json`, written as soon as it is measured. A call that was cut goes on when it is repeated, and rows
that are there already are kept as long as weights, images and settings are the same.

A row holds `nats_per_pixel`: log p(x_m | x_o) over the number of missing pixels, its mean over images and the mean's
standard error. For a model it is log p(x) - log p(x_o), both estimated by `vnca.evidence.evidence`; `bounds` says
between what it lies.

The baselines predict each missing pixel independently of the others. `pixel mean` takes its mean over the training
images. `neighbors` takes its mean over the k training images nearest to the observed pixels (Hamming distance), mixed
with the pixel mean; k and the share of the latter are those of the highest likelihood on validation images, chosen for
each mask, and `settings` names them. How far completions are from the images is measured by `completions.py`.
"""

import argparse
import datetime
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from vnca import data, evaluation, evidence, files, hardware, inpainting, masks, pretrained
from vnca.checks import differences
from vnca.evaluation import digest, mean_and_error
from vnca.seeds import seed_of
from vnca.vae import VAE

RESULT = Path(__file__).resolve().parent.parent / "results" / "inpainting.json"
DATA = "binarized-mnist"
SEED = 0
BATCH = inpainting.GROUP  # images between two writes of what is kept
CHAINS = 4  # of each image, for the upper bounds, and for each mean completion of `completions.py`
ITERATIONS = 16  # of each chain

VALID = 500  # validation images on which a baseline is chosen
NEIGHBORS = (1, 2, 4, 8, 16, 32, 64, 128)
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4)  # of the pixel mean in the prediction of the neighbors


class Table:
    """The rows of a result file, each written as soon as it is there.

    Raises:
        ValueError: if the file is there, and holds rows that were measured on other images or with another seed.
    """

    def __init__(self, path: Path, x: Tensor):
        self.path = path
        self.head = {"data": DATA, "split": "test", "images": len(x), "seed": SEED}
        found = json.loads(path.read_text()) if path.exists() else self.head
        if others := differences({name: found[name] for name in self.head}, self.head):
            raise ValueError(f"the rows of {path} were measured otherwise: {'; '.join(others)}; give another --out")

    @property
    def rows(self) -> list[dict]:
        """What is in the file now, also what another call has added to it."""
        return json.loads(self.path.read_text())["rows"] if self.path.exists() else []

    def has(self, model: str, mask: str, identity: dict) -> bool:
        return any((row["model"], row["mask"], row["identity"]) == (model, mask, identity) for row in self.rows)

    def put(self, row: dict) -> None:
        row |= {"date": datetime.date.today().isoformat(), "commit": hardware.commit()}
        others = [other for other in self.rows if (other["model"], other["mask"]) != (row["model"], row["mask"])]
        files.write_json(self.path, {**self.head, "rows": [*others, row]})
        figures = [
            f"{name.replace('_', ' ')} {value[0]:.4f} ± {value[1]:.4f}"
            for name, value in row.items()
            if isinstance(value, list)
        ]
        print(f"{row['model']}, {row['mask']}: {', '.join(figures)}", flush=True)

    def kept(self, model: str, mask: str, identity: dict) -> evaluation.Kept:
        """Where a measurement of that model leaves what it has so far."""
        path = self.path.with_name(f"{self.path.name}.{model}.{mask.replace(' ', '-')}.part.safetensors")
        return evaluation.Kept(path, {**identity, "mask": mask})


def hidden_by(mask: str, n: int) -> Tensor:
    """The masks `(n, 1, 28, 28)` of that name; "none" hides nothing."""
    return masks.center_square(n, 0) if mask == "none" else masks.MASKS[mask](n)


# ------------------------------------------------------------------------------------------------------- models


def load_model(name: str, x: Tensor) -> tuple[str, VAE, dict, dict]:
    """Name, model and config of shipped weights or of the folder of a run, and what determines its figures on `x`."""
    folder = pretrained.find(name)
    config = pretrained.read_config(folder)
    if config.get("training", {}).get("data") != DATA:
        raise ValueError(f"{folder} was not trained on {DATA}, and so its figures compare with no other's here")
    device = hardware.best_device()
    model = pretrained.load(folder).to(device, memory_format=torch.channels_last)
    identity = {
        "weights": digest(model.state_dict().values()),
        "pixels": digest([x]),
        "chains": CHAINS,
        "iterations": ITERATIONS,
        "precision": "bfloat16 autocast" if hardware.has_bfloat16(device) else "float32",
        "seed": SEED,
    }
    return folder.resolve().name, model, config, identity


Ask = Callable[[Tensor, Tensor, int], Tensor]  # images, their masks, where the first of them stands -> (N, 2)
FIGURES = 2  # of each image


@torch.no_grad()
def in_batches(ask: Ask, x: Tensor, mask: str, kept: evaluation.Kept, bar: tqdm) -> tuple[Tensor, float]:
    """What `ask` says of images `(N, 1, 28, 28)`, batch by batch: `(2, N)` float64, and the seconds it took.

    Goes on from what is kept. The noise of a batch is to depend on the mask and on the batch's place alone, so that a
    measurement that was cut goes on as it would have.
    """
    observed, device = hidden_by(mask, len(x)), hardware.best_device()
    values, seconds = kept.load()
    bar.reset(len(x))
    for first in range(0, len(x), BATCH):
        part = slice(first, first + BATCH)
        images, seen = x[part].to(device), observed[part].to(device)
        bar.update(len(images))
        if len(values) > FIGURES * first:
            continue
        started = time.monotonic()
        with hardware.autocast(device):
            values += ask(images, seen, first).double().flatten().tolist()
        seconds += time.monotonic() - started
        kept.save(values, seconds)
    return torch.tensor(values, dtype=torch.float64).view(-1, FIGURES).T, seconds


@dataclass(frozen=True)
class Measured:
    """Estimates and upper bounds of log p(x_o) of N images in nats, `(N,)` each, and the seconds they took."""

    log_likelihood: Tensor
    upper: Tensor
    seconds: float


def measure(model: VAE, x: Tensor, mask: str, num_samples: int, kept: evaluation.Kept, bar: tqdm) -> Measured:
    """log p(x_o) of images `(N, 1, 28, 28)`."""

    def ask(images: Tensor, seen: Tensor, first: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of(SEED, mask, first))
        found = evidence.evidence(model, images, seen, num_samples, generator, chains=CHAINS, iterations=ITERATIONS)
        return torch.stack([found.log_likelihood, found.upper], dim=1)

    (log_likelihood, upper), seconds = in_batches(ask, x, mask, kept, bar)
    return Measured(log_likelihood, upper, seconds)


def row_of_model(whole: Measured, part: Measured, missing: Tensor) -> dict:
    """A row from log p(x), log p(x_o) and the number of missing pixels `(N,)`."""
    lower, upper = whole.log_likelihood - part.upper, whole.upper - part.log_likelihood
    middle = whole.log_likelihood - part.log_likelihood
    return {
        "nats_per_pixel": mean_and_error(middle / missing),
        "bounds": {"lower": mean_and_error(lower / missing), "upper": mean_and_error(upper / missing)},
        "minutes": round(part.seconds / 60, 2),
        "minutes_whole_images": round(whole.seconds / 60, 2),  # of log p(x), which all masks share
    }


def measure_model(name: str, x: Tensor, names: Sequence[str], num_samples: int, table: Table, overwrite: bool) -> None:
    """All rows of a model."""
    name, model, config, identity = load_model(name, x)
    identity["num_samples"] = num_samples
    wanted = [mask for mask in names if overwrite or not table.has(name, mask, identity)]
    if not wanted:
        return
    kept = {mask: table.kept(name, mask, identity) for mask in ("none", *wanted)}
    if overwrite:
        for part in kept.values():
            part.remove()
    with tqdm(disable=None, unit=" images", leave=False) as bar:
        bar.set_description(f"{name}, whole images")
        whole = measure(model, x, "none", num_samples, kept["none"], bar)
        for mask in wanted:
            bar.set_description(f"{name}, {mask}")
            part = measure(model, x, mask, num_samples, kept[mask], bar)
            row = row_of_model(whole, part, (~hidden_by(mask, len(x))).flatten(1).sum(dim=1))
            about = {"model": name, "decoder": config["model"]["decoder"], "mask": mask, "identity": identity}
            table.put({**about, **row, "machine": hardware.machine(hardware.best_device())})
            kept[mask].remove()
    kept["none"].remove()


# ---------------------------------------------------------------------------------------------------- baselines


@dataclass(frozen=True)
class Baseline:
    """A prediction of each missing pixel by itself: probabilities `(N, 784)`, and what was chosen for it."""

    probability: Tensor
    chosen: dict


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


def pixel_mean(x: Tensor, train: Tensor) -> Baseline:
    """How often a pixel is white in the training images `(M, 784)`, for each of the images `x`."""
    average = (train.sum(dim=0) + 0.5) / (len(train) + 1)  # in (0, 1) also where all training images agree
    return Baseline(average.expand(len(x), -1), {})


def neighbors(x: Tensor, mask: str, train: Tensor, valid: Tensor) -> Baseline:
    """The mean of the nearest training images `(M, 784)`; their number and the pixel mean's share suit `valid` best."""
    seen_valid, average = hidden_by(mask, len(valid)), pixel_mean(x, train).probability[0]
    means = neighbor_means(valid, seen_valid, train)
    scores = {
        (k, share): independent((1 - share) * means[k] + share * average, valid, seen_valid).mean().item()
        for k, share in itertools.product(NEIGHBORS, SHARES)
    }
    k, share = max(scores, key=scores.get)
    prediction = (1 - share) * neighbor_means(x, hidden_by(mask, len(x)), train)[k] + share * average
    return Baseline(prediction, {"k": k, "share_of_pixel_mean": share})


def measure_baselines(
    x: Tensor, train: Tensor, valid: Tensor, names: Sequence[str], table: Table, overwrite: bool
) -> None:
    """The rows of both baselines, chosen on `valid`, from training images `(M, 784)`."""
    identity = {"pixels": digest([x]), "train": digest([train]), "valid": digest([valid])}
    for mask in names:
        for name, make in {
            "pixel mean": lambda: pixel_mean(x, train),
            "neighbors": lambda mask=mask: neighbors(x, mask, train, valid),
        }.items():
            if table.has(name, mask, identity) and not overwrite:
                continue
            found = make()
            nats = mean_and_error(independent(found.probability, x, hidden_by(mask, len(x))))
            about = {"model": name, "decoder": None, "mask": mask, "identity": identity}
            table.put({**about, "nats_per_pixel": nats, "settings": found.chosen})


def images(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Test images `(count, 1, 28, 28)` drawn at random, all training images `(M, 784)`, and some validation images."""
    test, valid, train = (data.load(DATA, split).tensors[0] for split in ("test", "valid", "train"))
    return evaluation.choose(test, count), train.flatten(1), evaluation.choose(valid, min(VALID, len(valid)))


def make_parser(doc: str, count: int, out: Path) -> argparse.ArgumentParser:
    """The options of a program with that docstring, which measures so many images unless told otherwise."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("weights", nargs="*", help="names of shipped weights or folders of runs")
    parser.add_argument("--masks", nargs="+", default=list(masks.MASKS), choices=list(masks.MASKS))
    parser.add_argument("--images", type=int, default=count, help=f"test images, drawn at random (default: {count})")
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--overwrite", action="store_true", help="measure rows again that are there already")
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser(__doc__, 500, RESULT)
    parser.add_argument("--num-samples", type=int, default=64, help="latents an image for each term (default: 64)")
    options = parser.parse_args(arguments)
    x, train, valid = images(options.images)
    table = Table(options.out, x)
    measure_baselines(x, train, valid, options.masks, table, options.overwrite)
    for name in options.weights:
        measure_model(name, x, options.masks, options.num_samples, table, options.overwrite)
    return 0


if __name__ == "__main__":
    sys.exit(main())
