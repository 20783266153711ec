"""Evaluate shipped weights on all test images in several sittings, on whatever machines there are.

    python scripts/in_sittings.py weighted-mnist --minutes 120

`python -m vnca evaluate` goes on where it was cut, on a machine of the same kind. For a model of the paper's size it
takes half a day on two CPU cores. This script goes image by image, in a random order, and keeps the bounds in a file of
`results/` that can be carried from machine to machine: also into the repository, until it is complete. The noise of an
image is that of `evaluate`, so its bounds are the same wherever they are computed, up to the rounding in 16 bits.

After the last image it writes `results/NAME.json` and, with the bounds of each image, `results/NAME.safetensors`.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from vnca import data, evaluation, files, hardware, pretrained
from vnca.checks import differences

RESULTS = Path(__file__).resolve().parent.parent / "results"
SAMPLES = 128
SEED = 0
SAVE_SECONDS = 60.0  # between two writes, and so what a kill costs


class Sittings:
    """The bounds of the images done so far, and where they were computed.

    Args:
        path: the file; it is written beside and renamed.
        identity: what determines the figures, as JSON values by name.
        images: how many there are in all.

    Raises:
        ValueError: if the file is of another evaluation.
    """

    def __init__(self, path: Path, identity: dict, images: int):
        self.path, self.identity = path, identity
        self.elbos = torch.full((images,), torch.nan, dtype=torch.float64)
        self.iwaes = torch.full((images,), torch.nan, dtype=torch.float64)
        self.minutes = {}  # by machine
        if path.exists():
            with safe_open(path, framework="pt") as file:
                self.elbos, self.iwaes = file.get_tensor("elbos"), file.get_tensor("iwaes")
                saved = json.loads(file.metadata()["evaluation"])
            if found := differences(saved["identity"], identity):
                raise ValueError(f"{path} is of another evaluation: {'; '.join(found)}. Move it away to start anew")
            self.minutes = saved["minutes"]

    @property
    def done(self) -> Tensor:
        """Whether the bounds of an image are known, `(N,)`."""
        return ~self.iwaes.isnan()

    def save(self) -> None:
        """Write the file."""
        saved = json.dumps({"identity": self.identity, "minutes": self.minutes})
        files.write_tensors(self.path, {"elbos": self.elbos, "iwaes": self.iwaes}, {"evaluation": saved})


def go_on(model: torch.nn.Module, images: Tensor, sittings: Sittings, minutes: float) -> None:
    """Compute bounds for so many minutes at most, in a random order of the images, until all are done."""
    units_of = {"elbo": defaultdict(list), "iwae": defaultdict(list)}  # by image
    for unit in evaluation._units(len(images), SAMPLES):
        for image in range(unit.first, unit.last):
            units_of[unit.bound][image].append(unit)
    machine, started = hardware.machine(torch.device("cpu")), time.monotonic()
    before, saved = sittings.minutes.get(machine, 0.0), started

    def save() -> None:
        sittings.minutes[machine] = round(before + (time.monotonic() - started) / 60, 2)
        sittings.save()

    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED)).tolist()
    bar = tqdm(order, disable=None, unit=" images", initial=int(sittings.done.sum()))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), bar:
        for image in order:
            if sittings.done[image]:
                continue
            if time.monotonic() - started > 60 * minutes:
                break
            if sittings.elbos[image].isnan():  # those of some images come together
                (unit,) = units_of["elbo"][image]
                values = evaluation._bound(model, images, [unit], SEED, 1.0, None)
                sittings.elbos[unit.first : unit.last] = torch.tensor(values, dtype=torch.float64)
            values = [evaluation._bound(model, images, [unit], SEED, 1.0, None) for unit in units_of["iwae"][image]]
            _, sittings.iwaes[image] = evaluation._combine([0.0, *sum(values, [])], 1, SAMPLES)
            bar.update()
            if time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
    save()


def finish(name: str, model: torch.nn.Module, config: dict, sittings: Sittings) -> None:
    """Write the result and the bounds of each image, and remove what was kept."""
    minutes = round(sum(sittings.minutes.values()), 2)
    measured = evaluation.Bounds(sittings.elbos, sittings.iwaes, SAMPLES, minutes)
    settings = {
        "machine": "; ".join(sittings.minutes),
        **{key: sittings.identity[key] for key in ("precision", "seed", "trust", "weights")},
        "commit": hardware.commit(),
    }
    indices = torch.arange(measured.images, dtype=torch.int32)
    of_each = {"indices": indices, "elbos": sittings.elbos.float(), "iwaes": sittings.iwaes.float()}
    files.write_tensors(RESULTS / f"{name}.safetensors", of_each, {"evaluation": json.dumps(sittings.identity)})
    files.write_json(RESULTS / f"{name}.json", evaluation._record(name, config, model, measured, settings))
    sittings.path.unlink()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=pretrained.available(), help="shipped weights")
    parser.add_argument("--minutes", type=float, required=True, help="how long this sitting may last")
    options = parser.parse_args(arguments)
    if not hardware.has_bfloat16(torch.device("cpu")):
        sys.exit("This machine does not multiply in bfloat16, in which the other sittings do.")
    hardware.keep_memory()
    config = pretrained.read_config(pretrained.find(options.name))
    model = pretrained.load(options.name).to(memory_format=torch.channels_last)
    images = data.binarize(data.load(config["training"]["data"], "test").tensors[0])
    identity = {
        "weights": evaluation.digest(model.state_dict().values()),
        "model": config["model"],
        "data": config["training"]["data"],
        "images": len(images),
        "pixels": evaluation.digest([images.bool()]),
        "num_samples": SAMPLES,
        "seed": SEED,
        "trust": 1.0,
        "precision": "bfloat16 autocast",
        "units": [evaluation.UNIT, evaluation.ELBO_IMAGES],
    }
    try:
        sittings = Sittings(RESULTS / f"{options.name}-sittings.safetensors", identity, len(images))
    except ValueError as error:
        sys.exit(str(error))
    go_on(model, images, sittings, options.minutes)
    done = sittings.done
    print(f"{options.name}: {int(done.sum()):,} of {len(images):,} images")
    if done.all():
        finish(options.name, model, config, sittings)


if __name__ == "__main__":
    main()
