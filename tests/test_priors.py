"""The learned prior: against torch.distributions, its draws, its fit, its place in files and in training."""

import json
from dataclasses import replace

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

import vnca
from vnca import pretrained
from vnca.masks import center_square
from vnca.priors import CorrelatedMixturePrior, MixturePrior, StandardNormal, gaussian_kl


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=["diagonal", "correlated"])
def prior(request):
    """Three Gaussians over latents of size 4; if they are correlated, then in the numbers 3, 0 and 1."""
    prior = MixturePrior(4, 3) if request.param == "diagonal" else CorrelatedMixturePrior(4, 3, 3)
    with torch.no_grad():
        prior.mean.copy_(2 * torch.randn(prior.mean.shape, generator=seeded(1)))
        prior.log_scale.copy_(torch.randn(prior.mean.shape, generator=seeded(2)) / 2 - 1)
        prior.log_share.copy_(torch.tensor([0.0, 1.0, -1.0]))
        if request.param == "correlated":
            prior.used.copy_(torch.tensor([3, 0, 1]))
            prior.below.copy_(torch.randn(3, 3, generator=seeded(3)))
    return prior


def theirs(prior):
    """The same mixture by PyTorch."""
    shares = Categorical(logits=prior.log_share)
    if isinstance(prior, MixturePrior):
        return MixtureSameFamily(shares, Independent(Normal(prior.mean, prior.log_scale.exp()), 1))
    mean, covariance = torch.zeros(3, 4), torch.eye(4).repeat(3, 1, 1)
    mean[:, prior.used] = prior.mean.detach()
    for component in range(3):
        influence, (low, first, second) = torch.eye(3), prior.below[component].tolist()
        influence[1, 0], influence[2, 0], influence[2, 1] = low, first, second
        root = (-prior.log_scale[component].detach()).exp().diag() @ influence
        covariance[component, prior.used[:, None], prior.used] = (root.T @ root).inverse()
    return MixtureSameFamily(shares, MultivariateNormal(mean, covariance))


@pytest.mark.parametrize("shape", [(4,), (7, 4), (2, 5, 4)])
def test_the_density_is_that_of_pytorch(prior, shape):
    z = 2 * torch.randn(shape, generator=seeded())
    torch.testing.assert_close(prior.log_prob(z), theirs(prior).log_prob(z), rtol=1e-4, atol=1e-4)


def test_the_density_is_computed_in_float32_whatever_the_autocast(prior):
    z = torch.randn(7, 4, generator=seeded())
    with torch.autocast("cpu", torch.bfloat16):
        inside = prior.log_prob(z)
    assert inside.dtype == torch.float32 and torch.equal(inside, prior.log_prob(z))


@pytest.mark.parametrize("prior", [MixturePrior(4, 3), CorrelatedMixturePrior(4, 3, 2)], ids=lambda p: type(p).__name__)
def test_a_new_mixture_is_the_standard_normal(prior):
    z = torch.randn(50, 4, generator=seeded())
    torch.testing.assert_close(prior.log_prob(z), StandardNormal().log_prob(z))


