"""Measure a training step: images a second, arithmetic a second, and memory.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --models paper --batches 32 128 512 --rows product plain ours ours+compile

A training step is forward, backward, clipping and Adam, as in `vnca.training`. Each row runs in a process of its own,
so that no row sees another's memory; the rows take turns for several rounds, and medians count. For the fastest row
of the package's model, the table is followed by what its time is spent on: kernels of a GPU, operators of a CPU. A row
is a base and what is changed about it, joined by `+`:
"""

import argparse
import datetime
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from vnca import hardware
from vnca.arithmetic import training_flops
from vnca.decoders import compile_update
from vnca.files import write_json
from vnca.vae import ModelConfig, build, elbo_terms

RESULTS = Path(__file__).resolve().parent.parent / "results"
MODELS = {
    "small": ModelConfig("doubling", 64, 8, {"hidden": 64, "steps": 4}),
    "paper": ModelConfig(),
    "tiny": ModelConfig("doubling", 4, 1, {"hidden": 4, "steps": 1}),
}
BATCHES = {"cpu": {"small": [64], "paper": [8]}, "cuda": {"small": [64, 1024], "paper": [128, 64, 512]}}
BASES = {
    "product": "a product of two large matrices alone, in the arithmetic of `ours`",
    "plain": "the model written the obvious way: float32, eager, nothing arranged in memory",
    "ours": "the package's model as the engine trains it: autocast, channels last, fused Adam, memory that is kept",
}
CHANGES = {
    "tf32": "lets float32 products be rounded to TF32",
    "layers": "takes the steps layer by layer instead of in fused kernels",
    "recompute": "computes each step a second time in the backward pass",
    "cudnn": "lets cuDNN try its algorithms for convolutions first",
    "matrix": "writes 1 × 1 convolutions as matrix products",
    "compile": "compiles the update",
    "autotune": "compiles the update, trying kernels first",
    "graph": "replays the whole step as one CUDA graph",
}
ROWS = {
    "cpu": ["product", "plain", "ours"],
    "cuda": [
        "product",
        "plain",
        "plain+tf32",
        "ours+cudnn+graph",
        "ours+graph",
        "ours",
        "ours+layers+graph",
        "ours+layers",
        "ours+recompute",
        "ours+compile+graph",
    ],
}
PROFILED = 3  # steps, after those that are timed
COSTLIEST = 12  # operations that are kept
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}


