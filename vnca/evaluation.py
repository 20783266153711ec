"""How good a model is: ELBO and importance-weighted bound on held-out images, in nats per image."""

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vnca import data, hardware, pretrained
from vnca.vae import VAE, ModelConfig, elbo, iwae, require_pixels

BATCH = 64  # images whose bound is computed at once


@dataclass(frozen=True)
class Bounds:
    """Means over images and their standard errors, in nats.

    Attributes:
        images: how many images.
        num_samples: importance samples an image.
        nats: mean of the importance-weighted bound.
        standard_error: of `nats`, over images.
        elbo: mean of the ELBO, one sample an image.
        elbo_standard_error: of `elbo`, over images.
        minutes: time the evaluation took.
    """

    images: int
    num_samples: int
    nats: float
    standard_error: float
    elbo: float
    elbo_standard_error: float
    minutes: float


@torch.no_grad()
def bounds(
    model: VAE,
    images: Tensor,
    num_samples: int = 128,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Bounds:
    """ELBO and importance-weighted bound of a model, in float32.

    Args:
        model: a `VAE`; it is evaluated where its weights are.
        images: `(N, 1, 28, 28)` in [0, 1], at least two; grey images should be binarized first.
        num_samples: importance samples an image.
        seed: of all noise.
        progress: called with the number of images done and of all images.

    Raises:
        ValueError: if there are fewer than two images, or they have another shape or pixels outside [0, 1].
    """
    if len(images) < 2:
        raise ValueError(f"a mean with a standard error needs at least 2 images, not {len(images)}")
    require_pixels(images)
    model.eval().to(memory_format=torch.channels_last)  # the same numbers, in less time
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    started = time.monotonic()
    elbos, iwaes = [], []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # float32 is float32 on a GPU, too
        for batch in images.split(BATCH):
            x = batch.to(device)  # (B, 1, 28, 28)
            elbos.append(elbo(model, x, generator).cpu())
            iwaes.append(iwae(model, x, num_samples, generator=generator).cpu())
            if progress is not None:
                progress(sum(map(len, iwaes)), len(images))
    (elbo_mean, elbo_error), (iwae_mean, iwae_error) = (_mean_and_error(torch.cat(v)) for v in (elbos, iwaes))
    minutes = (time.monotonic() - started) / 60
    return Bounds(len(images), num_samples, iwae_mean, iwae_error, elbo_mean, elbo_error, round(minutes, 2))


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    values = values.double()
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def choose(images: Tensor, limit: int | None, seed: int = 0) -> Tensor:
    """`limit` of the images, drawn at random by `seed`, or all of them if there are not more or `limit` is None.

    Drawn, and not the first ones, because files of binarized MNIST exist whose rows are sorted by digit.

    Raises:
        ValueError: if `limit` is below 1.
    """
    if limit is None or limit >= len(images):
        return images
    if limit < 1:
        raise ValueError(f"the limit is at least 1 image, not {limit}")
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:limit]]


def evaluate(
    weights: str,
    num_samples: int = 128,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Evaluate trained weights on the test split of the data they were trained on.

    Grey images are binarized once, by a fixed seed; the bounds are those of that binarization.

    Args:
        weights: a name or a folder, as `vnca.load` takes it.
        num_samples: importance samples an image.
        limit: evaluate on this many images, drawn at random, instead of all.
        progress: called with the number of images done and of all images.

    Returns:
        What a file of `results/` holds: model, data, bounds, parameters, the run, hardware, commit, date.

    Raises:
        ValueError: if there are no such weights, or a number is out of range.
        vnca.data.DataError: if the data cannot be had.
    """
    folder = pretrained.find(weights)
    config = pretrained.read_config(folder)
    device = hardware.best_device()
    model = pretrained.load(folder).to(device)
    if "training" not in config or "run" not in config:
        raise ValueError(f"{folder / 'config.json'} does not say on which data the weights were trained, and how long")
    name = config["training"]["data"]
    images = data.binarize(data.load(name, "test").tensors[0])
    result = bounds(model, choose(images, limit), num_samples, progress=progress)
    return {
        "name": folder.resolve().name,
        "model": ModelConfig(**config["model"]).decoder,
        "data": name,
        "split": "test",
        **{key: value for key, value in vars(result).items() if key != "minutes"},
        "parameters": {
            "encoder": sum(p.numel() for p in model.encoder.parameters()),
            "decoder": sum(p.numel() for p in model.decoder.parameters()),
        },
        **config["run"],  # of the training: updates, images seen, minutes, hardware, commit
        "date": datetime.date.today().isoformat(),
        "evaluation": {"minutes": result.minutes, "machine": hardware.machine(device), "precision": "float32"},
        "config": {"model": config["model"], "training": config["training"]},
    }
