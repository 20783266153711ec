"""Training: one loop that runs on a CPU, a GPU or many, and that can be stopped and resumed at any update.

Hugging Face Accelerate moves the model to its device, chooses the arithmetic and, where several processes run, shares
the gradients. Every random choice of an update (its images, their binarization, the noise of the latents) depends on
the seed and on the number of the update alone. So a resumed run does on the CPU exactly what an uninterrupted one
does, and several processes do together what one does alone.
"""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vnca import checkpoints, data, files, hardware, pretrained
from vnca.checks import differences
from vnca.decoders import CellDecoder, compile_update
from vnca.metrics import Metrics
from vnca.objectives import PersistentElbo, Terms, objective
from vnca.packing import PackedImages
from vnca.pictures import save_png
from vnca.presets import TrainConfig
from vnca.recording import Recorded
from vnca.seeds import seed_of
from vnca.vae import VAE, ModelConfig, build, encode_in_chunks, require_pixels

LOG_EVERY = 20  # updates between two records of the metrics
SAMPLES_SECONDS = 300  # between two grids of samples in TensorBoard, because on a CPU each costs seconds
SKIPS = 10  # updates in a row that may be skipped before the run ends; they are counted when a record is made
FILES = (checkpoints.NAME, "metrics.jsonl", "model.safetensors", "config.json", "samples.png")  # of a run
LOCK = ".lock"  # held while a run writes; it says nothing, and stays
LITTER = (".", "Thumbs.db", "desktop.ini")  # how names begin that systems leave in any folder, and that of the lock


class TrainingError(RuntimeError):
    """A run that failed for a reason its user can do something about."""


def train(
    config: TrainConfig,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    recompute: bool = False,
    compiled: bool = False,
    checkpoint_minutes: float = 1.0,
    on_log: Callable[[dict], None] = lambda record: None,
) -> VAE:
    """Train a model and leave it in the folder `out`.

    The folder then holds `config.json`, `metrics.jsonl`, `tensorboard/`, `model.safetensors`, `samples.png` and the
    checkpoint. Started by `accelerate launch` or `torchrun`, the processes share each batch.

    Args:
        config: what to train.
        out: the run's folder.
        resume: go on from the checkpoint in `out`, also if `overwrite` is given.
        overwrite: start anew in a folder that already has files.
        recompute: compute each step of the cells a second time in the backward pass instead of keeping it. It is
            about a third more arithmetic, for a small part of the memory.
        compiled: compile the update of the cells with `torch.compile`, which takes minutes at the start.
        checkpoint_minutes: time between two checkpoints, which is what a killed run can lose.
        on_log: called with each record of the metrics.

    Returns:
        The trained model, with averaged weights if `config.ema` is positive, in eval mode, on the device it was
        trained on.

    Raises:
        ValueError: if the data, the folder or the processes do not fit: `out` has files and neither `resume` nor
            `overwrite` is given, or `overwrite` and files that are not those of a run, or another run is writing in it;
            the checkpoint is damaged or of another configuration; `init_from` or `encoder_from` names no weights or
            those of another model; lessons are impossible; pixels lie outside [0, 1]; or the batch cannot be shared
            equally.
        vnca.data.DataError: if the data cannot be had.
        OSError: if the folder cannot be written.
        TrainingError: if the gradient is not finite for several updates in a row, or the trained model's images are
            not. The last checkpoint stays.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the checkpoint is written.
    """
    out = Path(out)
    _check(config, out, resume, overwrite, checkpoint_minutes)
    device = hardware.best_device()
    hardware.keep_memory()
    accelerator = Accelerator(
        cpu=device.type == "cpu",  # else a Mac's GPU would be taken, on which nothing here was ever tried
        mixed_precision=hardware.precision(device),
        # The buffers are the same in all processes from the start, and the pool stays so: nothing to send.
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)],
    )
    images = data.load(config.data, config.split).tensors[0]  # (N, 1, 28, 28)
    require_pixels(images)
    run = _Run(config, out, images, accelerator, recompute, compiled, resume)
    with _alone_in(out) if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:
            _check(config, out, resume, overwrite, checkpoint_minutes)  # again: a run may have come and gone
        if resume:
            run.restore()
            if accelerator.is_main_process:
                _clear_unfinished(out)
        elif accelerator.is_main_process:
            _clear_folder(out)
        accelerator.wait_for_everyone()
        accelerator.print(f"{config.data} {config.split}: {len(images):,} images; {run.hardware}")
        if run.batch_size < config.batch_size:
            accelerator.print(
                f"{config.batch_size:,} images a batch are more than there are: {run.batch_size:,} are taken"
            )
        with _signals_wait() as stopped:
            run.go(stopped, 60 * checkpoint_minutes, on_log)
        if run.fraction < 1:
            accelerator.print(f"stopped after update {run.kept}, the last one kept; go on with --resume")
            raise KeyboardInterrupt
        if accelerator.is_main_process:
            save_png(run.samples(64), out / "samples.png")
    taught = sum(updates for _, updates in config.lessons)
    if run.update < taught:
        accelerator.print(
            f"the run ended among its lessons, after {run.update:,} of their {taught:,} updates: what comes after "
            "them was not trained; give more minutes"
        )
    accelerator.print(f"done: {run.update:,} updates in {run.seconds / 60:.1f} minutes; see {out}")
    accelerator.end_training()
    return run.best


