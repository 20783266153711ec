"""The code that chapter 1 teaches behaves as the package's."""

import pytest
import torch
from chapters import definitions

from vnca import priors, vae
from vnca.decoders import ConvDecoder

LATENT, WIDTH = 6, 2


@pytest.fixture(scope="module")
def chapter() -> dict:
    return definitions("01-variational-autoencoders.ipynb")


@pytest.fixture
def x() -> torch.Tensor:
    return torch.bernoulli(torch.full((5, 1, 28, 28), 0.3), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def models(chapter):
    """The package's model and the chapter's, with the same weights."""
    torch.manual_seed(0)
    ours = vae.VAE(vae.Encoder(LATENT, WIDTH), ConvDecoder(LATENT, WIDTH))
    taught = chapter["VAE"](chapter["Encoder"](LATENT, WIDTH), chapter["ConvDecoder"](LATENT, WIDTH))
    assert taught.latent_size == ours.latent_size
    taught.load_state_dict(ours.state_dict(), strict=True)
    return ours, taught


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(2)


@pytest.mark.parametrize(("latent_size", "width"), [(32, 8), (256, 32)])
def test_networks_have_as_many_parameters(chapter, latent_size, width):
    for name, package_class in (("Encoder", vae.Encoder), ("ConvDecoder", ConvDecoder)):
        taught, ours = chapter[name](latent_size, width), package_class(latent_size, width)
        assert sum(p.numel() for p in taught.parameters()) == sum(p.numel() for p in ours.parameters())


def test_encoder_gives_the_same_mean_and_log_scale(models, x):
    ours, taught = models
    for expected, found in zip(ours.encoder(x), taught.encoder(x), strict=True):
        assert expected.shape == (5, LATENT)
        assert torch.equal(found, expected)


def test_decoder_gives_the_same_logits(models):
    ours, taught = models
    z = torch.randn(5, LATENT, generator=seeded())
    assert ours.decoder(z).shape == (5, 1, 28, 28)
    assert torch.equal(taught.decoder(z), ours.decoder(z))


def test_autoencoder_encodes_decodes_and_samples_alike(models, x):
    ours, taught = models
    assert torch.equal(taught.encode(x).mean, ours.encode(x).mean)
    assert torch.equal(taught.encode(x).stddev, ours.encode(x).stddev)
    z = torch.randn(5, LATENT, generator=seeded())
    assert torch.equal(taught.decode(z), ours.decode(z))
    torch.testing.assert_close(taught.sample(7, seeded()), ours.sample(7, seeded()))


def test_gaussian_kl(chapter):
    mean, log_scale = torch.randn(2, 9, LATENT, generator=seeded())
    torch.testing.assert_close(chapter["gaussian_kl"](mean, log_scale), priors.gaussian_kl(mean, log_scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bernoulli_log_likelihood(chapter, x, dtype):
    logits = (10 * torch.randn(x.shape, generator=seeded())).to(dtype)
    found = chapter["bernoulli_log_likelihood"](logits, x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, vae.bernoulli_log_likelihood(logits, x))


def test_elbo(chapter, models, x):
    ours, taught = models
    expected = vae.elbo(ours, x, seeded())
    assert expected.shape == (5,)
    torch.testing.assert_close(chapter["elbo"](taught, x, seeded()), expected)
    for found, term in zip(chapter["elbo_terms"](taught, x, seeded()), vae.elbo_terms(ours, x, seeded()), strict=True):
        torch.testing.assert_close(found, term)


@pytest.mark.parametrize("num_samples", [1, 7])
def test_iwae(chapter, models, x, num_samples):
    ours, taught = models
    expected = vae.iwae(ours, x, num_samples, generator=seeded())
    assert expected.shape == (5,)
    torch.testing.assert_close(chapter["iwae"](taught, x, num_samples, seeded()), expected)


def test_gradients_of_the_elbo(chapter, models, x):
    ours, taught = models
    vae.elbo(ours, x, seeded()).sum().backward()
    chapter["elbo"](taught, x, seeded()).sum().backward()
    for (name, expected), found in zip(ours.named_parameters(), taught.parameters(), strict=True):
        assert expected.grad.abs().max() > 0, name
        torch.testing.assert_close(found.grad, expected.grad, msg=name, rtol=1e-4, atol=1e-4)