def test_draws_have_the_moments_of_the_mixture(prior):
    noise = torch.randn(200_000, 4, generator=seeded())
    z = prior.draw(noise, seeded(1)).detach()
    deviation = theirs(prior).variance.sqrt()
    assert ((z.mean(dim=0) - theirs(prior).mean).abs() < 5 * deviation / len(z) ** 0.5).all()
    torch.testing.assert_close(z.std(dim=0), deviation, rtol=0.02, atol=0)
    # The density of the draws is right as well, not only mean and deviation: the entropy, by two sources of draws.
    other = theirs(prior).sample((200_000,))
    ours, expected = prior.log_prob(z), prior.log_prob(other)
    assert (ours.mean() - expected.mean()).abs() < 5 * expected.std() * (2 / len(z)) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_draws_have_the_type_of_the_noise(prior, dtype):
    noise = torch.randn(50, 4, generator=seeded())
    z = prior.to(dtype).draw(noise.to(dtype), seeded(1))
    assert z.dtype == dtype
    torch.testing.assert_close(z.float(), prior.float().draw(noise, seeded(1)), rtol=1e-2, atol=3e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_densities_are_computed_in_float32_whatever_the_type_of_the_weights(prior, dtype):
    z = torch.randn(50, 4, generator=seeded()).to(dtype)
    rounded = prior.to(dtype)
    found, of_floats = rounded.log_prob(z), rounded.log_prob(z.float())
    assert found.dtype == torch.float32 and torch.equal(found, of_floats)
    assert torch.equal(found, prior.float().log_prob(z.float())), "the same weights in float32"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("correlated", [0, 2])
def test_models_of_16_bits_have_bounds_and_completions(correlated, dtype):
    torch.manual_seed(0)
    model = vnca.build(vnca.ModelConfig("conv", 4, 1, {"width": 1}, components=3, correlated=correlated))
    torch.nn.init.normal_(model.prior.mean)
    x = torch.rand(2, 1, 28, 28, generator=seeded()).round()
    with torch.no_grad():
        expected = vnca.iwae(model, x, 3, generator=seeded())
        found = vnca.iwae(model.to(dtype), x, 3, generator=seeded())
        assert vnca.elbo(model, x, seeded()).dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    completions = vnca.inpaint(model, x, center_square(2), 2, seeded(), iterations=1)
    assert completions.isfinite().all() and completions.dtype == x.dtype


def test_draws_follow_from_the_generator_and_there_may_be_none(prior):
    noise = torch.randn(9, 4, generator=seeded())
    assert torch.equal(prior.draw(noise, seeded(1)), prior.draw(noise, seeded(1)))
    assert not torch.equal(prior.draw(noise, seeded(1)), prior.draw(noise, seeded(2)))
    assert prior.draw(noise[:0], seeded(1)).shape == (0, 4)


def test_the_divergence_is_exact_for_the_standard_normal_and_unbiased_for_a_mixture():
    posterior = Normal(torch.tensor([[0.5, -1.0]]), torch.tensor([[0.3, 0.8]]))
    exact = gaussian_kl(posterior.mean, posterior.stddev.log())
    torch.manual_seed(0)
    z = posterior.sample((20_000,))[:, 0]  # (N, 2)
    assert torch.equal(StandardNormal().divergence(posterior, z[:1]), exact)
    estimates = MixturePrior(2, 3).divergence(posterior, z)  # a new one is the standard normal
    assert (estimates.mean() - exact).abs() < 4 * estimates.std() / len(z) ** 0.5


def test_a_fitted_prior_knows_the_latents_as_well_as_the_clusters_they_come_from():
    centers = torch.tensor([[-3.0, 0.0, 1.0], [2.0, 2.0, -1.0]])
    mean = centers[torch.arange(2000) % 2] + 0.5 * torch.randn(2000, 3, generator=seeded())
    scale = torch.full_like(mean, 0.4)
    prior = MixturePrior(3, 5)
    prior.fit(mean, scale, seeded(1))
    z = centers[torch.arange(20_000) % 2] + (0.5**2 + 0.4**2) ** 0.5 * torch.randn(20_000, 3, generator=seeded(2))
    truth = MixturePrior(3, 2)
    with torch.no_grad():
        truth.mean.copy_(centers)
        truth.log_scale.fill_((0.5**2 + 0.4**2) ** 0.5).log_()
    assert (truth.log_prob(z) - prior.log_prob(z)).mean() < 0.05  # nats
    assert (truth.log_prob(z) - StandardNormal().log_prob(z)).mean() > 3


def test_numbers_of_the_latent_that_are_never_used_need_not_be_learned(monkeypatch):
    """The paper's model uses some two dozen of its 256 numbers; in the others every posterior is near the prior."""
    used = 2 * torch.randn(4000, 4, generator=seeded()).sign()  # 16 clusters
    mean = torch.cat([used, torch.zeros(4000, 252)], dim=1)
    scale = torch.cat([torch.full_like(used, 0.5), torch.ones(4000, 252)], dim=1)
    monkeypatch.setattr("vnca.priors.FIT_UPDATES", 200)  # few of the 1,500, which would make good even a bad start
    prior = MixturePrior(256, 64)
    prior.fit(mean[:2000], scale[:2000], seeded(1))
    truth, z = MixturePrior(4, 16), mean + scale * torch.randn(mean.shape, generator=seeded(2))
    with torch.no_grad():
        truth.mean.copy_(2 * torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4))
        truth.log_scale.fill_(0.5).log_()
        best = truth.log_prob(z[2000:, :4]) + StandardNormal().log_prob(z[2000:, 4:])
    assert (best - prior.log_prob(z[2000:])).mean() < 1  # nats
    assert (best - StandardNormal().log_prob(z[2000:])).mean() > 5