class _Run:
    """One run: its model, optimizer and progress."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        images: Tensor,
        accelerator: Accelerator,
        recompute: bool = False,
        compiled: bool = False,
        resumed: bool = False,
    ):
        self.config, self.out, self.accelerator = config, out, accelerator
        self.images = PackedImages(images, accelerator.device)
        self.batch_size = min(config.batch_size, len(images))
        if self.batch_size % accelerator.num_processes:
            raise ValueError(
                f"a batch of {self.batch_size} images cannot be shared equally by {accelerator.num_processes} "
                "processes: choose another number of processes"
            )
        self.before = [] if resumed else _before(config)  # before weights are read that a running training may replace
        started = time.monotonic()
        model = _start(config, None if resumed else images).to(accelerator.device, memory_format=torch.channels_last)
        for buffer in model.buffers():  # the numbers that a prior is about, as the first process has chosen them
            broadcast(buffer)
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema)) if config.ema else None
        if self.averaged:  # asked for in every update, and a GPU would have to be waited for
            self.averaged.n_averaged = self.averaged.n_averaged.cpu()
        if recompute:
            _require_cells(model.decoder, "--recompute").recompute = True
        if compiled:
            compile_update(_require_cells(model.decoder, "--compile"))
            _try_compiled(model.decoder)
        self.objective = objective(model, config.lessons, config.samples, config.planted).to(accelerator.device)
        _require_room_in_pool(self.objective, self.batch_size)
        optimizer = torch.optim.Adam(self.objective.parameters(), lr=config.learning_rate, fused=True)
        self.parallel, self.optimizer = accelerator.prepare(self.objective, optimizer)
        self.recorded = Recorded(self.forward_and_backward, [*self.objective.parameters()])
        self.noise = torch.Generator(accelerator.device)  # of what is drawn where the images live
        self.host = torch.Generator()  # of what is drawn on the CPU
        self.order = (-1, torch.empty(0))  # epoch, its permutation of the images
        self.update = 0  # updates done
        self.kept = 0  # those that the last checkpoint has
        # Spent so far, in all parts of the run. The fit of a prior counts where it is all there is to do.
        self.seconds = 0.0 if config.updates != 0 else time.monotonic() - started
        self.totals = torch.zeros(4, device=accelerator.device)  # since the last record: see `step`
        self.skips = torch.zeros(2, dtype=torch.int64, device=accelerator.device)  # in a row, and in all
        self.commit = hardware.commit()
        processes = f", {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
        self.hardware = hardware.describe(accelerator.device) + processes

    @property
    def best(self) -> VAE:
        """The model to keep: with averaged weights where they are averaged."""
        return (self.averaged.module if self.averaged else self.objective.model).eval()

    @property
    def fraction(self) -> float:
        """How much of the run is done, 0 to 1."""
        return self.config.fraction_at(self.update, self.seconds)

    def go(self, stopped: Callable[[], bool], interval: float, on_log: Callable[[dict], None]) -> None:
        """Train to the end, or until `stopped()`; write a checkpoint every `interval` seconds and at the end.

        None is written while updates are being skipped: if they all are from now on, the last one is worth more. But a
        few skipped ones at the end, which changed no weight, must not cost what was learned before them.

        Raises:
            TrainingError: if the last updates were all skipped, or the trained model's images are not finite.
        """
        if self.update == 0:
            self.save()  # from the first moment there is something to resume
        started = saved = sampled = logged = time.monotonic()
        spent, since = self.seconds, self.update
        with Metrics(self.out, self.update) if self.accelerator.is_main_process else nullcontext() as metrics:
            while self.fraction < 1 and not self.any_process(stopped()):
                self.step()
                self.seconds = self.mean_over_processes(spent + time.monotonic() - started)
                if self.update % LOG_EVERY == 0 or self.fraction == 1:
                    record = self.record((self.update - since) * self.batch_size / max(time.monotonic() - logged, 1e-9))
                    since, logged = self.update, time.monotonic()
                    if metrics is not None:
                        metrics.log(record)
                        on_log(record)
                if time.monotonic() - saved > interval and self.skips[0] == 0:
                    self.save()
                    saved = time.monotonic()
                if metrics is not None and time.monotonic() - sampled > SAMPLES_SECONDS:
                    metrics.samples(self.update, self.samples(16))
                    sampled = time.monotonic()
            if self.fraction == 1 and not self.samples(1).isfinite().all():
                raise TrainingError(
                    f"after {self.update} updates the model's images are not finite numbers: "
                    f"start again with a learning rate below {self.config.learning_rate:g}"
                )
            if self.skips[0] < SKIPS:
                self.save()
            if metrics is not None and self.fraction == 1:
                metrics.samples(self.update, self.samples(16))

    def step(self) -> None:
        """One update. One whose gradient is not finite is counted and changes no weight; their average goes on."""
        config, accelerator = self.config, self.accelerator
        self.objective.train()
        self.noise.manual_seed(seed_of(config.seed, "noise", self.update))
        self.host.manual_seed(seed_of(config.seed, "host", self.update))
        x = torch.bernoulli(self.batch(), generator=self.noise)  # (B, 1, 28, 28)
        drawn = self.objective.draw(x, self.noise, self.host, self.update)
        shared = self.share(drawn)
        kl_weight = torch.full((), config.kl_weight_at(self.update), device=accelerator.device)
        forward_and_backward = self.recorded if self.can_replay(shared) else self.forward_and_backward
        terms, loss = forward_and_backward(kl_weight=kl_weight, **shared)
        norm = accelerator.clip_grad_norm_(self.objective.parameters(), config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.update, self.fraction)
        bad = ~norm.isfinite()
        # Fused Adam skips its step by itself if told so, as gradient scalers do. The CPU need not wait for the GPU.
        self.optimizer.optimizer.found_inf = bad.float()
        self.optimizer.step()
        if self.averaged:
            self.averaged.update_parameters(self.objective.model)
        if terms.outcome is not None:
            self.objective.keep(drawn, accelerator.gather(terms.outcome))
        self.skips = torch.stack([(self.skips[0] + 1) * bad, self.skips[1] + bad])
        terms_of_fresh = (loss.detach(), terms.log_likelihood.detach(), terms.kl.detach(), torch.ones_like(loss))
        # Only fresh samples tell the ELBO; a loss that is not finite has no mean.
        self.totals += torch.stack([(t * terms.fresh).sum() for t in terms_of_fresh]).masked_fill(bad, 0)
        self.update += 1

    def forward_and_backward(self, kl_weight: Tensor, **shared: Tensor | int) -> tuple[Terms, Tensor]:
        """The terms and the loss, `(b,)`, of this process's share; leaves the gradients with the parameters."""
        terms = self.parallel(**shared)
        loss = kl_weight * terms.kl - terms.log_likelihood + terms.penalty  # (b,)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss.mean())
        return terms, loss

    def can_replay(self, shared: dict[str, Tensor | int]) -> bool:
        """Whether every update launches the same kernels, so that a CUDA graph can replay them."""
        alone = self.accelerator.device.type == "cuda" and self.accelerator.num_processes == 1
        return alone and self.accelerator.scaler is None and all(isinstance(v, Tensor) for v in shared.values())

    def batch(self) -> Tensor:
        """The images of the next update, `(B, 1, 28, 28)`.

        Each epoch is a fresh permutation of the whole set, cut into batches; what is left at its end is not used.
        """
        size = self.batch_size
        epoch, position = divmod(self.update, len(self.images) // size)
        if self.order[0] != epoch:
            generator = torch.Generator().manual_seed(seed_of(self.config.seed, "order", epoch))
            order = torch.randperm(len(self.images), generator=generator)
            self.order = (epoch, order.to(self.accelerator.device))
        return self.images[self.order[1][position * size : (position + 1) * size]]

    def share(self, drawn: dict[str, Tensor | int]) -> dict[str, Tensor | int]:
        """This process's part of what was drawn for the whole batch."""
        size = self.batch_size // self.accelerator.num_processes
        mine = slice(self.accelerator.process_index * size, (self.accelerator.process_index + 1) * size)
        return {key: value[mine] if isinstance(value, Tensor) else value for key, value in drawn.items()}

    def record(self, images_per_second: float) -> dict:
        """Means over the updates since the last record, or of a resumed run since its checkpoint where that is later.

        Raises:
            TrainingError: if the last updates were all skipped.
        """
        in_a_row, skipped = self.skips.tolist()
        if in_a_row >= SKIPS:
            raise TrainingError(
                f"the gradients of the last {in_a_row} updates, up to update {self.update}, were not finite: "
                f"start again with a learning rate below {self.config.learning_rate:g}"
            )
        *sums, count = self.accelerator.reduce(self.totals, reduction="sum").tolist()
        self.totals.zero_()
        loss, log_likelihood, kl = (total / count if count else math.nan for total in sums)
        fraction = self.config.fraction_at(self.update - 1, self.seconds)
        return {
            "update": self.update,
            "fraction": round(self.fraction, 6),
            "seconds": round(self.seconds, 1),
            "loss": round(loss, 4),
            "nats": round(log_likelihood - kl, 4),
            "log_likelihood": round(log_likelihood, 4),
            "kl": round(kl, 4),
            "learning_rate": self.config.learning_rate_at(self.update - 1, fraction),
            "images_per_second": round(images_per_second, 1),
            "skipped": skipped,
            **({"samples": self.config.samples} if self.config.samples > 1 else {}),
        }

    def any_process(self, stopped: bool) -> bool:
        """Whether any process was asked to stop: all have to leave the loop after the same update."""
        return self.mean_over_processes(float(stopped)) > 0

    def mean_over_processes(self, value: float) -> float:
        if self.accelerator.num_processes == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.reduce(shared, reduction="mean").item()

    def samples(self, n: int) -> Tensor:
        """Pixel probabilities of latents that stay the same throughout the run: `(n, 1, 28, 28)`."""
        return self.best.sample(n, torch.Generator().manual_seed(self.config.seed)).cpu()

    def save(self) -> None:
        """Write the checkpoint, and the model so that `vnca.load` reads it."""
        if not self.accelerator.is_main_process:
            return
        progress = {"update": self.update, "seconds": self.seconds, "skipped": self.skips[1].item()}
        if self.accelerator.scaler is not None:  # float16: what its gradients are multiplied by is found by trying
            progress["scaler"] = self.accelerator.scaler.state_dict()
        self.kept = self.update
        checkpoints.save(self.out, self.parts(), self.optimizer.optimizer, progress)
        pretrained.save(
            self.best,
            self.config.model,
            self.out,
            training=self.config.to_dict(),
            run={
                "updates": self.update,
                "images_seen": self.update * self.batch_size,
                "skipped": progress["skipped"],
                "minutes": round(self.seconds / 60, 2),
                "hardware": self.hardware,
                "commit": self.commit,
                **({"before": self.before} if self.before else {}),
            },
        )

    def restore(self) -> None:
        """Go on from the checkpoint; raises `ValueError` if it or the record of its run is damaged."""
        progress = checkpoints.restore(self.out, self.parts(), self.optimizer.optimizer)
        self.update, self.seconds = progress["update"], progress["seconds"]
        self.kept = self.update
        self.skips[1] = progress["skipped"]
        if self.accelerator.scaler is not None and "scaler" in progress:
            self.accelerator.scaler.load_state_dict(progress["scaler"])
        theirs = pretrained.read_config(self.out).get("run")
        if not isinstance(theirs, dict) or not {"hardware", "commit"} <= theirs.keys():
            raise ValueError(f"{self.out / 'config.json'} does not record its run; start again with --overwrite")
        self.before = theirs.get("before", [])
        if self.fraction == 1:  # nothing is left to train
            self.hardware, self.commit = theirs["hardware"], theirs["commit"]
        else:
            self.hardware = _then(theirs["hardware"], self.hardware)
            self.commit = _then(theirs["commit"], self.commit)

    def parts(self) -> dict[str, torch.nn.Module]:
        """What a checkpoint holds besides the optimizer's state."""
        return {"objective": self.objective} | ({"averaged": self.averaged} if self.averaged else {})


def _then(before: str | None, now: str | None) -> str | None:
    """What a record says of a run in several parts: `"A, then B"`, or what it said if the last part was the same."""
    if before == now:
        return now
    parts = (before or "unknown").split(", then ")
    now = now or "unknown"
    return before if parts[-1] == now else ", then ".join([*parts, now])


def _start(config: TrainConfig, images: Tensor | None) -> VAE:
    """The model that training starts from.

    A prior to be learned starts as that of `init_from`, if that is of the same kind and size and there is an update to
    come, or else fitted to the posteriors of the images. None instead of them leaves all weights random: a
    checkpoint will be put over them, and those the run started from may be gone.

    Raises:
        ValueError: if `init_from` or `encoder_from` names no weights, or those of another model or encoder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build(config.model)
    if images is None:
        return model
    to_fit = config.model.components > 0
    if config.init_from is not None:
        theirs = pretrained.read_model_config(pretrained.find(config.init_from))
        prior = {"components": config.model.components, "correlated": config.model.correlated}
        but_for_prior = replace(theirs, **prior) if to_fit else theirs
        if found := differences(vars(_growth(but_for_prior)), vars(_growth(config.model))):
            raise ValueError(f"the weights {config.init_from} are of another model: {'; '.join(found)}")
        to_fit = to_fit and (theirs != but_for_prior or config.updates == 0)
        weights = pretrained.load(config.init_from).state_dict().items()
        weights = {key: value for key, value in weights if not (to_fit and key.startswith("prior."))}
        model.load_state_dict(model.state_dict() | weights)
    if config.encoder_from is not None:
        theirs = pretrained.load(config.encoder_from).encoder
        try:
            model.encoder.load_state_dict(theirs.state_dict())
        except RuntimeError:
            sizes = [f"{sum(p.numel() for p in encoder.parameters()):,}" for encoder in (theirs, model.encoder)]
            raise ValueError(
                f"the weights {config.encoder_from} have another encoder, of {sizes[0]} parameters, not {sizes[1]}: "
                "it needs the same latent_size and encoder_width"
            ) from None
    if to_fit:
        _fit_prior(model, images, config.seed)
    return model


def _growth(config: ModelConfig) -> ModelConfig:
    """The model up to its last grid: a `PersistentDecoder` has the weights of a `DoublingDecoder`."""
    if config.decoder != "persistent":
        return config
    options = {name: value for name, value in config.decoder_options.items() if name not in ("min_steps", "max_steps")}
    return replace(config, decoder="doubling", decoder_options=options)


@torch.no_grad()
def _fit_prior(model: VAE, images: Tensor, seed: int) -> None:
    """Fit a learned prior to the posteriors of the images, binarized by chance as in training."""
    binary = torch.bernoulli(images, generator=torch.Generator().manual_seed(seed_of(seed, "binary")))
    posterior = encode_in_chunks(model, binary, 1000)
    model.prior.fit(posterior.mean, posterior.stddev, torch.Generator().manual_seed(seed_of(seed, "prior")))


def _before(config: TrainConfig) -> list[dict]:
    """The records and settings of the runs whose weights this one starts from; each has those before it in itself.

    Raises:
        ValueError: if a record is damaged.
    """
    named = {"init_from": config.init_from, "encoder_from": config.encoder_from}
    records = []
    for option, weights in named.items():
        if weights is not None:
            folder = pretrained.find(weights)
            theirs = {"run": {}} | pretrained.read_config(folder)
            if not isinstance(theirs["run"], dict):
                raise ValueError(
                    f"{folder / 'config.json'} is damaged: its entry 'run' is {theirs['run']!r}, no object"
                )
            settings = {"training": theirs["training"]} if "training" in theirs else {}
            records.append({option: weights, **theirs["run"], **settings})
    return records


def _require_cells(decoder: torch.nn.Module, option: str) -> CellDecoder:
    if not isinstance(decoder, CellDecoder):
        raise ValueError(f"{option} is for decoders made of cells, which a {type(decoder).__name__} is not")
    return decoder


def _try_compiled(decoder: CellDecoder) -> None:
    """One step of the smallest grid: a machine that cannot compile is known before an earlier run is cleared away.

    Raises:
        ValueError: if it cannot.
    """
    from torch._dynamo.exc import TorchDynamoException  # takes seconds to import; what compiles has done so

    convolution = decoder.update.layers[0]
    state = torch.zeros(1, convolution.in_channels, 2, 2, device=convolution.weight.device)
    try:
        with torch.no_grad():
            decoder.update(state)
    except TorchDynamoException as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(f"--compile failed: {reason}; train without it, or install a C++ compiler") from None


def _require_room_in_pool(objective: torch.nn.Module, batch_size: int) -> None:
    for part in objective.modules():
        if isinstance(part, PersistentElbo) and batch_size > len(part.pool):
            raise ValueError(
                f"a batch of {batch_size:,} images needs as many states of the pool, which has {len(part.pool):,}: "
                "choose a smaller batch"
            )


def _check(config: TrainConfig, out: Path, resume: bool, overwrite: bool, checkpoint_minutes: float) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give the name of a folder")
    try:
        json.dumps([asdict(config.model), config.to_dict()])
    except TypeError as error:
        raise ValueError(f"the configuration cannot be kept as JSON: {error}; give Python's own numbers") from None
    taught = sum(updates for _, updates in config.lessons)
    if not resume and config.updates is not None and config.updates < taught:
        raise ValueError(
            f"the lessons on small grids take {taught:,} updates, so {config.updates:,} would end among them: give more"
        )
    if not 0 < checkpoint_minutes < math.inf:
        raise ValueError(f"checkpoint_minutes is a positive number, not {checkpoint_minutes}")
    if resume:
        if found := config.differences(saved_config(out)):
            raise ValueError(f"the run to resume has another configuration: {'; '.join(found)}")
    elif out.is_dir() and (foreign := _foreign(out)):
        raise ValueError(f"--out {out} holds {foreign}, and no run that could be overwritten; give another folder")
    elif out.is_dir() and any(not path.name.startswith(LITTER) for path in out.iterdir()) and not overwrite:
        going_on = "--resume to go on, or " if (out / checkpoints.NAME).is_file() else ""
        raise ValueError(f"--out {out} already has files: add {going_on}--overwrite to start anew")


def _foreign(out: Path) -> str | None:
    """The name of something in a folder that is not of a run, unless there is a run beside it."""
    try:
        saved_config(out)
    except ValueError:
        names = sorted(path.name for path in out.iterdir())
        return next((name for name in names if not name.startswith((*FILES, *LITTER)) and name != "tensorboard"), None)
    return None


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Make the folder of a run and keep other runs out of it; raises `ValueError` if there is one already."""
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(files.locked(out / LOCK))
        except BlockingIOError:
            raise ValueError(f"another run is writing in {out}: wait for its end, or give another folder") from None
        yield


def _clear_unfinished(out: Path) -> None:
    """Remove files that a killed run was about to write."""
    for name in FILES:
        for left in out.glob(f"{name}.*.part"):
            left.unlink()


def _clear_folder(out: Path) -> None:
    """Remove the files of an earlier run."""
    _clear_unfinished(out)
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    for events in out.glob("tensorboard/events.*"):
        events.unlink()


def saved_config(out: Path) -> TrainConfig:
    """The configuration of the run in a folder.

    Raises:
        ValueError: if there is no run, or its configuration cannot be read.
    """
    if not (out / "config.json").is_file():
        left = any((out / name).exists() for name in FILES)
        advice = "start again with --overwrite" if left else "start without --resume"
        raise ValueError(f"there is no run in {out} to resume; {advice}")
    saved = pretrained.read_config(out)
    try:
        return TrainConfig(model=ModelConfig(**saved["model"]), **saved["training"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{out / 'config.json'} is not that of a run: {error!r}") from None


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