class PlainResidual(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.first = nn.Conv2d(hidden, hidden, 1)
        self.second = nn.Conv2d(hidden, hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.elu(self.first(x)))


class Plain(nn.Module):
    """The doubling VNCA and its loss, written the obvious way and without the package."""

    def __init__(self, latent_size: int, width: int, hidden: int, steps: int):
        super().__init__()
        self.steps = steps
        layers = [nn.Conv2d(1, width, 5, padding=2), nn.ELU()]
        for channels in (width, 2 * width, 4 * width, 8 * width):
            layers += [nn.Conv2d(channels, 2 * channels, 5, stride=2, padding=2), nn.ELU()]
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * width, 2 * latent_size))
        self.update = nn.Sequential(
            nn.Conv2d(latent_size, hidden, 3, padding=1),
            *[PlainResidual(hidden) for _ in range(4)],
            nn.Conv2d(hidden, latent_size, 1),
        )

    def decode(self, z: Tensor) -> Tensor:
        state = z[:, :, None, None].repeat(1, 1, 2, 2)  # (B, D, 2, 2)
        for stage in range(5):
            if stage > 0:
                state = state.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            for _ in range(self.steps):
                state = state + self.update(state)
        return state[:, :1, 2:-2, 2:-2]  # (B, 1, 28, 28)

    def loss(self, x: Tensor, noise: Tensor) -> Tensor:
        mean, log_scale = self.encoder(F.pad(x, (2, 2, 2, 2))).chunk(2, dim=1)  # (B, D)
        logits = self.decode(mean + log_scale.exp() * noise)
        kl = 0.5 * (mean**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(dim=1)
        log_likelihood = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(dim=(1, 2, 3))
        return (kl - log_likelihood).mean()


class MatrixProduct(nn.Conv2d):
    """A 1 × 1 convolution as a product of matrices."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)


def plain_model(config: ModelConfig) -> Plain:
    options = {"hidden": 256, "steps": 8} | config.decoder_options
    return Plain(config.latent_size, config.encoder_width, **options)


def plain_step(config: ModelConfig, batch_size: int, device: torch.device) -> Callable[[], None]:
    """A training step of the obvious model."""
    model = plain_model(config).to(device)
    start_moving(model)
    x = torch.rand(batch_size, 1, 28, 28, device=device).round()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        loss = model.loss(x, torch.randn(batch_size, config.latent_size, device=device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()

    return step


def our_step(config: ModelConfig, batch_size: int, device: torch.device, changes: set[str]) -> Callable[[], None]:
    """A training step of the package's model, with what a row changes about it."""
    hardware.keep_memory()
    model = build(config).to(device, memory_format=torch.channels_last)
    start_moving(model)
    model.decoder.recompute = "recompute" in changes
    model.decoder.fuse = "layers" not in changes
    if "matrix" in changes:
        for layer in model.decoder.update.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
                layer.__class__ = MatrixProduct
    if "autotune" in changes:
        compile_update(model.decoder, mode="max-autotune-no-cudagraphs")
    elif "compile" in changes:
        compile_update(model.decoder)
    x = torch.rand(batch_size, 1, 28, 28, device=device).round()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True, capturable="graph" in changes)
    dtype = DTYPES[hardware.precision(device)]

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            log_likelihood, kl = elbo_terms(model, x)
        optimizer.zero_grad()
        (kl - log_likelihood).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()

    return captured(step) if "graph" in changes else step


def start_moving(model: nn.Module) -> None:
    """Small random weights where the update starts at zero, so that every product works on real numbers."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=1e-2)


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """The step as one CUDA graph, recorded after three ordinary steps."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def product(side: int, device: torch.device) -> Callable[[], Tensor]:
    """A product of two matrices `(side, side)` of random numbers."""
    dtype = DTYPES[hardware.precision(device)]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b


def measure(row: str, model: str, batch_size: int, seconds: float) -> dict:
    """Run one row for about so many seconds in this process: the time of each step, and the memory."""
    base, *changes = row.split("+")
    device = hardware.best_device()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = "tf32" in changes
    torch.backends.cudnn.benchmark = "cudnn" in changes
    began = time.perf_counter()
    if base == "product":
        side = product_side(model, device)
        step, flops = product(side, device), 2 * side**3
    else:
        config = MODELS[model]
        flops = batch_size * training_flops(build(config))
        step = (
            plain_step(config, batch_size, device)
            if base == "plain"
            else our_step(config, batch_size, device, set(changes))
        )
    timed(step, device)
    preparation = time.perf_counter() - began
    times = []
    while len(times) < 2 or sum(times) < seconds:
        times.append(timed(step, device))
    figures = {"flops": flops, "seconds": times, "preparation_seconds": preparation, "peak_bytes": peak_bytes(device)}
    return figures | ({"operations": operations(step, device)} if base == "ours" else {})


def product_side(model: str, device: torch.device) -> int:
    return 64 if model == "tiny" else 8192 if device.type == "cuda" else 4096


