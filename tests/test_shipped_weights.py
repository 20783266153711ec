"""The shipped weights give the figures that `results/` records for them, on images of the test set drawn anew."""

import json
import os
from pathlib import Path

import pytest
import torch
from chapters import ROOT

import vnca
from vnca import data, evaluation, hardware, metrics, pretrained
from vnca.arithmetic import multiply_adds

DATA = Path(os.environ.get("VNCA_DATA", "nowhere"))
IMAGES, SAMPLES = 200, 4  # instead of the recorded 128: the bound is a little lower then, and 32 times as fast
LARGE = 1e9  # multiply-adds of a decoder, above which less has to do, in bfloat16 where there is any
FEWER_IMAGES, FEWER_SAMPLES = 80, 2
DECODED = {}  # by encoder and decoder: what was decoded for weights with another prior


@pytest.mark.skipif(not list(DATA.glob("binarized_mnist/*test*")), reason="VNCA_DATA holds no binarized_mnist folder")
@pytest.mark.parametrize("name", vnca.available())
def test_the_recorded_figures_hold_on_other_images(name):
    recorded = json.loads((ROOT / "results" / f"{name}.json").read_text())
    model = vnca.load(name)
    large = multiply_adds(model.decoder, (model.latent_size,)) > LARGE
    short = large and hardware.has_bfloat16(torch.device("cpu"))
    count, samples = (FEWER_IMAGES, FEWER_SAMPLES) if large else (IMAGES, SAMPLES)
    images = evaluation.choose(data.load(recorded["data"], "test").tensors[0], count, seed=1)
    decoded = DECODED.setdefault(evaluation.body(model), {})
    ours = evaluation.bounds(model, images, samples, seed=1, bfloat16=short, decoded=decoded)
    for figure, error in (("nats", "standard_error"), ("elbo", "elbo_standard_error")):
        spread = (getattr(ours, error) ** 2 + recorded[error] ** 2) ** 0.5
        assert abs(getattr(ours, figure) - recorded[figure]) < 3 * spread, figure


LOGGED = [name for name in vnca.available() if (pretrained.FOLDER / name / metrics.NAME).exists()]


@pytest.mark.parametrize("name", LOGGED)
def test_the_log_beside_the_weights_is_that_of_their_run(name):
    run, records = pretrained.read_config(pretrained.find(name))["run"], metrics.read(pretrained.find(name))
    assert records[-1]["update"] == run["updates"] and records[-1]["fraction"] == 1
    assert records[-1]["seconds"] / 60 == pytest.approx(run["minutes"], abs=0.2)


def test_the_chapters_curve_has_its_log():
    assert "conv-mnist" in LOGGED
