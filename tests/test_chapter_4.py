"""Chapter 4: what it estimates and matches is right where the answer is known."""

import pytest
import torch
from chapters import definitions


@pytest.fixture(scope="module")
def chapter():
    return definitions("04-training.ipynb")


def test_signal_and_noise_are_found_where_they_are_known(chapter):
    generator = torch.Generator().manual_seed(0)
    signal, size, batches = torch.linspace(-1, 2, 40), 8, 500
    images = signal + 2 * torch.randn(batches, size, 40, generator=generator)
    found, error, trace = chapter["signal_and_noise"](images.mean(dim=1), size)
    assert abs(found - signal.square().sum().item()) < 4 * error
    assert trace == pytest.approx(40 * 4, rel=0.05)


def test_noise_alone_is_no_signal(chapter):
    generator = torch.Generator().manual_seed(1)
    found, errors = zip(
        *[chapter["signal_and_noise"](torch.randn(10, 60, generator=generator), 1)[:2] for _ in range(200)],
        strict=True,
    )
    found, errors = torch.tensor(found), torch.tensor(errors)
    assert abs(found.mean()) < 4 * found.std() / 200**0.5, "no bias"
    assert found.std() < errors.mean() < 2 * found.std(), "the error is that of the estimate, with some caution"


def test_each_binary_image_finds_the_gray_one_it_was_drawn_from(chapter):
    generator = torch.Generator().manual_seed(2)
    gray = torch.rand(30, 1, 28, 28, generator=generator).mul(1.4).sub(0.2).clamp(0, 1)  # with pure black and white
    origin = torch.randint(30, (100,), generator=generator)
    binary = torch.bernoulli(gray[origin], generator=generator)
    found, scores = chapter["match"](binary, gray)
    assert torch.equal(found, origin)
    p = gray.clamp(0.001, 0.999)
    expected = torch.distributions.Bernoulli(p[4]).log_prob(binary[7]).sum()
    torch.testing.assert_close(scores[7, 4], expected, rtol=1e-4, atol=0)
