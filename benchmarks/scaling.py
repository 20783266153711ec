"""Measure how the cost of training grows: with cells, steps, channels, images a batch, and parameters.

    python benchmarks/scaling.py

The cost is the time of a forward and a backward pass, for each image. Along each axis one number changes and the
others stay at their base. A straight line through the logarithms of the upper points gives the exponent: cost grows
like the number to that power. Beside it stands the exponent of the counted multiply-adds. The last two axes add
parameters to the two kinds of decoder.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from train_step import DTYPES, RESULTS, machine_record, positive, result_path, start_moving, timed

from vnca import cells, hardware
from vnca.arithmetic import multiply_adds
from vnca.decoders import CellDecoder, ConvDecoder, DoublingDecoder
from vnca.files import write_json

BASES = {
    "cpu": {"side": 16, "steps": 4, "channels": 64, "batch": 8},
    "cuda": {"side": 32, "steps": 8, "channels": 256, "batch": 32},
}
VALUES = {
    "side": [4, 8, 16, 32, 64],
    "steps": [1, 2, 4, 8, 16],
    "channels": [32, 64, 128, 256, 512],
    "batch": [1, 2, 4, 8, 16, 32],
}
DECODERS = {
    "doubling": lambda size: DoublingDecoder(channels=64, hidden=size, steps=4),
    "conv": lambda size: ConvDecoder(latent_size=64, width=size),
}
SIZES = {"doubling": [32, 64, 128, 256], "conv": [8, 16, 32, 64]}
TINY = {"side": [2, 4, 8], "steps": [1, 2, 3], "channels": [2, 4, 8], "batch": [1, 2, 3]}
TINY_SIZES = {"doubling": [2, 4, 8], "conv": [1, 2, 4]}
FITTED = 3  # points, from the upper end of each axis


class Grid(CellDecoder):
    """Steps on a grid that does not grow: latents `(B, C)` -> cell state `(B, C, side, side)`."""

    def __init__(self, channels: int, steps: int, side: int):
        super().__init__()
        self.latent_size, self.steps, self.side = channels, steps, side
        self.update = cells.Update(channels, channels)

    def forward(self, z: Tensor) -> Tensor:
        state = cells.seed(z, self.side)  # (B, C, side, side)
        for _ in range(self.steps):
            state = self.step(state)
        return state


def grid_points(base: dict[str, int], values: dict[str, list[int]]) -> dict[str, list[tuple[int, nn.Module, int]]]:
    """For each axis its points: the number that changes, a module and the images of a batch."""
    axes = {}
    for axis, numbers in values.items():
        settings = [base | {axis: number} for number in numbers]
        axes[axis] = [
            (number, Grid(s["channels"], s["steps"], s["side"]), s["batch"])
            for number, s in zip(numbers, settings, strict=True)
        ]
    axes["cells"] = [(side**2, module, batch) for side, module, batch in axes.pop("side")]
    return axes


def decoder_points(sizes: dict[str, list[int]], batch: int) -> dict[str, list[tuple[int, nn.Module, int]]]:
    """For each kind of decoder its points: the parameters, the decoder and the images of a batch."""
    return {
        f"parameters ({kind})": [
            (sum(p.numel() for p in decoder.parameters()), decoder, batch) for decoder in map(DECODERS[kind], numbers)
        ]
        for kind, numbers in sizes.items()
    }


def training_pass(module: nn.Module, batch: int, device: torch.device) -> Callable[[], None]:
    """Forward and backward for random latents, in the arithmetic of training."""
    start_moving(module)
    module.to(device, memory_format=torch.channels_last)
    dtype = DTYPES[hardware.precision(device)]
    z = torch.randn(batch, module.latent_size, device=device)

    def run() -> None:
        module.zero_grad()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            made = module(z)
        made.float().square().mean().backward()

    return run


def exponent(numbers: list[float], costs: list[float]) -> float:
    """The slope of a least-squares line through the logarithms of the last `FITTED` points."""
    logs = [[math.log(value) for value in values[-FITTED:]] for values in (numbers, costs)]
    return statistics.linear_regression(*logs).slope


def measure(axes: dict[str, list[tuple[int, nn.Module, int]]], rounds: int, device: torch.device) -> dict[str, dict]:
    """Every point's cost, in turns, and each axis's exponents."""
    points = [(axis, *point) for axis, some in axes.items() for point in some]
    passes = [training_pass(module, batch, device) for _, _, module, batch in points]
    for run in passes:
        run()
    times = [[timed(run, device) for run in passes] for _ in range(rounds)]
    results = {axis: {"points": []} for axis in axes}
    for (axis, number, module, batch), seconds in zip(points, zip(*times, strict=True), strict=True):
        results[axis]["points"].append(
            {
                "value": number,
                "batch": batch,
                "parameters": sum(p.numel() for p in module.parameters()),
                "multiply_adds": multiply_adds(module, (module.latent_size,)),
                "seconds_per_image": statistics.median(seconds) / batch,
            }
        )
    for result in results.values():
        numbers, costs, products = (
            [point[key] for point in result["points"]] for key in ("value", "seconds_per_image", "multiply_adds")
        )
        result |= {"exponent": exponent(numbers, costs), "arithmetic_exponent": exponent(numbers, products)}
    return results


def table(results: dict[str, dict]) -> str:
    lines = ["axis                     value  parameters  million multiply-adds  ms an image"]
    for axis, result in results.items():
        for point in result["points"]:
            millions, milliseconds = point["multiply_adds"] / 1e6, 1e3 * point["seconds_per_image"]
            lines.append(
                f"{axis:22} {point['value']:>7,} {point['parameters']:>11,} {millions:>22,.1f} {milliseconds:>12.3f}"
            )
        measured, counted = result["exponent"], result["arithmetic_exponent"]
        lines.append(f"{axis:22} exponent {measured:.2f}, of the arithmetic {counted:.2f}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=5, help="turns of each point; medians count")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    parser.add_argument("--tiny", action="store_true", help="rehearse with a few cells")
    options = parser.parse_args(arguments)
    if options.tiny and options.out == RESULTS:
        parser.error("--tiny needs --out, so that it overwrites no real figures")
    device = hardware.best_device()
    torch.manual_seed(0)
    base = BASES[device.type] | ({"side": 4, "steps": 1, "channels": 4, "batch": 2} if options.tiny else {})
    axes = grid_points(base, TINY if options.tiny else VALUES)
    axes |= decoder_points(TINY_SIZES if options.tiny else SIZES, base["batch"])
    record = machine_record(device)
    print(f"{record['hardware']}, {record['threads']} threads, PyTorch {record['torch']}; base {base}", flush=True)
    results = measure(axes, options.rounds, device)
    path = result_path(options.out, "scaling", device)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record | {"base": base, "rounds": options.rounds, "fitted_points": FITTED, "axes": results})
    print(table(results))
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