def timed(step: Callable[[], object], device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - began


def operations(step: Callable[[], object], device: torch.device) -> list[dict]:
    """What a step spends most time on: name, calls and seconds a step, the costliest first, by PyTorch's profiler."""
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(PROFILED):
            timed(step, device)
    found = [
        {
            "name": event.key[:80],  # some kernels have names of several lines
            "calls": event.count / PROFILED,
            "seconds": (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e6 / PROFILED,
        }
        for event in profiler.key_averages()
    ]
    return sorted(found, key=lambda operation: -operation["seconds"])[:COSTLIEST]


def peak_bytes(device: torch.device) -> int:
    """Of the GPU's memory; on a CPU of the whole process, with the interpreter and its libraries."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows, where the tests import this file all the same

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_a_process(row: str, model: str, batch_size: int, seconds: float, limit: float) -> dict:
    """`measure` in a process of its own; what went wrong under "failed", so that other rows go on."""
    arguments = [sys.executable, __file__, "--child", json.dumps([row, model, batch_size, seconds])]
    # Into files: compilers that the process starts would hold a pipe open after it was killed.
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors:
        try:
            done = subprocess.run(arguments, stdout=printed, stderr=errors, timeout=limit)
        except subprocess.TimeoutExpired:
            return {"failed": f"took longer than {limit:.0f} s"}
        for file in (printed, errors):
            file.seek(0)
        if done.returncode:  # killed, for its memory or by a crash
            return {"failed": f"ended with code {done.returncode}: {errors.read()[-200:]}"}
        return json.loads(printed.read().splitlines()[-1])


def child(row: str, model: str, batch_size: int, seconds: float) -> dict:
    try:
        return measure(row, model, batch_size, seconds)
    except Exception as error:  # whatever a compiler, a driver or a lack of memory may raise
        return {"failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}


def summarize(rounds: list[dict], batch_size: int) -> dict:
    """One row's figures from its rounds, or why it failed."""
    for one in rounds:
        if "failed" in one:
            return one
    seconds = statistics.median(time for one in rounds for time in one["seconds"])
    return {
        "seconds": seconds,
        "images_per_second": batch_size / seconds,
        "flops_per_second": rounds[0]["flops"] / seconds,
        "peak_bytes": max(one["peak_bytes"] for one in rounds),
        "preparation_seconds": min(one["preparation_seconds"] for one in rounds),
        "rounds": [spread(one["seconds"]) for one in rounds],
        **{key: value for key, value in rounds[-1].items() if key == "operations"},
    }


def spread(times: list[float]) -> dict:
    """How much the times of a round vary."""
    return {
        "steps": len(times),
        "least": round(min(times), 5),
        "median": round(statistics.median(times), 5),
        "most": round(max(times), 5),
    }


def compare(rows: dict[str, dict]) -> None:
    """Add to each row how many times faster it is than `plain`, and its share of the arithmetic of `product`."""
    for name, row in rows.items():
        if "failed" in row or name == "product":
            continue
        for base, key in (("plain", "times_plain"), ("product", "of_product")):
            if "flops_per_second" in rows.get(base, {}):
                row[key] = row["flops_per_second"] / rows[base]["flops_per_second"]


HEADER = "images/s  GFLOP/s  of product  × plain    memory  preparation"


def line(name: str, row: dict) -> str:
    """A row of the table under `HEADER`."""
    if "failed" in row:
        return f"{name:28} failed: {row['failed']}"
    images = "" if name == "product" else f"{row['images_per_second']:.1f}"
    share = f"{row['of_product']:.0%}" if "of_product" in row else ""
    times = f"{row['times_plain']:.2f}" if "times_plain" in row else ""
    memory, preparation = f"{row['peak_bytes'] / 1e9:.2f} GB", f"{row['preparation_seconds']:.0f} s"
    speed = f"{row['flops_per_second'] / 1e9:,.0f}"
    return f"{name:28} {images:>8} {speed:>8} {share:>11} {times:>8} {memory:>9} {preparation:>12}"


def time_spent(rows: dict[str, dict]) -> list[str]:
    """What the time of the fastest row of the package's model is spent on, in lines; none where all have failed."""
    ours = {name: row for name, row in rows.items() if "operations" in row}
    if not ours:
        return []
    name, row = min(ours.items(), key=lambda item: item[1]["seconds"])
    lines = [
        f"{operation['seconds'] / row['seconds']:6.1%} {operation['calls']:7.0f} calls  {operation['name']}"
        for operation in row["operations"]
    ]
    return [f"the time of {name}:", *lines]


def take_turns(model: str, batch_size: int, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, dict]]]:
    """Measure the rows in turn; yields in the last round, after each row, its name and all figures so far."""
    turns = {name: [] for name in options.rows}
    for turn in range(options.rounds):
        for name, done in turns.items():
            if not any("failed" in one for one in done):
                done.append(in_a_process(name, model, batch_size, options.seconds, options.limit))
            if turn == options.rounds - 1:
                rows = {name: summarize(done, batch_size) for name, done in turns.items() if done}
                compare(rows)
                yield name, rows


