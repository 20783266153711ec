"""The shipped weights give the figures that `results/` records for them, on images of the test set drawn anew."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from chapters import ROOT
from safetensors import safe_open

import vnca
from vnca import data, evaluation, hardware, metrics, pretrained
from vnca.arithmetic import multiply_adds

DATA = Path(os.environ.get("VNCA_DATA", "nowhere"))
IMAGES, SAMPLES = 200, 4  # instead of the recorded 128: the bound is a little lower then, and 32 times as fast
LARGE = 1e9  # multiply-adds of a decoder, above which less has to do, in bfloat16 where there is any
FEWER_IMAGES, FEWER_SAMPLES = 80, 2
AFFORDABLE = 1e12  # multiply-adds of all growths, up to which every ELBO of a result is evaluated again
WIDER = sorted((ROOT / "results").glob("*-trust-*.json"))  # results from wider proposals, bounds of each image beside
AGAIN = 2  # images of them that are evaluated again
ROUNDING = 0.15  # nats an image, by which 16 bits on one machine and on another differ
SHORT = hardware.has_bfloat16(torch.device("cpu"))
DECODED, DECODED_AGAIN = {}, {}  # by encoder and decoder, and images: what was decoded for weights with another prior
has_data = pytest.mark.skipif(
    not list(DATA.glob("binarized_mnist/*test*")), reason="VNCA_DATA holds no binarized_mnist folder"
)


@has_data
@pytest.mark.parametrize("name", vnca.available())
def test_the_recorded_figures_hold_on_other_images(name):
    recorded = json.loads((ROOT / "results" / f"{name}.json").read_text())
    model = vnca.load(name)
    large = multiply_adds(model.decoder, (model.latent_size,)) > LARGE
    short = large and SHORT
    count, samples = (FEWER_IMAGES, FEWER_SAMPLES) if large else (IMAGES, SAMPLES)
    images = evaluation.choose(data.load(recorded["data"], "test").tensors[0], count, seed=1)
    decoded = DECODED.setdefault(evaluation.body(model), {})
    ours = evaluation.bounds(model, images, samples, seed=1, bfloat16=short, decoded=decoded)
    for figure, error in (("nats", "standard_error"), ("elbo", "elbo_standard_error")):
        spread = (getattr(ours, error) ** 2 + recorded[error] ** 2) ** 0.5
        assert abs(getattr(ours, figure) - recorded[figure]) < 3 * spread, figure


@has_data
@pytest.mark.parametrize("name", vnca.available())
def test_the_recorded_elbo_comes_out_again_from_the_same_images_and_noise(name):
    recorded = json.loads((ROOT / "results" / f"{name}.json").read_text())
    model, settings = vnca.load(name).to(memory_format=torch.channels_last), recorded["evaluation"]
    if recorded["images"] * multiply_adds(model.decoder, (model.latent_size,)) > AFFORDABLE:
        pytest.skip(f"{recorded['images']:,} growths of this size are too many for a test")
    images = data.binarize(evaluation.choose(data.load(recorded["data"], "test").tensors[0], recorded["images"]))
    units = [unit for unit in evaluation._units(len(images), 1) if unit.bound == "elbo"]
    decoded = DECODED_AGAIN.setdefault((evaluation.body(model), len(images)), {})
    values = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=SHORT):
        for unit in units:
            values += evaluation._bound(model, images, [unit], settings["seed"], settings.get("trust", 1.0), decoded)
    exact = not SHORT and settings["precision"] == "float32"
    assert sum(values) / len(values) == pytest.approx(recorded["elbo"], abs=0.005 if exact else 0.08)


@has_data
@pytest.mark.parametrize("path", WIDER, ids=lambda path: path.stem)
def test_the_bounds_that_a_figure_is_the_mean_of_come_out_again(path):
    recorded = json.loads(path.read_text())
    model, settings = vnca.load(recorded["name"]), recorded["evaluation"]
    images = data.binarize(data.load(recorded["data"], recorded["split"]).tensors[0])
    with safe_open(path.with_suffix(".safetensors"), framework="pt") as file:
        identity = json.loads(file.metadata()["evaluation"])
        indices, elbos, iwaes = (file.get_tensor(name) for name in ("indices", "elbos", "iwaes"))
    assert identity["weights"] == settings["weights"] == evaluation.digest(model.state_dict().values())
    assert identity["pixels"] == evaluation.digest([images.bool()]) and len(images) == recorded["images"]
    assert indices.tolist() == list(range(len(images)))
    assert iwaes.mean(dtype=torch.float64).item() == pytest.approx(recorded["nats"], abs=1e-4)
    assert elbos.mean(dtype=torch.float64).item() == pytest.approx(recorded["elbo"], abs=1e-4)
    model.to(memory_format=torch.channels_last)
    for image in torch.randperm(len(images), generator=torch.Generator().manual_seed(2))[:AGAIN].tolist():
        units = [
            unit
            for unit in evaluation._units(len(images), recorded["num_samples"])
            if unit.bound == "iwae" and unit.first <= image < unit.last
        ]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=SHORT):
            log_weights = evaluation._log_weights(model, images, units, settings["seed"], settings["trust"], None)
        again = log_weights.logsumexp(dim=0) - math.log(recorded["num_samples"])
        assert again.item() == pytest.approx(iwaes[image].item(), abs=ROUNDING)


LOGGED = [name for name in vnca.available() if (pretrained.FOLDER / name / metrics.NAME).exists()]


@pytest.mark.parametrize("name", LOGGED)
def test_the_log_beside_the_weights_is_that_of_their_run(name):
    run, records = pretrained.read_config(pretrained.find(name))["run"], metrics.read(pretrained.find(name))
    assert records[-1]["update"] == run["updates"] and records[-1]["fraction"] == 1
    assert records[-1]["seconds"] / 60 == pytest.approx(run["minutes"], abs=0.2)


def test_the_chapters_curve_has_its_log():
    assert "conv-mnist" in LOGGED
