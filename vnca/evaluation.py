"""How good a model is: ELBO and importance-weighted bound on held-out images, in nats per image.

An evaluation is a sequence of units: a bound of one or a few images from at most `UNIT` samples of the latent. The
noise of a unit depends on the seed and on the unit's place alone, and the importance-weighted bound of an image is put
together from those of its units. So memory does not grow with the number of samples, and an evaluation that was cut at
any moment goes on, on the same machine, to exactly the same figures. A CPU evaluates one unit after another, a GPU a
group of them at once.
"""

import datetime
import hashlib
import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributions import Normal

from vnca import data, files, hardware, pretrained
from vnca.checks import differences, whole
from vnca.seeds import seed_of
from vnca.vae import VAE, ModelConfig, bernoulli_log_likelihood, encode_in_chunks, require_pixels

UNIT = 64  # samples of a unit: seconds of the paper's model on two CPU cores
ELBO_IMAGES = 16  # images of a unit of the ELBO, which takes one sample of each
CPU_CHUNK = 16  # latents decoded at once on a CPU: as fast as 64, in less memory
GPU_SAMPLES = 1024  # at most so many latents are decoded at once on a GPU: those of a group of units
IDENTITY = ("weights", "model", "data", "images", "num_samples", "seed", "trust", "precision")  # what a result is of
SAVE_SECONDS = 10.0  # between two writes of what is kept, and so what a kill costs, up to one group of units more


@dataclass(frozen=True)
class Bounds:
    """Bounds of images, and their means with standard errors over images, in nats.

    Attributes:
        elbos: the ELBO of every image in order, one sample an image, `(N,)` float64.
        iwaes: the importance-weighted bound of every image in order, `(N,)` float64.
        num_samples: importance samples an image.
        minutes: time the evaluation took.
    """

    elbos: Tensor
    iwaes: Tensor
    num_samples: int
    minutes: float

    @property
    def images(self) -> int:
        """How many images."""
        return len(self.iwaes)

    @property
    def nats(self) -> float:
        """Mean of the importance-weighted bound."""
        return self.iwaes.mean().item()

    @property
    def standard_error(self) -> float:
        """Of `nats`."""
        return mean_and_error(self.iwaes)[1]

    @property
    def elbo(self) -> float:
        """Mean of the ELBO."""
        return self.elbos.mean().item()

    @property
    def elbo_standard_error(self) -> float:
        """Of `elbo`."""
        return mean_and_error(self.elbos)[1]


def mean_and_error(values: Tensor) -> list[float]:
    """The mean of values `(N,)` and its standard error."""
    return [values.mean().item(), (values.std() / len(values) ** 0.5).item()]


class _Unit(NamedTuple):
    """Images `first` to `last` (without it), with `samples` samples each; `block` counts the units of one image."""

    bound: str  # "elbo" or "iwae"
    first: int
    last: int
    samples: int
    block: int

    @property
    def images(self) -> int:
        return self.last - self.first

    @property
    def size(self) -> int:
        """Samples of all its images."""
        return self.images * self.samples


