"""Evaluation: means and errors over images, a limit drawn at random, reproducible noise."""

import pytest
import torch

import vnca
from vnca import evaluation
from vnca.vae import ModelConfig, build


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build(ModelConfig("conv", 4, 2, {"width": 2}))


def test_bounds_are_means_with_standard_errors_over_images(model):
    images = torch.rand(7, 1, 28, 28, generator=torch.Generator().manual_seed(0)).round()
    result = evaluation.bounds(model, images, num_samples=3, seed=5)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        elbo = vnca.elbo(model, images, generator)
        iwae = vnca.iwae(model, images, 3, generator=generator)
    assert result.elbo == pytest.approx(elbo.mean().item(), rel=1e-6)
    assert result.nats == pytest.approx(iwae.mean().item(), rel=1e-6)
    assert result.standard_error == pytest.approx((iwae.std() / 7**0.5).item(), rel=1e-4)
    assert (result.images, result.num_samples) == (7, 3)


def test_progress_counts_all_images(model, monkeypatch):
    monkeypatch.setattr(evaluation, "BATCH", 4)
    calls = []
    evaluation.bounds(model, torch.zeros(10, 1, 28, 28), 1, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 10), (8, 10), (10, 10)]


def test_a_limit_draws_at_random_and_reproducibly():
    images = torch.arange(1000.0).view(1000, 1, 1, 1)
    chosen = evaluation.choose(images, 50).flatten()
    assert len(chosen.unique()) == 50 and 300 < chosen.mean() < 700
    assert torch.equal(chosen, evaluation.choose(images, 50).flatten())
    assert evaluation.choose(images, None) is images and evaluation.choose(images, 2000) is images


def test_bad_input_is_named(model):
    with pytest.raises(ValueError, match="at least 2 images, not 1"):
        evaluation.bounds(model, torch.zeros(1, 1, 28, 28))
    with pytest.raises(ValueError, match="at least 1 image, not 0"):
        evaluation.choose(torch.zeros(5, 1, 28, 28), 0)
    with pytest.raises(ValueError, match="go from 2 to 2"):
        evaluation.bounds(model, torch.full((2, 1, 28, 28), 2.0))
