"""The benchmark of gaps below log p(x): its figures, their order, and what it keeps when it is cut."""

import json
import math

import gaps
import pytest
import torch

import vnca
from vnca import pretrained
from vnca.vae import build

CONFIG = vnca.ModelConfig("conv", 3, 1, {"width": 1})


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Runs the benchmark on the few images of a made-up data set; returns its rows."""
    torch.manual_seed(0)
    pretrained.save(build(CONFIG), CONFIG, tmp_path / "run", training={"data": "binarized-mnist"})
    images = torch.rand(30, 1, 28, 28).round()

    def load(name, split):
        return vnca.data.ImageDataset(name, split, images, torch.full((30,), -1))

    monkeypatch.setattr(gaps.data, "load", load)
    monkeypatch.setattr(gaps, "AT_ONCE", 3)

    def run(*more, out="table.json"):
        assert gaps.main([str(tmp_path / "run"), "--out", str(tmp_path / out), *more]) == 0
        return json.loads((tmp_path / out).read_text())["rows"]

    run.folder = tmp_path
    return run


def test_the_figures_of_an_image_come_in_the_order_that_theory_demands(bench):
    (row,) = bench("--images", "6")
    means = {name: sum(values) / 6 for name, values in row["figures"].items()}
    assert all(len(values) == 6 and all(map(math.isfinite, values)) for values in row["figures"].values())
    assert means["elbo"] < means["elbo_searched"] < means["upper"]
    assert means["elbo"] < means["bound"] <= means["upper"] + 0.05
    assert means["elbo_searched"] < means["lower"] + 0.05 and means["lower"] <= means["upper"] + 0.05
    assert means["upper"] - means["lower"] < 1, "a latent of three numbers leaves little room"


def test_a_call_for_more_images_goes_on_to_the_same_figures(bench, monkeypatch):
    (whole,) = bench("--images", "9", out="whole.json")
    measure, calls = gaps.measure, []

    def cut_off(*arguments):
        calls.append(arguments[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(gaps, "measure", cut_off)
        with pytest.raises(KeyboardInterrupt):
            bench("--images", "6")
    monkeypatch.setattr(gaps, "measure", lambda *a: calls.append(a[2]) or measure(*a))
    bench("--images", "6")
    (row,) = bench("--images", "9")
    assert row["figures"] == whole["figures"]
    assert calls == [0, 3, 3, 6], "each part once, but for the one that was cut"


def test_images_come_in_whole_groups(bench, capsys):
    for images in ("0", "4"):
        with pytest.raises(SystemExit):
            bench("--images", images)
        assert f"--images is a multiple of 3, not {images}" in capsys.readouterr().err


def test_other_weights_begin_anew_and_other_settings_are_refused(bench, monkeypatch):
    (before,) = bench("--images", "3")
    torch.manual_seed(1)
    pretrained.save(build(CONFIG), CONFIG, bench.folder / "run", training={"data": "binarized-mnist"})
    (row,) = bench("--images", "3")
    assert row["figures"] != before["figures"] and len(row["figures"]["elbo"]) == 3
    monkeypatch.setattr(gaps, "SETTINGS", gaps.SETTINGS | {"chains": 1})
    with pytest.raises(ValueError, match="was measured with .*'chains': 4.* not with .*'chains': 1.* give another"):
        bench("--images", "3")