def _units(images: int, num_samples: int) -> Iterator[_Unit]:
    """All units of an evaluation: first the ELBO of every image, then the bounds, image after image."""
    for first in range(0, images, ELBO_IMAGES):
        yield _Unit("elbo", first, min(first + ELBO_IMAGES, images), 1, 0)
    together = max(1, UNIT // num_samples)  # images, where one alone has few samples
    for first in range(0, images, together):
        for block, done in enumerate(range(0, num_samples, UNIT)):
            yield _Unit("iwae", first, min(first + together, images), min(UNIT, num_samples - done), block)


def _units_at_once(bound: str, num_samples: int, device: torch.device) -> int:
    """How many consecutive units of a bound go together in a group.

    On a GPU they are those of as many images as fit. Wherever such a group begins, it has the same number of samples,
    so that the kernels see one shape, and another one in the last group. (Where one image has more than `GPU_SAMPLES`,
    and these are no multiple of `UNIT`, there are two.)
    """
    if device.type == "cpu":
        return 1
    if bound == "elbo":
        return GPU_SAMPLES // ELBO_IMAGES
    samples = num_samples * max(1, UNIT // num_samples)  # of one image, or of those that share a unit
    if samples > GPU_SAMPLES:
        return GPU_SAMPLES // UNIT
    return GPU_SAMPLES // samples * math.ceil(num_samples / UNIT)


def _combine(values: list[float], images: int, num_samples: int) -> tuple[Tensor, Tensor]:
    """ELBO and importance-weighted bound of each image, `(N,)` each, from the values of all units in order."""
    elbos, blocks = torch.tensor(values, dtype=torch.float64).tensor_split([images])
    blocks = blocks.view(images, -1)  # (N, number of blocks)
    sizes = torch.full(blocks.shape[1:], UNIT, dtype=torch.float64)
    sizes[-1] = num_samples - UNIT * (len(sizes) - 1)
    # Each block is the log of a mean over its samples; their mean by size is the mean over all samples.
    return elbos, (blocks + sizes.log()).logsumexp(dim=1) - math.log(num_samples)


class Kept:
    """What an evaluation has so far, in a file that a later call goes on from.

    Args:
        path: the file; it is written beside and renamed.
        identity: what determines the figures, as JSON values by name.
    """

    def __init__(self, path: str | os.PathLike, identity: dict):
        self.path, self.identity = Path(path), identity

    def load(self) -> tuple[list[float], float]:
        """The values of the units done and the seconds spent; nothing and 0 where there is no file.

        Raises:
            ValueError: if the file is of another evaluation, with the differences, or cannot be read.
        """
        if not self.path.exists():
            return [], 0.0
        try:
            with safe_open(self.path, framework="pt") as file:
                values = _checked(file.get_tensor("values"))
                if file.metadata() is None:
                    raise ValueError("it does not say of which evaluation it is")
                saved = json.loads(file.metadata()["evaluation"])
                theirs, seconds = dict(saved["identity"]), float(saved["seconds"])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} cannot be read ({error}); start anew with --overwrite") from None
        # Before there were wider proposals, nothing said that the posterior itself was drawn from.
        if found := differences({"trust": 1.0} | theirs, {"trust": 1.0} | self.identity):
            raise ValueError(
                f"{self.path} is of another evaluation: {'; '.join(found)}. Repeat that one to go on with it, "
                "or add --overwrite to start anew"
            )
        return values, seconds

    def save(self, values: list[float], seconds: float) -> None:
        """Write the values of the units done; raises `OSError` if the folder cannot be written."""
        saved = {"identity": self.identity, "seconds": seconds}
        tensors = {"values": torch.tensor(values, dtype=torch.float64)}
        files.write_tensors(self.path, tensors, {"evaluation": json.dumps(saved)})

    def remove(self) -> None:
        """Remove the file, and what a kill may have left of one."""
        for path in self.path.parent.iterdir():
            if path == self.path or (path.name.startswith(f"{self.path.name}.") and path.suffix == ".part"):
                path.unlink(missing_ok=True)


def _checked(values: Tensor) -> list[float]:
    """The values of units as numbers; raises `ValueError` unless they are a list of numbers."""
    if values.ndim != 1 or values.isnan().any():
        raise ValueError("its values are no list of numbers")
    return values.tolist()


@torch.no_grad()
def bounds(
    model: VAE,
    images: Tensor,
    num_samples: int = 128,
    seed: int = 0,
    *,
    trust: float = 1.0,
    bfloat16: bool = False,
    kept: Kept | None = None,
    decoded: dict[tuple, Tensor] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Bounds:
    """ELBO and importance-weighted bound of a model, in float32 unless `bfloat16` is asked for.

    Args:
        model: a `VAE`; it is evaluated where its weights are.
        images: `(N, 1, 28, 28)` in [0, 1], at least two; grey images should be binarized first.
        num_samples: importance samples an image.
        seed: of all noise. It is drawn on the CPU, so that a GPU gets the same.
        trust: the importance-weighted bound draws from `wider(posterior, trust)`, the ELBO from the posterior itself.
        bfloat16: multiply in bfloat16.
        kept: where to keep what is done, and to go on from.
        decoded: log p(x | z) of groups of units, taken from here where it is there, else computed and put here. So a
            second model with the same encoder and decoder, whose prior alone differs, need not decode again. `body`
            tells which models have the same. It needs the same images, `seed`, `trust` and `bfloat16`.
        progress: called at the start and after each group of units with the number of samples done and of all
            samples.

    Raises:
        ValueError: if there are fewer than two images, they have another shape or pixels outside [0, 1],
            `num_samples` is below 1, `trust` is not in (0, 1], or `kept` does not fit.
    """
    num_samples, seed = _require_settings(len(images), num_samples, seed, trust)
    require_pixels(images)
    model.eval().to(memory_format=torch.channels_last)  # the same numbers, in less time
    device = next(model.parameters()).device
    values, spent = kept.load() if kept is not None else ([], 0.0)
    started = saved = time.monotonic()
    if kept is not None:
        kept.save(values, spent)  # a folder that cannot be written is better known now than after hours
    units, total = _units(len(images), num_samples), len(images) * (1 + num_samples)
    done = _pass_over(units, len(values))  # samples of what was kept, then of all that is done
    arithmetic = torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16)
    try:
        # float32 is float32 on a GPU, too
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), arithmetic:
            for bound, same in itertools.groupby(units, lambda unit: unit.bound):
                at_once = _units_at_once(bound, num_samples, device)
                while group := list(itertools.islice(same, at_once)):
                    if progress is not None:
                        progress(done, total)
                    values.extend(_bound(model, images, group, seed, trust, decoded))
                    done += sum(unit.size for unit in group)
                    if kept is not None and time.monotonic() - saved > SAVE_SECONDS:
                        kept.save(values, spent + time.monotonic() - started)
                        saved = time.monotonic()
    finally:
        if kept is not None:
            kept.save(values, spent + time.monotonic() - started)
    if progress is not None:
        progress(total, total)
    minutes = (spent + time.monotonic() - started) / 60
    return Bounds(*_combine(values, len(images), num_samples), num_samples, round(minutes, 2))


