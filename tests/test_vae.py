"""The bounds, against a model whose likelihood is known; the closed forms, against Monte Carlo; what is refused."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence

import vnca
from vnca.priors import MixturePrior, gaussian_kl
from vnca.vae import bernoulli_log_likelihood, elbo_terms


class LinearDecoder(nn.Module):
    """Logits linear in a latent of size 2."""

    latent_size = 2

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        weight = 0.15 * torch.randn(784, 2, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(weight)

    def forward(self, z):
        return (z @ self.weight.T).view(-1, 1, 28, 28)


class RoughEncoder(nn.Module):
    """A posterior that is deliberately somewhat wrong, so that the bounds differ from log p(x)."""

    latent_size = 2

    def __init__(self, decoder, scale=0.8):
        super().__init__()
        self.decoder, self.scale = decoder, scale

    def forward(self, x):
        weight = self.decoder.weight
        precision = torch.eye(2, dtype=weight.dtype) + 0.25 * weight.T @ weight
        mean = torch.linalg.solve(precision, weight.T @ (x.double().flatten(1) - 0.5).T).T
        return 0.7 * mean, torch.full_like(mean, math.log(self.scale))


@pytest.fixture(scope="module", params=["standard normal", "mixture"])
def exact(request):
    """A model with a 2-dimensional latent, images drawn from it, and their log p(x) by quadrature."""
    decoder = LinearDecoder()
    prior = MixturePrior(2, 2).double()
    torch.nn.init.normal_(prior.mean, generator=torch.Generator().manual_seed(3))
    torch.nn.init.uniform_(prior.log_scale, -0.7, -0.1, generator=torch.Generator().manual_seed(4))
    model = vnca.VAE(RoughEncoder(decoder), decoder, prior if request.param == "mixture" else None)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        z = model.draw(6, generator)
        x = torch.bernoulli(decoder(z).sigmoid(), generator=generator)
        axis = torch.linspace(-7, 7, 281, dtype=torch.float64)  # the posterior is about 0.5 wide, a cell 0.05
        points = torch.cartesian_prod(axis, axis)  # (P, 2)
        log_prior = model.prior.log_prob(points)  # (P,)
        logits = decoder(points).flatten(1)  # (P, 784)
        log_likelihood = x.flatten(1) @ logits.T - nn.functional.softplus(logits).sum(dim=1)  # (B, P)
        log_px = (log_likelihood + log_prior).logsumexp(dim=1) + 2 * math.log(axis[1] - axis[0])
    return model, x, log_px


@torch.no_grad()
def expected(bound, repeats=400):
    """Mean over repeats and its standard error, `(B,)` each."""
    values = torch.stack([bound(torch.Generator().manual_seed(seed)) for seed in range(repeats)])
    return values.mean(dim=0), values.std(dim=0) / repeats**0.5


def test_elbo_is_below_iwae_is_below_the_likelihood_and_iwae_grows(exact):
    model, x, log_px = exact
    lower, error = expected(lambda g: vnca.elbo(model, x, g))
    for num_samples in (2, 8):
        higher, higher_error = expected(lambda g, k=num_samples: vnca.iwae(model, x, k, generator=g))
        assert (higher - lower > 3 * torch.hypot(error, higher_error)).all(), f"K = {num_samples} tightens the bound"
        lower, error = higher, higher_error
    assert (lower < log_px + 3 * error).all()


def test_iwae_meets_the_likelihood(exact):
    model, x, log_px = exact
    with torch.no_grad():
        bound = vnca.iwae(model, x, 10_000, chunk_size=6_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(bound, log_px, atol=0.06, rtol=0)


def test_the_elbo_misses_the_likelihood_by_the_kl_to_the_true_posterior(exact):
    model, x, log_px = exact
    elbo, error = expected(lambda g: vnca.elbo(model, x, g))
    assert (log_px - elbo > 5 * error).all(), "the encoder is rough, so the gap is there"


def test_one_importance_sample_is_the_elbo_in_expectation(exact):
    model, x, _ = exact
    ours, error = expected(lambda g: vnca.iwae(model, x, 1, generator=g), repeats=1000)
    elbo, elbo_error = expected(lambda g: vnca.elbo(model, x, g), repeats=1000)
    assert ((ours - elbo).abs() < 4.5 * (error**2 + elbo_error**2).sqrt()).all()


@settings(deadline=None, max_examples=25)
@given(mean=st.floats(-3, 3), log_scale=st.floats(-2, 1.5))
def test_closed_form_kl_equals_torchs(mean, log_scale):
    ours = gaussian_kl(torch.tensor([[mean]]), torch.tensor([[log_scale]]))
    theirs = kl_divergence(Normal(mean, math.exp(log_scale)), Normal(0.0, 1.0))
    assert ours.item() == pytest.approx(float(theirs), rel=1e-4, abs=1e-5)


def test_closed_form_kl_equals_monte_carlo():
    generator = torch.Generator().manual_seed(0)
    mean, log_scale = torch.tensor([[0.7, -1.2]]), torch.tensor([[-0.5, 0.3]])
    q = Normal(mean, log_scale.exp())
    z = mean + log_scale.exp() * torch.randn(200_000, 2, generator=generator)
    terms = (q.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(dim=1)
    error = terms.std() / len(terms) ** 0.5
    assert abs(terms.mean() - gaussian_kl(mean, log_scale).item()) < 4 * error


def test_bernoulli_log_likelihood_equals_torchs_and_stays_finite():
    x = torch.rand(3, 1, 28, 28).round()
    logits = torch.randn(3, 1, 28, 28)
    expected_value = Bernoulli(logits=logits).log_prob(x).sum(dim=(1, 2, 3))
    torch.testing.assert_close(bernoulli_log_likelihood(logits, x), expected_value)
    assert bernoulli_log_likelihood(torch.full_like(x, 1e4), x).isfinite().all()


def test_the_sum_over_pixels_is_float32_under_autocast():
    model = small_model()
    x = torch.rand(2, 1, 28, 28).round()
    with torch.no_grad():
        plain = vnca.elbo(model, x, torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16):
            mixed = vnca.elbo(model, x, torch.Generator().manual_seed(0))
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain, rtol=5e-3, atol=0)
    assert (mixed != mixed.bfloat16()).any(), "a sum in bfloat16 would have 8 significant bits"


def small_model(decoder="doubling", **options) -> vnca.VAE:
    torch.manual_seed(0)
    options = options or ({"hidden": 4, "steps": 1} if decoder == "doubling" else {"width": 2})
    model = vnca.build(vnca.ModelConfig(decoder, 4, 2, options))
    if decoder == "doubling":
        nn.init.normal_(model.decoder.update.layers[-1].weight, std=0.2)
    return model


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 64])
def test_iwae_does_not_depend_on_its_chunks(chunk_size):
    model, x = small_model(), torch.rand(3, 1, 28, 28).round()
    with torch.no_grad():
        whole = vnca.iwae(model, x, 10, generator=torch.Generator().manual_seed(0))
        parts = vnca.iwae(model, x, 10, chunk_size, torch.Generator().manual_seed(0))
    torch.testing.assert_close(parts, whole)


def test_numbers_of_numpy_are_whole_numbers():
    model, x, three = small_model(), torch.rand(2, 1, 28, 28).round(), np.int64(3)
    with torch.no_grad():
        assert vnca.iwae(model, x, three, three).shape == (2,) and model.sample(three).shape == (3, 1, 28, 28)
        assert vnca.inpaint(model, x, torch.ones_like(x).bool(), three, iterations=three).shape == (3, 2, 1, 28, 28)


@pytest.mark.parametrize("chunk_size", [1, 5, 16])
def test_iwae_never_decodes_more_than_a_chunk(chunk_size):
    model, x, sizes, encoded = small_model(), torch.rand(7, 1, 28, 28).round(), [], []
    model.decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    model.encoder.register_forward_pre_hook(lambda _, inputs: encoded.append(len(inputs[0])))
    with torch.no_grad():
        vnca.iwae(model, x, 9, chunk_size)
    assert max(sizes) <= chunk_size and sum(sizes) == 63
    assert max(encoded) <= chunk_size and sum(encoded) == 7


def test_the_iwae_bound_can_be_trained_on():
    x = torch.rand(2, 1, 28, 28).round()
    gradients = []
    for chunk_size in (1, 2, 6):
        model = small_model()
        vnca.iwae(model, x, 3, chunk_size, torch.Generator().manual_seed(0)).mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients[0])
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-3, atol=1e-3)


def bound_and_kept(*arguments):
    """The importance-weighted bound with seeded noise, and how many numbers are kept for its backward pass."""
    sizes = []

    def remember(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        bound = vnca.iwae(*arguments, torch.Generator().manual_seed(0))
    return bound, sum(sizes)


def test_iwae_keeps_no_decoding_for_the_backward_pass():
    _, kept = bound_and_kept(small_model(), torch.rand(2, 1, 28, 28).round(), 64, 4)
    grown = 4 * 4 * 32 * 32  # the last grid of one chunk: 4 latents with 4 channels
    assert kept < 64 * 2 / 4 * grown / 4, "far less than a grid for each chunk"


@pytest.mark.parametrize("correlated", [0, 3])
def test_iwae_keeps_no_distances_from_components_for_the_backward_pass(correlated):
    torch.manual_seed(0)
    model = vnca.build(vnca.ModelConfig("conv", 4, 1, {"width": 1}, components=1000, correlated=correlated))
    nn.init.normal_(model.prior.mean)
    x, results = torch.rand(8, 1, 28, 28).round(), []
    for chunk_size in (4, 2000):
        bound, kept = bound_and_kept(model, x, 32, chunk_size)
        assert kept < 32 * 8 * 1000 / 4, "far less than a number for each latent and component"
        results.append([bound, *torch.autograd.grad(bound.mean(), [*model.parameters()])])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_images_and_latents_of_another_type_are_taken():
    model = small_model()
    x = torch.rand(2, 1, 28, 28).round()
    expected = vnca.elbo(model, x, torch.Generator().manual_seed(0))
    for other in (torch.uint8, torch.float64):
        torch.testing.assert_close(vnca.elbo(model, x.to(other), torch.Generator().manual_seed(0)), expected)
    assert model.decode(torch.zeros(1, 4, dtype=torch.float64)).dtype == torch.float32
    assert model.double().decode(torch.zeros(1, 4)).dtype == torch.float64


def test_samples_and_bounds_are_reproducible_by_generator():
    model, x = small_model(), torch.rand(2, 1, 28, 28).round()

    def seeded(seed):
        return torch.Generator().manual_seed(seed)

    assert torch.equal(model.sample(3, seeded(1)), model.sample(3, seeded(1)))
    assert not torch.equal(model.sample(3, seeded(1)), model.sample(3, seeded(2)))
    assert torch.equal(vnca.elbo(model, x, seeded(1)), vnca.elbo(model, x, seeded(1)))
    assert model.sample(0).shape == (0, 1, 28, 28)
    samples = model.sample(300)
    assert samples.shape == (300, 1, 28, 28) and samples.min() >= 0 and samples.max() <= 1


def test_elbo_is_its_two_terms():
    model, x = small_model(), torch.rand(2, 1, 28, 28).round()
    log_likelihood, kl = elbo_terms(model, x, torch.Generator().manual_seed(3))
    torch.testing.assert_close(vnca.elbo(model, x, torch.Generator().manual_seed(3)), log_likelihood - kl)
    assert (kl > 0).all()


@pytest.mark.parametrize("decoder", ["doubling", "conv"])
def test_shapes_of_the_promised_interface(decoder):
    model = small_model(decoder)
    x = torch.rand(5, 1, 28, 28)
    posterior = model.encode(x)
    assert isinstance(posterior, Normal) and posterior.batch_shape == (5, 4)
    assert model.latent_size == 4
    assert model.decode(torch.randn(5, 4)).shape == (5, 1, 28, 28)
    assert vnca.elbo(model, x).shape == vnca.iwae(model, x, 2).shape == (5,)


def test_the_papers_encoder_has_the_papers_channels():
    convolutions = [m for m in vnca.Encoder().modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [32, 64, 128, 256, 512]
    assert [c.stride[0] for c in convolutions] == [1, 2, 2, 2, 2]
    assert {c.kernel_size for c in convolutions} == {(5, 5)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode(torch.zeros(1, 28, 28)), r"\(B, 1, 28, 28\), not \(1, 28, 28\)"),
        (lambda m: vnca.elbo(m, torch.zeros(1, 1, 32, 32)), r"not \(1, 1, 32, 32\)"),
        (lambda m: vnca.elbo(m, 255 * torch.ones(1, 1, 28, 28)), "from 255 to 255: divide"),
        (lambda m: vnca.elbo(m, torch.full((1, 1, 28, 28), math.inf)), "go from inf to inf$"),
        (lambda m: vnca.iwae(m, torch.full((1, 1, 28, 28), math.nan)), r"\[0, 1\]"),
        (lambda m: vnca.iwae(m, torch.zeros(1, 1, 28, 28), 0), "at least 1, not 0 and 64"),
        (lambda m: vnca.iwae(m, torch.zeros(1, 1, 28, 28), 2, 0), "at least 1, not 2 and 0"),
        (lambda m: m.sample(-1), "at least 0, not -1"),
        (lambda m: m.sample(4.0), r"n is a whole number \(an int\), not 4.0"),
        (lambda m: m.sample(4, 0), "is a torch.Generator, not 0: torch.Generator"),
        (lambda m: vnca.elbo(m, torch.zeros(1, 1, 28, 28), 0), "is a torch.Generator, not 0"),
        (lambda m: vnca.iwae(m, torch.zeros(1, 1, 28, 28), 2.0), "num_samples is a whole number .*, not 2.0"),
        (lambda m: vnca.iwae(m, torch.zeros(1, 1, 28, 28), 2, 2.0), "chunk_size is a whole number .*, not 2.0"),
        (lambda m: m.encode(np.zeros((1, 1, 28, 28))), "images are a torch.Tensor, not a ndarray: torch.as_tensor"),
        (lambda m: m.decode(np.zeros((1, 4))), "latents are a torch.Tensor, not a ndarray: torch.as_tensor"),
        (lambda m: vnca.DoublingDecoder(8.0), "channels is a whole number .*, not 8.0"),
        (lambda m: vnca.DoublingDecoder(8, steps=2.0), "steps is a whole number .*, not 2.0"),
        (lambda m: vnca.PersistentDecoder(8, max_steps=9.5), "max_steps is a whole number .*, not 9.5"),
        (lambda m: vnca.RegrowingDecoder(8, 4, min_steps=9, max_steps=8), "0 <= min_steps <= max_steps, not 9 and 8"),
        (lambda m: vnca.RegrowingDecoder(8, 4.0), "hidden is a whole number .*, not 4.0"),
        (lambda m: vnca.RegrowingDecoder(8, 4.0, latent_size=4), "hidden is a whole number .*, not 4.0"),
        (lambda m: vnca.ConvDecoder(8, 2.0), "width is a whole number .*, not 2.0"),
        (lambda m: vnca.Encoder("8"), "latent_size is a whole number .*, not '8'"),
        (lambda m: vnca.VAE(vnca.Encoder(3, 2), vnca.ConvDecoder(4, 2)), "size 3.*size 4"),
        (lambda m: vnca.build(vnca.ModelConfig("tripling")), "'tripling'; there are conv, doubling"),
        (lambda m: vnca.build(vnca.ModelConfig("conv", 4, 2, {"steps": 3})), "does not take .*steps"),
        (lambda m: vnca.Encoder(0), "not 0 and 32"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(small_model())


def test_sizes_may_be_numpys():
    four, one = np.int64(4), np.int64(1)
    for decoder in (
        vnca.DoublingDecoder(four, four, one, one),
        vnca.PersistentDecoder(four, four, one, one, one, four),
        vnca.RegrowingDecoder(four, four, one, four),
    ):
        assert decoder(torch.zeros(2, 4)).shape == (2, 1, 28, 28)
        json.dumps([decoder.channels, decoder.latent_size, decoder.steps])  # as settings are saved
