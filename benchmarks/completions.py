"""Measure how far mean completions are from the images: the masks, test images and baselines of `inpainting.py`.

    OMP_NUM_THREADS=1 python benchmarks/completions.py doubling-mnist-small conv-mnist-small

For shipped weights or the folders of runs. Each pair of model and mask is a row of `results/completions.json`, written
as soon as it is measured; a call that was cut goes on when it is repeated.

The mean completion p is the mean of p(x_m = 1 | z) over p(z | x_o). A row holds three means over images, each with its
standard error:

- `squared_error`: mean over missing pixels of (p - x)^2.
- `promised_error`: mean over missing pixels of p (1 - p). It is what the squared error would be if pixels were white as
  often as p says; where the squared error is larger, the prediction is too sure of itself.
- `behind_neighbors`: the squared error less that of the baseline `neighbors` on the same image.

Of a model's p there are only means of few chains. The square of such a mean is too large by its variance. So two
estimates p and p' are made that share nothing but the image, and (p - x) (p' - x) is the squared error and
(p + p') / 2 - p p' the promised one: both are right in expectation, however few the chains, as far as these have
converged.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from inpainting import (
    CHAINS,
    ITERATIONS,
    SEED,
    Table,
    hidden_by,
    images,
    in_batches,
    load_model,
    make_parser,
    neighbors,
    pixel_mean,
)
from torch import Tensor
from tqdm import tqdm

from vnca import evidence, hardware
from vnca.evaluation import digest, mean_and_error
from vnca.seeds import seed_of
from vnca.vae import VAE

RESULT = Path(__file__).resolve().parent.parent / "results" / "completions.json"


def over_missing(values: Tensor, observed: Tensor) -> Tensor:
    """Mean over the missing pixels: two `(N, 1, 28, 28)` -> `(N,)`."""
    missing = ~observed.flatten(1)
    return (values.flatten(1) * missing).sum(dim=1) / missing.sum(dim=1)


def errors(prediction: Tensor, twin: Tensor, x: Tensor, observed: Tensor) -> Tensor:
    """The squared error and the promised one of two independent estimates: four `(N, 1, 28, 28)` -> `(N, 2)`."""
    squared = (prediction - x) * (twin - x)
    promised = (prediction + twin) / 2 - prediction * twin
    return torch.stack([over_missing(squared, observed), over_missing(promised, observed)], dim=1)


def row_of(found: Tensor, reference: Tensor) -> dict:
    """A row from the errors `(2, N)` of a model and those of the neighbors."""
    return {
        "squared_error": mean_and_error(found[0]),
        "promised_error": mean_and_error(found[1]),
        "behind_neighbors": mean_and_error(found[0] - reference[0]),
    }


def measure(model: VAE, mask: str, x: Tensor, seen: Tensor, first: int) -> Tensor:
    """The errors `(N, 2)` of a model on a batch of images."""

    def completion(estimate: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of(SEED, mask, first, estimate))
        return evidence.evidence(model, x, seen, 1, generator, chains=CHAINS, iterations=ITERATIONS).completion

    return errors(completion(0), completion(1), x, seen)


def measure_model(
    name: str, x: Tensor, reference: dict[str, Tensor], names: Sequence[str], table: Table, overwrite: bool
) -> None:
    """All rows of a model; the reference are the errors `(2, N)` of the neighbors, by the mask."""
    name, model, config, identity = load_model(name, x)
    for mask in names:
        if table.has(name, mask, identity) and not overwrite:
            continue
        kept = table.kept(name, mask, identity)
        if overwrite:
            kept.remove()
        with tqdm(desc=f"{name}, {mask}", disable=None, unit=" images", leave=False) as bar:
            found, seconds = in_batches(lambda *batch, mask=mask: measure(model, mask, *batch), x, mask, kept, bar)
        table.put(
            {
                "model": name,
                "decoder": config["model"]["decoder"],
                "mask": mask,
                "identity": identity,
                **row_of(found, reference[mask]),
                "minutes": round(seconds / 60, 2),
                "machine": hardware.machine(hardware.best_device()),
            }
        )
        kept.remove()


def measure_baselines(
    x: Tensor, train: Tensor, valid: Tensor, names: Sequence[str], table: Table, overwrite: bool
) -> dict[str, Tensor]:
    """The rows of both baselines; the errors `(2, N)` of the neighbors, by the mask."""
    identity = {"pixels": digest([x]), "train": digest([train]), "valid": digest([valid])}
    reference = {}
    for mask in names:
        found = {"neighbors": neighbors(x, mask, train, valid), "pixel mean": pixel_mean(x, train)}
        for name, baseline in found.items():
            p = baseline.probability.view_as(x)
            values = errors(p, p, x, hidden_by(mask, len(x))).T
            reference.setdefault(mask, values)
            if table.has(name, mask, identity) and not overwrite:
                continue
            about = {"model": name, "decoder": None, "mask": mask, "identity": identity}
            table.put({**about, **row_of(values, reference[mask]), "settings": baseline.chosen})
    return reference


def main(arguments: list[str] | None = None) -> int:
    options = make_parser(__doc__, 128, RESULT).parse_args(arguments)
    x, train, valid = images(options.images)
    table = Table(options.out, x)
    reference = measure_baselines(x, train, valid, options.masks, table, options.overwrite)
    for name in options.weights:
        measure_model(name, x, reference, options.masks, table, options.overwrite)
    return 0


if __name__ == "__main__":
    sys.exit(main())
