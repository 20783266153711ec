"""How fast each tile of the fused steps' kernels is, call by call: microseconds, and terabytes a second.

    python benchmarks/kernels.py

A step of the paper's model, forward and backward, consists of seven kinds of calls and the 3 × 3 convolution. Each kind
is called for the cells of 128 images at 32 × 32 and at 16 × 16. The kernels then try their tiles, and this shows what
they found. Needs an NVIDIA GPU; `results/kernels-<GPU>.json` gets the table.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from train_step import RESULTS, machine_record, result_path

from vnca import files, kernels

CHANNELS, LAYERS = 256, 9  # of the paper's model
ROWS = (128 * 32 * 32, 128 * 16 * 16)
HALF, FULL = torch.bfloat16, torch.float32
LAYERS_OF = {  # the calls of `vnca.fused`: which tensors of all cells they read and write, and how
    "with ELU": ({}, {"elu": True, "turned": True}),
    "that adds": ({"added": HALF}, {}),
    "the last": ({"added": FULL, "out": FULL, "copy": HALF}, {"turned": True}),
    "the last, backward": ({}, {"backward": True, "turned": True}),
    "that adds, backward": ({"elu_result": HALF}, {"backward": True}),
    "with ELU, backward": ({"added": HALF}, {"backward": True, "turned": True}),
}


def calls(rows: int, device: torch.device) -> Iterator[tuple]:
    """Of each kind: its name, the kernel, a call, and how many bytes of all cells it moves."""
    new = partial(torch.randn, device=device)
    weight = (new(CHANNELS, CHANNELS) / CHANNELS**0.5).to(HALF)
    for kind, (tensors, settings) in LAYERS_OF.items():
        cells = {name: new(rows, CHANNELS).to(dtype) for name, dtype in ({"x": HALF, "out": HALF} | tensors).items()}
        bias = None if settings.get("backward") else new(CHANNELS)
        call = partial(kernels.pointwise, weight=weight, bias=bias, **cells, **settings)
        yield f"layer {kind}", kernels._pointwise, call, sum(tensor.nbytes for tensor in cells.values())
    gradients, inputs = new(2, LAYERS, rows, CHANNELS).to(HALF)
    parts = kernels.parts_of(weight.expand(LAYERS, -1, -1))
    sums = new(parts, LAYERS, CHANNELS, CHANNELS), new(parts, LAYERS, CHANNELS)
    call = partial(kernels.add_weight_gradients, gradients[1:], gradients[0], inputs[0], inputs[1:], *sums)
    yield "gradients of weights", kernels._add_weight_gradients, call, gradients.nbytes + inputs.nbytes


def tried(rows: int, device: torch.device) -> Iterator[dict]:
    """A row for each kind of call and each tile that runs on this GPU, the fastest first."""
    for kind, kernel, call, moved in calls(rows, device):
        kernel.cache.clear()
        call()
        for tile, (milliseconds, *_) in sorted(kernel.configs_timings.items(), key=lambda item: item[1][0]):
            if milliseconds < float("inf"):
                seconds = milliseconds / 1e3
                yield {"kind": kind, "rows": rows, "tile": tile.all_kwargs(), "seconds": seconds, "bytes": moved}


def main(arguments: list[str] | None = None, device: str = "cuda") -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="numbers of cells (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result (default: results)")
    options = parser.parse_args(arguments)
    gpu, found = torch.device(device), []
    if gpu.type == "cuda" and not torch.cuda.is_available():
        parser.error("this measures kernels of an NVIDIA GPU, and PyTorch finds none here")
    for rows in options.rows:
        for row in tried(rows, gpu):
            found.append(row)
            tile = ", ".join(f"{name} {value}" for name, value in row["tile"].items() if name != "num_ctas")
            speed = row["bytes"] / row["seconds"] / 1e12
            print(f"{rows:8,} {row['kind']:26} {1e6 * row['seconds']:8.1f} µs {speed:5.2f} TB/s  {tile}", flush=True)
    path = result_path(options.out, "kernels", gpu)
    files.write_json(path, machine_record(gpu) | {"channels": CHANNELS, "tiles": found})
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
