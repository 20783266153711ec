"""The work that wants a GPU, line by line: each can be cut at any moment and goes on when called again.

    python benchmarks/gpu_list.py smoke --out OUT
    python benchmarks/gpu_list.py throughput --out OUT
    python benchmarks/gpu_list.py doubling --out OUT --work RUNS --minutes 20 --seconds 570
    python benchmarks/gpu_list.py regrowing --out OUT --work RUNS --minutes 12 --seconds 570      and so on
    python benchmarks/gpu_list.py doubling --out OUT --work RUNS --init-from doubling-mnist --learning-rate 2e-4
    python benchmarks/gpu_list.py all --tiny --out OUT --work RUNS      a rehearsal of every line, on any machine

`--work` holds the runs with their checkpoints and stays on the machine; `--out` gets what is worth carrying away:
weights in float16 with their configuration, the metrics, the figures. `--seconds` ends the call in time with all of it
saved; exit code 3 then says that the line is not finished and wants the same call again. Only `throughput`, which takes
minutes, begins anew.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import healing
import torch
import train_step
from safetensors.torch import load_file

from vnca import data, files, hardware, objectives, training
from vnca.__main__ import main as vnca
from vnca.presets import PRESETS, TrainConfig
from vnca.vae import ModelConfig, build

UNFINISHED = 3
NAMES = {  # what each line trains: the preset and the name of the weights
    "doubling": ("best", "doubling-mnist"),
    "prior": ("fit-prior", "best-mnist"),
    "best": ("refine", "refined-mnist"),
    "regrowing": ("regrow", "regrowing-mnist"),
    "small": ("small", "doubling-mnist-small"),
    "regrowing-small": ("regrow-small", "regrowing-mnist-small"),
    "conv": ("conv", "conv-mnist"),
}
TINY_MODELS = {
    "doubling": {"hidden": 4, "steps": 1},
    "persistent": {"hidden": 4, "steps": 1, "min_steps": 1, "max_steps": 2},
    "regrowing": {"hidden": 4, "min_steps": 1, "max_steps": 2},
    "conv": {"width": 1},
}


def configuration(preset: str, tiny: bool) -> TrainConfig:
    """A preset's configuration, or a run of seconds with the same decoder and schedule on the built-in digits."""
    config = PRESETS[preset].config
    if not tiny:
        return config
    kind = config.model.decoder
    return replace(
        config,
        model=ModelConfig(
            kind, 4, 1, TINY_MODELS[kind], min(config.model.components, 3), min(config.model.correlated, 2)
        ),
        data="digits",
        split="train",
        batch_size=4,
        minutes=None,
        updates=4 if config.updates != 0 else 0,
        encoder_from=None,
        lessons=config.lessons and ((8, 1), (16, 1)),
    )


def smoke(options: argparse.Namespace) -> bool:
    """One update of every preset: a finite loss, the error that short numbers make in its gradient, its memory."""
    device = hardware.best_device()
    rows = {}
    for name in PRESETS:
        config = configuration(name, options.tiny)
        images = data.load(config.data, "train").tensors[0][: config.batch_size].to(device)
        exact, _ = gradient(config, images, torch.float32)
        ours, loss = gradient(config, images, torch.bfloat16)
        error = ((ours - exact).norm() / exact.norm()).item()
        memory = peak_memory(device)
        rows[name] = {"batch_size": len(images), "loss": loss, "gradient_error": error, "peak_gib": memory}
        print(f"{name:14} batch {len(images):4}  loss {loss:9.3f}  bf16 gradient error {error:.2e}  {memory} GiB")
    bad = [
        name for name, row in rows.items() if not torch.tensor([row["loss"], row["gradient_error"]]).isfinite().all()
    ]
    record = {"hardware": hardware.describe(device), "torch": torch.__version__, "commit": hardware.commit()}
    files.write_json(options.out / "smoke.json", record | {"presets": rows})
    if bad:
        raise SystemExit(f"not finite: {', '.join(bad)}")
    return True


def gradient(config: TrainConfig, images: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, float]:
    """The gradient `(parameters,)` and the loss of one update, with the same weights and noise for every dtype."""
    device = images.device
    torch.manual_seed(0)
    model = build(config.model)
    for change in (p for p in model.decoder.parameters() if not p.any()):
        torch.nn.init.normal_(change, std=1e-2)  # from zeros no gradient would reach the cells
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    objective = objectives.objective(model, samples=config.samples).to(device, memory_format=torch.channels_last)
    generator, host = torch.Generator(device).manual_seed(1), torch.Generator().manual_seed(1)
    drawn = objective.draw(torch.bernoulli(images, generator=generator), generator, host)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        terms = objective(**drawn)
    loss = (terms.kl - terms.log_likelihood).mean()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]), loss.item()


