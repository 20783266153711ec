"""Training: a configuration, presets, and one loop that can be stopped and resumed at any update.

Every random choice of an update (its images, their binarization, the noise of the latents) depends on the seed and on
the number of the update alone. So a resumed run does on the CPU exactly what an uninterrupted one does.
"""

import hashlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from vnca import checkpoints, data, files, hardware, pretrained
from vnca.pictures import save_png
from vnca.vae import VAE, ModelConfig, build, elbo_terms, require_pixels

CHECKPOINT_SECONDS = 60  # what a killed run can lose
LOG_EVERY = 20  # updates between two lines of metrics.jsonl


class TrainingError(RuntimeError):
    """A run that failed for a reason its user can do something about."""


@dataclass(frozen=True)
class TrainConfig:
    """All that determines a run.

    Attributes:
        model: the model to build.
        data: a data set of `vnca.data`.
        split: the part of it to train on.
        updates: steps of the optimizer.
        batch_size: images an update.
        learning_rate: Adam's, at its peak.
        warmup: updates over which the learning rate rises from zero; then it falls to zero along a cosine.
        kl_warmup: updates over which the weight of the KL term rises from zero to one.
        clip: the largest norm of the gradient; a longer one is scaled down to it.
        seed: of the initial weights and of every random choice.
    """

    model: ModelConfig
    data: str
    split: str
    updates: int
    batch_size: int
    learning_rate: float
    warmup: int = 100
    kl_warmup: int = 500
    clip: float = 10.0
    seed: int = 0

    def __post_init__(self):
        for name in ("updates", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is a positive number, not {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is a whole number from 0 to {2**32 - 1}, not {self.seed}")

    def learning_rate_at(self, update: int) -> float:
        """The learning rate of update `update` (from 0)."""
        rising = min(1.0, (update + 1) / max(1, self.warmup))
        return self.learning_rate * rising * 0.5 * (1 + math.cos(math.pi * update / self.updates))

    def kl_weight_at(self, update: int) -> float:
        """The weight of the KL term in update `update` (from 0)."""
        return min(1.0, (update + 1) / max(1, self.kl_warmup))


SMALL = ModelConfig("doubling", 64, 8, {"hidden": 64, "steps": 4})

PRESETS = {
    # The built-in digits, a few minutes on two cores: to see everything work.
    "quick": TrainConfig(
        model=ModelConfig("doubling", 32, 8, {"hidden": 32, "steps": 2}),
        data="digits",
        split="train",
        updates=1200,
        batch_size=32,
        learning_rate=2e-3,
        kl_warmup=200,
    ),
    # A VNCA small enough for two cores, on the data of the paper's tables: hours.
    "small": TrainConfig(SMALL, "binarized-mnist", "train", 12_000, 64, 1.5e-3),
    # Its baseline: the same encoder and latent, a convolutional decoder.
    "conv": TrainConfig(
        replace(SMALL, decoder="conv", decoder_options={"width": 8}), "binarized-mnist", "train", 20_000, 64, 1.5e-3
    ),
}


def train(
    config: TrainConfig,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> VAE:
    """Train a model and leave it in the folder `out`.

    The folder then holds `config.json`, `metrics.jsonl`, `model.safetensors`, `samples.png` and the checkpoint.

    Args:
        config: what to train.
        out: the run's folder.
        resume: go on from the checkpoint in `out`.
        overwrite: start anew in a folder that already has files.

    Raises:
        ValueError: if the data or the folder do not fit: `out` has files and neither `resume` nor `overwrite` is
            given, the checkpoint is of another configuration, or pixels lie outside [0, 1].
        TrainingError: if the loss or its gradient is no longer finite. The last checkpoint stays as it was.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the checkpoint is written.
    """
    out = Path(out)
    _check_folder(config, out, resume, overwrite)
    device = hardware.best_device()
    images = data.load(config.data, config.split).tensors[0]  # (N, 1, 28, 28)
    require_pixels(images)
    if not resume:
        _clear_folder(out)
    run = _Run(config, out, images.to(device))
    if resume:
        run.restore()
    print(f"{config.data} {config.split}: {len(images):,} images; {hardware.describe(device)}")
    with _signals_wait() as stopped:
        run.go(stopped)
    if run.update < config.updates:
        print(f"stopped after update {run.update}; go on with --resume")
        raise KeyboardInterrupt
    generator = torch.Generator().manual_seed(config.seed)
    save_png(run.model.sample(64, generator).cpu(), out / "samples.png")
    print(f"done: {config.updates:,} updates in {run.seconds / 60:.1f} minutes; see {out}")
    return run.model


class _Run:
    """One run: its model, optimizer and progress."""

    def __init__(self, config: TrainConfig, out: Path, images: Tensor):
        self.config, self.out, self.images = config, out, images
        self.device = images.device
        self.batch_size = min(config.batch_size, len(images))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = build(config.model)
        self.model.to(self.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate)
        self.noise = torch.Generator(self.device)
        self.commit = hardware.commit()
        self.update = 0  # updates done
        self.seconds = 0.0  # spent so far, in all parts of the run
        self.order = (-1, torch.empty(0))  # epoch, its permutation of the images

    def go(self, stopped: Callable[[], bool]) -> None:
        """Train until the last update, or until `stopped()`; write the checkpoint in between and at the end."""
        config = self.config
        if self.update == 0:
            self.save()  # from the first moment there is something to resume
        started, spent = time.monotonic(), self.seconds
        saved = started
        self.model.train()
        with closing(_Meter(self.out, config, self.batch_size, self.update)) as meter:
            while self.update < config.updates and not stopped():
                log_likelihood, kl = self.step()
                self.update += 1
                self.seconds = spent + time.monotonic() - started
                meter.add(self.update, log_likelihood, kl, self.seconds)
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self.save()
                    saved = time.monotonic()
        self.save()
        self.model.eval()

    def step(self) -> tuple[float, float]:
        """One update; returns the mean of log p(x | z) and of the KL term over the batch, in nats."""
        config = self.config
        self.noise.manual_seed(_seed(config.seed, "noise", self.update))
        x = torch.bernoulli(self.batch(), generator=self.noise)  # (B, 1, 28, 28)
        with hardware.autocast(self.device):
            log_likelihood, kl = elbo_terms(self.model, x, self.noise)  # 2 x (B,)
        log_likelihood, kl = log_likelihood.mean(), kl.mean()
        self.optimizer.zero_grad()
        (config.kl_weight_at(self.update) * kl - log_likelihood).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        if not math.isfinite(norm.item() + log_likelihood.item() + kl.item()):
            raise TrainingError(
                f"update {self.update + 1} is not finite (log-likelihood {log_likelihood.item():g}, KL {kl.item():g}, "
                f"gradient {norm.item():g}): start again with --learning-rate below {config.learning_rate:g}"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.update)
        self.optimizer.step()
        return log_likelihood.item(), kl.item()

    def batch(self) -> Tensor:
        """The images of the next update, `(B, 1, 28, 28)`: each epoch is a fresh permutation of the whole set."""
        size = self.batch_size
        epoch, position = divmod(self.update, len(self.images) // size)
        if self.order[0] != epoch:
            generator = torch.Generator().manual_seed(_seed(self.config.seed, "order", epoch))
            self.order = (epoch, torch.randperm(len(self.images), generator=generator).to(self.device))
        return self.images[self.order[1][position * size : (position + 1) * size]]

    def save(self) -> None:
        """Write the checkpoint, and the model so that `vnca.load` reads it."""
        checkpoints.save(self.out, self.model, self.optimizer, {"update": self.update, "seconds": self.seconds})
        pretrained.save(
            self.model,
            self.config.model,
            self.out,
            training=_training_dict(self.config),
            run={
                "updates": self.update,
                "images_seen": self.update * self.batch_size,
                "minutes": round(self.seconds / 60, 2),
                "hardware": hardware.describe(self.device),
                "commit": self.commit,
            },
        )

    def restore(self) -> None:
        progress = checkpoints.restore(self.out, self.model, self.optimizer)
        self.update, self.seconds = progress["update"], progress["seconds"]


class _Meter:
    """Writes `metrics.jsonl` and one progress line: means over the last `LOG_EVERY` updates."""

    def __init__(self, out: Path, config: TrainConfig, batch_size: int, update: int):
        self.config, self.batch_size, self.update = config, batch_size, update
        self.sums, self.count, self.since = [0.0, 0.0], 0, time.monotonic()
        path = out / "metrics.jsonl"
        _keep_lines_until(path, update)
        self.file = path.open("a")
        self.bar = tqdm(
            total=config.updates,
            initial=update,
            disable=None,  # no bar where the output is not a terminal
            bar_format="{n_fmt}/{total_fmt} updates |{bar:20}| {desc}{remaining} left",
        )

    def add(self, update: int, log_likelihood: float, kl: float, seconds: float) -> None:
        self.update = update
        self.sums = [self.sums[0] + log_likelihood, self.sums[1] + kl]
        self.count += 1
        self.bar.update()
        if update % LOG_EVERY == 0 or update == self.config.updates:
            self._write(seconds)

    def _write(self, seconds: float) -> None:
        log_likelihood, kl = (total / self.count for total in self.sums)
        weight = self.config.kl_weight_at(self.update - 1)
        record = {
            "update": self.update,
            "loss": round(weight * kl - log_likelihood, 4),
            "nats": round(log_likelihood - kl, 4),
            "log_likelihood": round(log_likelihood, 4),
            "kl": round(kl, 4),
            "learning_rate": self.config.learning_rate_at(self.update - 1),
            "images_per_second": round(self.count * self.batch_size / (time.monotonic() - self.since), 1),
            "seconds": round(seconds, 1),
        }
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        line = f"loss {record['loss']:.2f}  ELBO {record['nats']:.2f} nats  {record['images_per_second']:.0f} images/s"
        self.bar.set_description_str(line + "  ")
        if self.bar.disable and self.update % (10 * LOG_EVERY) == 0:
            left = (self.config.updates - self.update) * (time.monotonic() - self.since) / self.count
            print(f"{self.update}/{self.config.updates}  {line}  {left:.0f} s left", file=sys.stderr)
        self.sums, self.count, self.since = [0.0, 0.0], 0, time.monotonic()

    def close(self) -> None:
        self.bar.close()
        self.file.close()


def _keep_lines_until(path: Path, update: int) -> None:
    """Drop the lines of updates that a killed run made after its last checkpoint; a resumed run makes them again."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["update"] <= update]
    if len(kept) < len(lines):
        files.write_text(path, "".join(kept))


def _check_folder(config: TrainConfig, out: Path, resume: bool, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give the name of a folder")
    if resume:
        _require_same_config(config, saved_config(out))
    elif out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ValueError(f"--out {out} already has files: add --resume to go on, or --overwrite to start anew")


def _clear_folder(out: Path) -> None:
    """Make the folder, without the files of an earlier run."""
    for name in (checkpoints.NAME, "metrics.jsonl", "model.safetensors", "config.json", "samples.png"):
        (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)


def saved_config(out: Path) -> TrainConfig:
    """The configuration of the run in a folder.

    Raises:
        ValueError: if there is no run, or its configuration cannot be read.
    """
    if not (out / "config.json").is_file():
        raise ValueError(f"there is no run in {out} to resume; start without --resume")
    saved = pretrained.read_config(out)
    try:
        return TrainConfig(model=ModelConfig(**saved["model"]), **saved["training"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{out / 'config.json'} is not that of a run: {error!r}") from None


def _require_same_config(ours: TrainConfig, theirs: TrainConfig) -> None:
    differences = [
        f"{field.name} is {getattr(theirs, field.name)!r} there, {getattr(ours, field.name)!r} now"
        for field in fields(TrainConfig)
        if getattr(theirs, field.name) != getattr(ours, field.name)
    ]
    if differences:
        raise ValueError(f"the run to resume has another configuration: {'; '.join(differences)}")


def _seed(*parts: int | str) -> int:
    """A seed for one purpose. Hashed, because generators use the low 32 bits of a seed only."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little")


def _training_dict(config: TrainConfig) -> dict:
    return {key: value for key, value in asdict(config).items() if key != "model"}


@contextmanager
def _signals_wait() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C and SIGTERM wait until the update is finished; yields a function that tells whether one came."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = []
    before = {number: signal.signal(number, lambda *_: came.append(1)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