def _require_settings(images: int, num_samples: int, seed: int, trust: float) -> list[int]:
    """The number of samples and the seed as `int`; raises `ValueError` if a setting of `bounds` is out of range."""
    num_samples, seed = whole(num_samples=num_samples, seed=seed)
    if images < 2:
        raise ValueError(f"a mean with a standard error needs at least 2 images, not {images}")
    if num_samples < 1:
        raise ValueError(f"num_samples is at least 1, not {num_samples}")
    if not 0 < trust <= 1:
        raise ValueError(f"trust is above 0 and at most 1, not {trust}")
    return [num_samples, seed]


def _pass_over(units: Iterator[_Unit], count: int) -> int:
    """Leave out the units that made the first `count` values; the number of their samples.

    Raises:
        ValueError: if no number of units makes so many.
    """
    made = samples = 0
    while made < count:
        unit = next(units, None)
        if unit is None or made + unit.images > count:
            raise ValueError(f"{count} values are kept, which no part of this evaluation has; start anew")
        made, samples = made + unit.images, samples + unit.size
    return samples


def wider(posterior: Normal, trust: float) -> Normal:
    """A proposal for importance samples: the posterior, of which what it knows about the image counts less.

    Where the posterior of a number of the latent has the scale s, the image has added 1/s² - 1 to the precision 1 of a
    standard normal. The proposal gets `trust` of that. So numbers that say much about the image become wider, by up to
    `trust ** -0.5`, unused ones stay as they are, and one with a posterior wider than the prior becomes narrower. An
    encoder that maximizes the ELBO has good reason to be narrow: where z ~ q is unlikely, the ELBO pays in full. The
    bound of many samples pays for what is never drawn.

    Args:
        posterior: `Normal` of batch shape `(B, D)`.
        trust: in (0, 1]; 1 changes nothing.
    """
    if trust == 1:
        return posterior
    precision = 1 + trust * (posterior.stddev**-2 - 1)  # (B, D)
    return Normal(posterior.mean, precision**-0.5, validate_args=False)