def peak_memory(device: torch.device) -> float | None:
    """Of the GPU, in GiB; None on a CPU."""
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None


def throughput(options: argparse.Namespace) -> bool:
    """Images a second of the paper's model, beside plain float32 and a large matrix product."""
    rows = ["--rows", "product", "plain", "ours+graph"] if torch.cuda.is_available() else []  # all take a quarter hour
    settings = ["--tiny"] if options.tiny else ["--models", "paper"]
    return train_step.main(["--out", str(options.out), *settings, *rows]) == 0


def trained(line: str) -> Callable[[argparse.Namespace], bool]:
    """A line that trains a preset, carries its weights away and measures them."""
    preset, name = NAMES[line]

    def run(options: argparse.Namespace) -> bool:
        config = configuration(preset, options.tiny).changed(
            minutes=options.minutes, learning_rate=options.learning_rate, init_from=options.init_from
        )
        work = options.work / name
        earlier = options.work / config.init_from if config.init_from is not None else work
        if earlier != work and earlier.exists():  # weights of an earlier line; else they are shipped ones
            config = replace(config, init_from=str(earlier))
        try:
            training.train(config, work, resume=(work / "config.json").exists(), overwrite=True)
        except KeyboardInterrupt:
            return False
        finally:
            if (work / "model.safetensors").exists():
                carry_away(work, options.out / name)
        weights, result = str(options.out / name), options.out / f"{name}.json"
        few = ["--num-samples", "2", "--limit", "4"] if options.tiny else []
        if torch.cuda.is_available() and hardware.has_bfloat16(hardware.best_device()):
            few += ["--bfloat16"]  # 33 PFLOP for the paper's model: in float32 it would take as long as the training
        if not result.exists():
            code = vnca(["evaluate", "--weights", weights, "--out", str(result), *few])
            if code:
                return unfinished(code, options)
        if config.model.decoder != "conv":
            few = ["--limit", "4"] if options.tiny else []
            code = healing.main([weights, "--out", str(options.out / "healing.json"), *few])
            return unfinished(code, options) if code else True
        return True

    run.__doc__ = f"Train `{preset}` as {name}, then measure it on the test set."
    return run


def unfinished(code: int, options: argparse.Namespace) -> bool:
    """False, so that the call is repeated, if the time was up; what failed by itself would only fail again."""
    if not options.cut:
        raise SystemExit(code)
    return False


def carry_away(work: Path, out: Path) -> None:
    """A run without its checkpoint, its weights in float16."""
    weights = load_file(work / "model.safetensors")
    out.mkdir(parents=True, exist_ok=True)
    files.write_tensors(
        out / "model.safetensors",
        {key: value.half() if value.is_floating_point() else value for key, value in weights.items()},
    )
    for file in ("config.json", "metrics.jsonl"):
        files.write_text(out / file, (work / file).read_text())


LINES = {"smoke": smoke, "throughput": throughput} | {line: trained(line) for line in NAMES}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("line", choices=[*LINES, "all"])
    parser.add_argument("--out", type=Path, required=True, help="folder for what is carried away")
    parser.add_argument("--work", type=Path, help="folder of the runs (default: runs, inside --out)")
    parser.add_argument("--minutes", type=float, help="length of a training line")
    parser.add_argument("--init-from", help="weights from which a training line goes on, instead of its preset's")
    parser.add_argument("--learning-rate", type=float, help="of a training line, instead of its preset's")
    parser.add_argument("--seconds", type=int, default=0, help="end this call after so long (default: when it is done)")
    parser.add_argument("--tiny", action="store_true", help="rehearse: tiny models on the built-in digits")
    options = parser.parse_args(arguments)
    options.work = options.work or options.out / "runs"
    options.out.mkdir(parents=True, exist_ok=True)
    options.cut = False
    if options.seconds:

        def cut(*_) -> None:
            options.cut = True
            signal.raise_signal(signal.SIGINT)

        signal.signal(signal.SIGALRM, cut)
        signal.alarm(options.seconds)
    for name in LINES if options.line == "all" else [options.line]:
        print(f"== {name}: {LINES[name].__doc__.splitlines()[0]}", flush=True)
        started = time.monotonic()
        try:
            finished = LINES[name](options)
        except KeyboardInterrupt:
            finished = False
        print(
            f"== {name}: {'done' if finished else 'not finished: call again'} after {time.monotonic() - started:.0f} s"
        )
        if not finished:
            return UNFINISHED
    return 0


if __name__ == "__main__":
    sys.exit(main())