def test_full_covariances_know_latents_that_lie_aslant_as_well_as_the_line_they_lie_on(monkeypatch):
    """Two numbers that go together, in two clusters, hidden among six that are never used."""
    monkeypatch.setattr("vnca.priors.FIT_UPDATES", 300)
    ends, along = 3 * torch.randn(4000, generator=seeded()).sign(), torch.randn(4000, generator=seeded(1))
    mean = torch.zeros(4000, 8)
    mean[:, 5], mean[:, 2] = ends + along, along - ends
    scale = torch.ones(4000, 8)
    scale[:, [5, 2]] = 0.1
    prior = CorrelatedMixturePrior(8, 6, 2)
    prior.fit(mean[:2000], scale[:2000], seeded(2))
    assert sorted(prior.used.tolist()) == [2, 5]
    truth, z = CorrelatedMixturePrior(8, 2, 2), mean + scale * torch.randn(mean.shape, generator=seeded(3))
    root = torch.linalg.cholesky(torch.ones(2, 2) + 0.01 * torch.eye(2)).inverse()
    with torch.no_grad():
        truth.used.copy_(torch.tensor([5, 2]))
        truth.mean.copy_(torch.tensor([[3.0, -3.0], [-3.0, 3.0]]))
        truth.log_scale.copy_(-root.diagonal().log())
        truth.below.copy_(root[1, 0] / root[1, 1])
    diagonal = MixturePrior(8, 6)
    diagonal.fit(mean[:2000], scale[:2000], seeded(2))
    best = truth.log_prob(z[2000:])
    assert (best - prior.log_prob(z[2000:])).mean() < 0.1  # nats
    assert (best - diagonal.log_prob(z[2000:])).mean() > 0.5, "as many components without correlations do not"


@pytest.mark.parametrize("correlated", [0, 2])
def test_it_is_saved_and_loaded_with_the_model(correlated, tmp_path):
    config = vnca.ModelConfig("conv", 4, 1, {"width": 1}, components=3, correlated=correlated)
    model = vnca.build(config)
    torch.nn.init.normal_(model.prior.mean, generator=seeded(1))
    for used in model.prior.buffers():
        used.copy_(torch.tensor([3, 1]))
    pretrained.save(model, config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model"]["components"] == 3
    again = vnca.load(tmp_path)
    for name, values in model.prior.state_dict().items():
        assert torch.equal(again.prior.state_dict()[name], values), name
    assert torch.equal(again.sample(3, seeded()), model.eval().sample(3, seeded()))


@pytest.mark.parametrize(("latent_size", "components"), [(0, 3), (4, 0), (4, -1)])
def test_a_mixture_of_nothing_is_refused(latent_size, components):
    with pytest.raises(ValueError, match=f">= 1, not {latent_size} and {components}"):
        MixturePrior(latent_size, components)


@pytest.mark.parametrize(("components", "correlated"), [(0, 2), (-1, 2), (3, -1), (3, 5)])
def test_correlations_of_nothing_or_of_too_much_are_refused(components, correlated):
    config = vnca.ModelConfig("conv", 4, 1, {"width": 1}, components=components, correlated=correlated)
    with pytest.raises(ValueError, match=f"correlated from 1 to latent_size, not {components} and {correlated} of 4"):
        vnca.build(config)


def test_a_model_cannot_have_a_negative_number_of_components():
    config = replace(vnca.ModelConfig("conv", 4, 1, {"width": 1}), components=-1)
    with pytest.raises(ValueError, match="components >= 1, not 4 and -1"):
        vnca.build(config)