def _bound(
    model: VAE, images: Tensor, units: list[_Unit], seed: int, trust: float, decoded: dict[tuple, Tensor] | None
) -> list[float]:
    """The values of some units in order: those of `elbo` or `iwae` for each, up to rounding.

    Args:
        model: a `VAE`.
        images: all images, `(N, 1, 28, 28)`.
        units: consecutive units of one bound.
        seed: of all noise.
        trust: as for `bounds`.
        decoded: as for `bounds`.
    """
    log_weights = _log_weights(model, images, units, seed, trust, decoded)
    log_weights = log_weights.cpu()  # all at once, because this waits for a GPU
    values = []
    for unit, part in zip(units, log_weights.split([unit.size for unit in units]), strict=True):
        part = part.view(unit.samples, unit.images)
        values += (part.logsumexp(dim=0) - math.log(unit.samples)).tolist()  # (K, B) -> (B,)
    return values


def _log_weights(
    model: VAE, images: Tensor, units: list[_Unit], seed: int, trust: float, decoded: dict[tuple, Tensor] | None
) -> Tensor:
    """log p(x, z) / q(z | x) of all samples of consecutive units, decoded together: `(M,)`, unit after unit.

    Where the bound is the ELBO, log q(z | x) / p(z) is replaced by the divergence, as in `elbo`.
    """
    first, last, device = units[0].first, units[-1].last, next(model.parameters()).device
    chunk_size = CPU_CHUNK if device.type == "cpu" else GPU_SAMPLES
    x = images[first:last].to(device)  # (B, 1, 28, 28)
    posterior = encode_in_chunks(model, x, chunk_size)  # of batch shape (B, D)
    if units[0].bound == "iwae":
        posterior = wider(posterior, trust)
    noise = torch.cat([_noise(unit, posterior.mean, seed) for unit in units]).to(device)  # (M, D)
    owners = torch.cat([torch.arange(unit.first, unit.last).repeat(unit.samples) for unit in units]) - first  # (M,)
    at_once = max(1, chunk_size // units[0].images) * units[0].images  # the chunks of a unit are those of `iwae`
    chunks = [len(chunk) for part in owners.split(at_once) for chunk in part.split(chunk_size)]
    known = None if decoded is None else decoded.get(tuple(units))
    log_likelihoods, divergences = [], []
    for owner, eps in zip(owners.to(device).split(chunks), noise.split(chunks), strict=True):
        q = Normal(posterior.mean[owner], posterior.stddev[owner], validate_args=False)
        z = q.mean + q.stddev * eps  # (M', D)
        if units[0].bound == "elbo":
            divergences.append(model.prior.divergence(q, z))  # (M',)
        else:
            divergences.append(q.log_prob(z).sum(dim=-1) - model.prior.log_prob(z))  # (M',)
        if known is None:
            log_likelihoods.append(bernoulli_log_likelihood(model.decode(z), x[owner]))  # (M',)
    log_likelihood = torch.cat(log_likelihoods) if known is None else known.to(device)  # (M,)
    if decoded is not None:
        decoded[tuple(units)] = log_likelihood.cpu()
    return log_likelihood - torch.cat(divergences)


def _noise(unit: _Unit, like: Tensor, seed: int) -> Tensor:
    """Noise for the `K` samples of the `B` images of a unit, in the type of `like` `(..., D)`: `(K B, D)` on the CPU.

    Drawn sample by sample, as `elbo` and `iwae` do.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, unit.bound, unit.first, unit.block))
    shape = (unit.images, like.shape[-1])
    return torch.cat([torch.randn(shape, dtype=like.dtype, generator=generator) for _ in range(unit.samples)])


def choose(images: Tensor, limit: int | None, seed: int = 0) -> Tensor:
    """`limit` of the images, drawn at random by `seed`, or all of them if there are not more or `limit` is None.

    Drawn, and not the first ones, because files of binarized MNIST exist whose rows are sorted by digit.

    Raises:
        ValueError: if `limit` is below 1 or no whole number.
    """
    if limit is None:
        return images
    (limit,) = whole(limit=limit)
    if limit >= len(images):
        return images
    if limit < 1:
        raise ValueError(f"the limit is at least 1 image, not {limit}")
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:limit]]


def evaluate(
    weights: str,
    num_samples: int = 128,
    limit: int | None = None,
    seed: int = 0,
    *,
    trust: float = 1.0,
    bfloat16: bool = False,
    against: str | None = None,
    out: str | os.PathLike | None = None,
    per_image: str | os.PathLike | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Evaluate trained weights on the test split of the data they were trained on.

    Grey images are binarized once, by a fixed seed; the bounds are those of that binarization.

    Args:
        weights: a name or a folder, as `vnca.load` takes it.
        num_samples: importance samples an image.
        limit: evaluate on this many images, drawn at random, instead of all.
        seed: of the noise of the samples. The images of a limit do not depend on it.
        trust: as for `bounds`; less than 1 draws from wider proposals.
        bfloat16: multiply in bfloat16. It takes half to two thirds of the time and changes the figures a little.
        against: other weights, to be evaluated on the same images. The difference of two models, image by image, is
            much surer than their two standard errors suggest, because most of those is the images' own. Where only
            their priors differ, each latent is decoded once for both.
        out: a JSON file for the result. What is done is kept beside it until then, in a file of the same name with
            `.part.safetensors` added, and an evaluation that was cut goes on from there when it is called again.
            What is done of `against` is kept in a second one, `.against.part.safetensors`.
        per_image: a safetensors file for the bounds of each image, `elbos` and `iwaes` `(N,)` in float32, and which
            images of the split they are, `indices` `(N,)`. Of these weights alone, not of `against`.
        overwrite: start anew, whatever is kept, and replace whatever `out` and `per_image` are. Without it only a
            result, or bounds, of the same weights, images, samples, seed, trust and precision are replaced.
        progress: called with the number of samples done and of all samples.

    Returns:
        What a file of `results/` holds: model, data, bounds, parameters; of the training its updates, minutes, hardware
        and commit; of the evaluation its date, machine, commit and a digest of the weights it read. With
        `against`, its entry `"against"` holds the other bounds and the differences, this model's minus the
        other's.

    Raises:
        ValueError: if there are no such weights, a number is out of range, `against` was trained on other data, what
            is kept beside `out` is of another evaluation, `out` is another result or no result, `per_image` is no file
            for bounds or holds those of another evaluation, there can be no such files, a running training replaces the
            weights just now, or the machine has no bfloat16.
        vnca.data.DataError: if the data cannot be had.
        OSError: if `out` or `per_image` cannot be written.
    """
    for option, path in (("out", out), ("per_image", per_image)):
        if path is not None:
            files.require_place(path, option)
    (seed,) = whole(seed=seed)
    if not 0 <= seed < 2**32:
        raise ValueError(f"the seed is a whole number from 0 to {2**32 - 1}, not {seed}")
    folders = [pretrained.find(each) for each in (weights, against) if each is not None]
    configs = [pretrained.read_config(folder) for folder in folders]  # now: a running training may replace them
    names = [_data_of(folder, config) for folder, config in zip(folders, configs, strict=True)]
    if names[0] != names[-1]:
        raise ValueError(f"only models of the same data can be compared, not of {names[0]} and {names[-1]}")
    device = hardware.best_device()
    hardware.keep_memory()
    if bfloat16 and not hardware.has_bfloat16(device):
        raise ValueError(f"{hardware.machine(device)} does not multiply in bfloat16: evaluate in float32")
    models = [pretrained.load(folder) for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        pretrained.require_pair(folder, config)
    images = data.binarize(data.load(names[0], "test").tensors[0])
    indices = choose(torch.arange(len(images)), limit)
    images = images[indices]
    num_samples, _ = _require_settings(len(images), num_samples, seed, trust)
    common = {
        "data": names[0],
        "images": len(images),
        "pixels": digest([images.bool()]),
        "num_samples": num_samples,
        "seed": seed,
        "trust": float(trust),
        "precision": "bfloat16 autocast" if bfloat16 else "float32",
        "machine": hardware.machine(device),
        "units": [UNIT, ELBO_IMAGES],
    }
    weights_of = [digest(model.state_dict().values()) for model in models]
    identities = [{"weights": w, "model": c["model"]} | common for w, c in zip(weights_of, configs, strict=True)]
    if per_image is not None and out is not None and files.resolved(per_image) == files.resolved(out):
        raise ValueError(f"{out} cannot hold the result and the bounds of each image, too: give two names")
    if per_image is not None:
        _require_file_for_bounds(Path(per_image), identities[0], overwrite)
    kept = [] if out is None else _kept_beside(out, identities, overwrite)
    begun = bool(kept) and kept[0].path.exists()  # then `out` was asked about before, and not to be spared
    if out is not None and not overwrite and not begun:
        compared = {} if against is None else {"name": folders[1].resolve().name, "weights": weights_of[1]}
        _require_replaceable(Path(out), identities[0], compared)
    found, decoded = [], {} if against is not None and _differ_in_prior_alone(folders, models) else None
    for number, model in enumerate(models):
        measured = bounds(
            model.to(device),
            images,
            num_samples,
            seed,
            trust=trust,
            bfloat16=bfloat16,
            kept=kept[number] if kept else None,
            decoded=decoded,
            progress=progress and _as_part(progress, number, len(models)),
        )
        found.append(measured)
    evaluation = {key: common[key] for key in ("machine", "precision", "seed", "trust")}
    evaluation |= {"weights": weights_of[0], "commit": hardware.commit()}
    result = _record(folders[0].resolve().name, configs[0], models[0], found[0], evaluation)
    if against is not None:
        result["against"] = {"name": folders[1].resolve().name, "weights": weights_of[1]} | _differences(*found)
    if per_image is not None:
        of_each = {"indices": indices.int(), "elbos": found[0].elbos.float(), "iwaes": found[0].iwaes.float()}
        files.write_tensors(per_image, of_each, {"evaluation": json.dumps(identities[0])})
    if out is not None:
        files.write_json(out, result)
    for each in kept:
        each.remove()
    return result


def _require_replaceable(out: Path, identity: dict, compared: dict) -> None:
    """Raise `ValueError` if `out` is a file, and not the result of the same evaluation, which may be made anew.

    `compared` names the other model and its weights, or is empty.
    """
    if not out.is_file():
        return
    try:
        result = json.loads(out.read_text(encoding="utf-8"))
        # Older results do not name a trust: they drew from the posterior itself.
        theirs = {"trust": 1.0, **result["evaluation"], **result, "model": result["config"]["model"]}
        other = dict(result.get("against", {}))
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{out} is no result of an evaluation: give another name, or add --overwrite") from None
    there, now = ({name: settings.get(name) for name in IDENTITY} for settings in (theirs, identity))
    # What was compared is not to be lost; a comparison may be added. Older results name the other model alone.
    for key, words in (("name", "against"), ("weights", "weights of against")):
        if key in other:
            there[words], now[words] = other[key], compared.get(key)
    if found := differences(there, now):
        raise ValueError(
            f"{out} is the result of another evaluation: {'; '.join(found)}. Give another name, or add --overwrite"
        )


def _require_file_for_bounds(path: Path, identity: dict, overwrite: bool) -> None:
    """Raise, before the work begins, if the bounds of each image cannot be written there or would replace other things.

    Raises:
        ValueError: if the name is not one for bounds, or what is there are no bounds, or those of another evaluation,
            and `overwrite` does not allow it.
        OSError: if the folder cannot be written.
    """
    if not path.name.endswith(".safetensors") or path.name.endswith(".part.safetensors"):
        raise ValueError(f"the bounds of each image go into a file NAME.safetensors (not .part), not into {path}")
    with tempfile.TemporaryFile(dir=path.parent):
        pass
    if path.exists() and not overwrite:
        try:
            with safe_open(path, framework="pt") as file:
                theirs = {"trust": 1.0} | json.loads(file.metadata()["evaluation"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            raise ValueError(f"{path} holds no bounds: give another name, or add --overwrite") from None
        there, now = ({name: settings.get(name) for name in (*IDENTITY, "pixels")} for settings in (theirs, identity))
        if found := differences(there, now):
            raise ValueError(
                f"{path} holds the bounds of another evaluation: {'; '.join(found)}. Give another name, or add "
                "--overwrite"
            )


def kept_path(out: str | os.PathLike) -> Path:
    """The file beside a result to be, in which is kept what is done."""
    return Path(f"{os.fspath(out)}.part.safetensors")


def _kept_beside(out: str | os.PathLike, identities: list[dict], overwrite: bool) -> list[Kept]:
    """Where the evaluations of a model and of another one are kept; both, also where there is one model only.

    So the second file, which an earlier comparison may have left, is removed at the end as well.

    Raises:
        ValueError: if one is of another evaluation. That is better known before the work than after hours.
    """
    paths = (kept_path(out), kept_path(f"{os.fspath(out)}.against"))
    kept = [Kept(path, identity) for path, identity in itertools.zip_longest(paths, identities, fillvalue={})]
    for each in kept if overwrite else ():
        each.remove()
    for each in kept[: len(identities)]:
        each.load()
    return kept


def _differ_in_prior_alone(folders: Sequence[Path], models: Sequence[VAE]) -> bool:
    """Whether models have the same encoder and decoder: settings and weights."""
    configs = [pretrained.read_model_config(folder) for folder in folders]
    settings = [replace(config, components=0, correlated=0) for config in configs]
    return all(each == settings[0] for each in settings) and len({body(model) for model in models}) == 1


def body(model: VAE) -> str:
    """What tells the weights of an encoder and a decoder from others, whatever the prior."""
    return digest(weight for name, weight in model.state_dict().items() if not name.startswith("prior."))


def _as_part(progress: Callable[[int, int], None], before: int, parts: int) -> Callable[[int, int], None]:
    """What reports the progress of one of several evaluations of the same length as that of all."""
    return lambda done, total: progress(before * total + done, parts * total)


def _record(name: str, config: dict, model: VAE, measured: Bounds, evaluation: dict) -> dict:
    """What a file of `results/` holds about weights of that name and config."""
    figures = ("images", "num_samples", "nats", "standard_error", "elbo", "elbo_standard_error")
    return {
        "name": name,
        "model": ModelConfig(**config["model"]).decoder,
        "data": config["training"]["data"],
        "split": "test",
        **{figure: getattr(measured, figure) for figure in figures},
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()},
        **config["run"],  # of the training: updates, images seen, minutes, hardware, commit
        "date": datetime.date.today().isoformat(),
        "evaluation": {"minutes": measured.minutes, **evaluation},
        "config": {"model": config["model"], "training": config["training"]},
    }


def _data_of(folder: Path, config: dict) -> str:
    """The data set that the weights in a folder were trained on."""
    training, run = config.get("training"), config.get("run")
    if not isinstance(training, dict) or "data" not in training or not isinstance(run, dict):
        raise ValueError(f"{folder / 'config.json'} does not say on which data the weights were trained, and how long")
    return training["data"]


def _differences(ours: Bounds, theirs: Bounds) -> dict[str, float]:
    """The other model's figures, and by how much ours are higher on the same images, with standard errors."""
    more = Bounds(ours.elbos - theirs.elbos, ours.iwaes - theirs.iwaes, ours.num_samples, theirs.minutes)
    return {
        "nats": theirs.nats,
        "elbo": theirs.elbo,
        "difference": more.nats,
        "difference_standard_error": more.standard_error,
        "elbo_difference": more.elbo,
        "elbo_difference_standard_error": more.elbo_standard_error,
        "minutes": theirs.minutes,
    }


def digest(tensors: Iterable[Tensor]) -> str:
    """A quarter of the SHA-256 of what the tensors hold: enough to tell that they are others."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.cpu().numpy().tobytes())  # in the order of the indices, however they lie in memory
    return found.hexdigest()[:16]