def machine_record(device: torch.device) -> dict:
    """What figures were measured on."""
    return {
        "hardware": hardware.describe(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "commit": hardware.commit(),
    }


def result_path(out: Path, program: str, device: torch.device) -> Path:
    """A file for each machine, such as `train_step-nvidia-h200.json`."""
    return out / f"{program}-{re.sub('[^a-z0-9]+', '-', hardware.machine(device).lower()).strip('-')}.json"


def row_name(text: str) -> str:
    """A row as the command line names it.

    Raises:
        ArgumentTypeError: if there is no such base or change.
    """
    base, *changes = text.split("+")
    unknown = [word for word, known in [(base, BASES), *((c, CHANGES) for c in changes)] if word not in known]
    if unknown or (changes and base == "product") or (base == "plain" and set(changes) - {"tf32"}):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no row: it is product, plain, plain+tf32, or ours with any of {', '.join(CHANGES)} "
            "added, each behind a +"
        )
    return text


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def parse(arguments: list[str] | None, device: torch.device) -> argparse.Namespace:
    words = "\n".join(f"    {name:10} {text}" for name, text in (BASES | CHANGES).items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n{words}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=["small", "paper"])
    parser.add_argument("--batches", nargs="+", type=positive, help="images a step (default: by machine and model)")
    parser.add_argument("--rows", nargs="+", type=row_name, default=ROWS[device.type], help="what to measure")
    parser.add_argument("--rounds", type=positive, default=1 if device.type == "cuda" else 3, help="turns of each row")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn, beside its preparation")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds after which a turn counts as failed")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    parser.add_argument("--tiny", action="store_true", help="rehearse: a model of seconds, one round")
    parser.add_argument("--child", help=argparse.SUPPRESS)  # one row, as `in_a_process` asks for it
    options = parser.parse_args(arguments)
    if options.tiny:
        if options.out == RESULTS:
            parser.error("--tiny needs --out, so that it overwrites no real figures")
        options.models, options.batches, options.rounds, options.seconds = ["tiny"], [2], 1, 0.0
    return options


def main(arguments: list[str] | None = None) -> int:
    device = hardware.best_device()
    options = parse(arguments, device)
    if options.child:
        print(json.dumps(child(*json.loads(options.child))))
        return 0
    record = machine_record(device)
    print(f"{record['hardware']}, {record['threads']} threads, PyTorch {record['torch']}", flush=True)
    path = result_path(options.out, "train_step", device)
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = []
    for model in options.models:
        for batch_size in options.batches or BATCHES[device.type][model]:
            print(f"{f'{model}, batch {batch_size}':28} {HEADER}", flush=True)
            steps.append({"model": model, "batch_size": batch_size, "rows": {}})
            for name, rows in take_turns(model, batch_size, options):
                steps[-1]["rows"] = rows
                write_json(path, record | {"steps": steps})  # each time, so that a run that is cut loses one row only
                print(line(name, rows[name]), flush=True)
            for text in time_spent(steps[-1]["rows"]):
                print(text, flush=True)
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
