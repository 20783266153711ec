"""Chapter 7: its densities and its search are right where the answer is known."""

import pytest
import torch
from chapters import definitions
from torch.distributions import Normal

from vnca.decoders import ConvDecoder
from vnca.priors import MixturePrior
from vnca.vae import VAE, Encoder, iwae


@pytest.fixture(scope="module")
def chapter():
    return definitions("07-past-the-paper.ipynb")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VAE(Encoder(4, width=1), ConvDecoder(4, width=1)).requires_grad_(False)


def test_the_density_of_the_mixture_is_that_of_the_package(chapter):
    prior = MixturePrior(5, 3)
    generator = torch.Generator().manual_seed(3)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    z = torch.randn(20, 5, generator=generator)
    torch.testing.assert_close(chapter["log_mixture"](z, *prior.parameters()), prior.log_prob(z), rtol=1e-4, atol=1e-4)


def test_its_elbo_is_that_of_the_package(chapter, model):
    x = torch.bernoulli(torch.full((3, 1, 28, 28), 0.3), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    found = chapter["elbo_of"](model, x, model.encode(x), samples=2000)
    expected = iwae(model, x.repeat(2000, 1, 1, 1), 1, generator=torch.Generator().manual_seed(3)).view(2000, 3)
    error = (2 / 2000) ** 0.5 * expected.std(dim=0)  # of the difference of two means
    assert ((found - expected.mean(dim=0)).abs() < 5 * error).all()


def test_a_search_finds_the_best_gaussians_where_they_are_known(chapter):
    """With images that say z_0 > 0 or less and nothing else, numbers without a say go back to the prior."""
    torch.manual_seed(0)
    model = VAE(Encoder(3, width=1), ConvDecoder(3, width=1)).requires_grad_(False)
    model.decoder.forward = lambda z: z[:, :1, None, None].expand(-1, 1, 28, 28)  # all pixels show z_0
    x = torch.ones(2, 1, 28, 28)
    before = model.encode(x)
    after = chapter["searched"](model, x, updates=400)
    torch.testing.assert_close(after.mean[:, 1:], torch.zeros(2, 2), rtol=0, atol=0.1)
    torch.testing.assert_close(after.stddev[:, 1:], torch.ones(2, 2), rtol=0, atol=0.1)
    torch.manual_seed(1)
    gain = chapter["elbo_of"](model, x, after, 500) - chapter["elbo_of"](model, x, before, 500)
    assert (gain > 0).all() and isinstance(after, Normal)
