"""The benchmark of samples: its classifier, its distance, and its rows."""

import json

import pytest
import samples
import torch

import vnca
from vnca import pretrained
from vnca.vae import build

CONFIG = vnca.ModelConfig("conv", 3, 1, {"width": 1})


def test_the_distance_is_known_for_gaussians_that_differ_in_one_number():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200_000, 3, generator=generator)
    stretched = noise * torch.tensor([1.0, 3.0, 1.0]) + torch.tensor([0.0, 0.0, 2.0])
    assert samples.frechet(noise, noise) == pytest.approx(0, abs=1e-6)
    assert samples.frechet(noise, stretched) == pytest.approx((3 - 1) ** 2 + 2**2, rel=0.02)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Runs the benchmark with digits of two kinds, left and right bars; returns its file."""
    torch.manual_seed(0)
    for name in ("one", "other"):
        pretrained.save(build(CONFIG), CONFIG, tmp_path / name, training={"data": "binarized-mnist"})
    labels = torch.arange(300) % 2
    images = torch.full((300, 1, 28, 28), 0.02)
    images[labels == 0, :, :, 4:8] = 0.98
    images[labels == 1, :, :, 20:24] = 0.98
    images[:, :, 14:] *= torch.rand(300, 1, 14, 1)  # some longer than others, so that features vary

    def load(name, split):
        pixels = images if name == "mnist" else images.round()
        return vnca.data.ImageDataset(name, split, pixels, labels)

    monkeypatch.setattr(samples.data, "load", load)
    monkeypatch.setattr(samples, "UPDATES", 60)
    monkeypatch.setattr(samples, "SAMPLES", 100)

    def run(*names, out="table.json"):
        assert samples.main([*(str(tmp_path / name) for name in names), "--out", str(tmp_path / out)]) == 0
        return json.loads((tmp_path / out).read_text())

    run.folder = tmp_path
    return run


def test_test_images_are_told_apart_and_noise_is_far_from_them(bench):
    table = bench("one", "other")
    assert table["accuracy"] > 0.99
    assert table["test"]["sure"][0] > 0.99 and sum(table["test"]["classes"]) == 100
    assert [row["model"] for row in table["rows"]] == ["one", "other"]
    for row in table["rows"]:
        assert row["images"] == 100 == sum(row["classes"])
        assert row["frechet"] > 10 * table["test"]["frechet"], "untrained models draw noise"


def test_a_row_is_measured_anew_to_the_same_figures_and_another_classifier_is_refused(bench, monkeypatch):
    first = bench("one", "other")
    again = bench("one")
    assert [row["model"] for row in again["rows"]] == ["other", "one"]
    for key in ("sure", "classes", "frechet"):
        assert again["rows"][1][key] == first["rows"][0][key]
    monkeypatch.setattr(samples, "UPDATES", 61)
    with pytest.raises(ValueError, match="were judged by another classifier"):
        bench("one")
