"""Measure what a learned prior and importance-weighted training add to a trained VAE.

    OMP_NUM_THREADS=1 python benchmarks/recipes.py --work runs/recipes

Training goes on from `conv-mnist`, whose decoder is cheap, in four ways: as before, with a mixture prior, with the
importance-weighted bound of five samples, and with both. All decode the same number of latents, so they cost about the
same. Each, and `conv-mnist` itself, is measured on the same 1,000 test images with 128 samples. `results/recipes.json`
gets a row for each, as soon as it is measured; a call that was cut goes on when it is repeated.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from vnca import evaluation, files, training
from vnca.checkpoints import NAME as CHECKPOINT
from vnca.checks import differences
from vnca.presets import PRESETS, TrainConfig

RESULT = Path(__file__).resolve().parent.parent / "results" / "recipes.json"
START = "conv-mnist"
LATENTS = 320_000  # decoded in training, for each row
IMAGES = 1000
COMPONENTS = 500
SAMPLES = 5
KEPT = ("nats", "standard_error", "elbo", "elbo_standard_error", "images", "num_samples", "minutes", "hardware")


def recipes(latents: int) -> dict[str, TrainConfig | None]:
    """The ways to go on, by name; None stands for no further training."""
    common = replace(PRESETS["conv"].config, learning_rate=1e-3, kl_warmup=0, init_from=START)
    mixture = replace(common.model, components=COMPONENTS)
    one = replace(common, updates=latents // 64)
    several = replace(common, updates=latents // (32 * SAMPLES), batch_size=32, samples=SAMPLES)
    return {
        "not at all": None,
        "as before": one,
        "mixture prior": replace(one, model=mixture),
        "importance-weighted": several,
        "both": replace(several, model=mixture),
    }


def measure(config: TrainConfig | None, folder: Path, images: int, num_samples: int) -> dict:
    """Train into a folder, or go on there; then the row of the result."""
    if config is not None:
        training.train(config, folder, resume=(folder / CHECKPOINT).exists(), overwrite=True)
    result = evaluation.evaluate(START if config is None else str(folder), num_samples, images)
    return {key: result[key] for key in KEPT} | {"training": result["config"]["training"], "commit": result["commit"]}


def rows_there(path: Path, settings: dict) -> dict[str, dict]:
    """The rows that an earlier call has measured, by name.

    Raises:
        ValueError: if it did so with other settings.
    """
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    for row in found["rows"].values():
        if others := differences({name: (found | row)[name] for name in settings}, settings):
            raise ValueError(f"the rows of {path} were measured otherwise: {'; '.join(others)}; give another --out")
    return found["rows"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RESULT, help="the result (default: results/recipes.json)")
    parser.add_argument("--latents", type=int, default=LATENTS, help="decoded in training, for each row")
    parser.add_argument("--limit", type=int, default=IMAGES, help="test images")
    parser.add_argument("--num-samples", type=int, default=128, help="importance samples an image")
    options = parser.parse_args(arguments)
    head = {"start": START, "latents": options.latents}
    rows = rows_there(options.out, {**head, "images": options.limit, "num_samples": options.num_samples})
    for name, config in recipes(options.latents).items():
        if name not in rows:
            rows[name] = measure(config, options.work / name.replace(" ", "-"), options.limit, options.num_samples)
            files.write_json(options.out, {**head, "rows": rows})
        row = rows[name]
        print(f"{name:20} {row['nats']:8.2f} ± {row['standard_error']:.2f} nats, ELBO {row['elbo']:8.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
