"""Inpainting: against models whose conditional distribution is known, at its limits, and what it refuses."""

import dataclasses
import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vnca
from vnca import evidence, inpainting, masks, posterior, pretrained, regrowth
from vnca.__main__ import main
from vnca.pictures import image_grid, read_png
from vnca.priors import MixturePrior
from vnca.vae import CHUNK_SIZE


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------- models known exactly


class Part(nn.Module):
    """An encoder or decoder that is a known function, in float64."""

    def __init__(self, latent_size, function):
        super().__init__()
        self.latent_size, self.function = latent_size, function
        self.dtype = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, inputs):
        return self.function(inputs)


def toy(latent_size, encode, decode):
    return vnca.VAE(Part(latent_size, encode), Part(latent_size, lambda z: decode(z).view(-1, 1, 28, 28)))


def linear_toy():
    """A latent of size 2, logits linear in it, and an encoder somewhat wrong: p(z | x_o) has one mode."""
    weight = 0.15 * torch.randn(784, 2, generator=seeded(1), dtype=torch.float64)
    precision = torch.eye(2, dtype=weight.dtype) + 0.25 * weight.T @ weight

    def encode(x):
        mean = torch.linalg.solve(precision, weight.T @ (x.flatten(1) - 0.5).T).T
        return 0.9 * mean, torch.full_like(mean, math.log(0.5))

    return toy(2, encode, lambda z: z @ weight.T)


RIGHT_OBSERVED = masks.left_half(1)


def two_sided_toy():
    """A latent of size 1: the right half of an image depends on its square alone, the left half on its sign.

    With the right half observed z and -z are as likely, so p(z | x_o) has two modes.
    """
    right = RIGHT_OBSERVED.flatten()

    def decode(z):
        return torch.where(right, 3 * (z**2 - 1), 0.5 * z)

    def encode(x):
        ink_left, ink_right = (x.flatten(1)[:, half].mean(dim=1, keepdim=True) for half in (~right, right))
        size = (1 + torch.logit(ink_right.clamp(0.05, 0.95)) / 3).clamp(min=0.01).sqrt()
        return torch.where(ink_left < 0.5, -size, size), torch.full_like(size, math.log(0.1))

    return toy(1, encode, decode)


def mixture_toy():
    """`linear_toy` with a prior of three Gaussians."""
    model = linear_toy()
    model.prior = MixturePrior(2, 3).double()
    with torch.no_grad():
        model.prior.mean.copy_(torch.tensor([[-2.0, 0.5], [0.3, -1.0], [1.5, 1.5]]))
        model.prior.log_scale.copy_(torch.tensor([[0.5, 0.3], [0.8, 0.4], [0.2, 1.0]]).log())
        model.prior.log_share.copy_(torch.tensor([0.0, -1.0, 0.5]))
    return model


def on_a_grid(model, x, observed):
    """Latents `(P, D)` on a grid, log p(x_o, z) times the volume of a grid cell `(B, P)`, and images `(P, 784)`."""
    axis = torch.linspace(-7, 7, 4001 if model.latent_size == 1 else 281, dtype=torch.float64)
    z = torch.cartesian_prod(*[axis] * model.latent_size).view(-1, model.latent_size)
    logits = model.decode(z).flatten(1)
    x, mask = x.flatten(1), observed.flatten(1).double()
    log_joint = (x * mask) @ logits.T - mask @ nn.functional.softplus(logits).T + model.prior.log_prob(z)
    return z, log_joint + model.latent_size * math.log(axis[1] - axis[0]), logits.sigmoid()


@dataclass
class Known:
    """A model, images drawn from it, a mask, and by quadrature log p(x), log p(x_o), completions' means and spreads."""

    model: vnca.VAE
    x: torch.Tensor
    observed: torch.Tensor
    log_whole: torch.Tensor
    log_observed: torch.Tensor
    mean: torch.Tensor
    spread: torch.Tensor


@torch.no_grad()
def solve(model) -> Known:
    generator = seeded(2)
    z = model.draw(6, generator)
    x = torch.bernoulli(model.decode(z).sigmoid(), generator=generator)
    observed = RIGHT_OBSERVED.expand_as(x)
    _, log_whole, _ = on_a_grid(model, x, torch.ones_like(observed))
    _, log_joint, images = on_a_grid(model, x, observed)
    mean = log_joint.softmax(dim=1) @ images  # (B, 784)
    spread = (log_joint.softmax(dim=1) @ images.square() - mean.square()).sqrt()
    return Known(model, x, observed, log_whole.logsumexp(dim=1), log_joint.logsumexp(dim=1), mean, spread)


@pytest.fixture(
    scope="module", params=[linear_toy, two_sided_toy, mixture_toy], ids=["one mode", "two modes", "mixture"]
)
def known(request):
    return solve(request.param())


@pytest.fixture(scope="module")
def one_mode():
    return solve(linear_toy())


@torch.no_grad()
def fitted(model, x, observed):
    """The proposal for p(z | x_o), and the directions of the latent that images depend on."""
    search = posterior.prepare(model, seeded())
    return posterior.fit(posterior.Task.of(model, x, observed), search, seeded()), search.directions.tolist()


def test_proposals_are_wider_only_where_images_depend_on_the_latent():
    weight = torch.zeros(784, 5, dtype=torch.float64)
    weight[:, 1], weight[:, 3] = 0.15 * torch.randn(2, 784, generator=seeded(1), dtype=torch.float64)

    def encode(x):
        mean = x.flatten(1).mean(dim=1, keepdim=True) * torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])
        return mean, mean.new_tensor([1.0, 0.2, 1.0, 0.2, 1.0]).log().expand_as(mean)

    model = toy(5, encode, lambda z: z @ weight.T)
    x = torch.bernoulli(model.decode(model.draw(3, seeded())).sigmoid(), generator=seeded())
    mixture, directions = fitted(model, x, torch.ones_like(x, dtype=torch.bool))
    assert directions == [1, 3]
    narrow, wide = ((mixture.root[i] @ mixture.root[i].mT).diagonal(dim1=1, dim2=2) for i in (0, 1))  # precisions
    assert torch.allclose(wide[:, directions], narrow[:, directions] / posterior.WIDTHS[1] ** 2)
    assert (wide[:, [0, 2, 4]] == 1).all() and (narrow[:, [0, 2, 4]] == 1).all()


def test_no_weight_exceeds_the_likelihood_by_more_than_the_share_of_the_prior(known):
    mixture, _ = fitted(known.model, known.x, known.observed)
    far = 6 * torch.randn(500, len(known.x), known.model.latent_size, generator=seeded(3), dtype=torch.float64)
    weight = known.model.prior.log_prob(far) - mixture.log_prob(far)  # without p(x_o | z)
    assert weight.max() <= -math.log(posterior.PRIOR_SHARE) + 1e-9
    assert weight.max() > -math.log(posterior.PRIOR_SHARE) - 0.1, "far from the Gaussians it is as large"


def test_proposals_have_the_density_that_they_are_drawn_from(known):
    mixture, _ = fitted(known.model, known.x, known.observed)
    z = mixture.sample(20_000, seeded(4))
    bound = 0.8 * (z - z.mean(dim=0)).abs().amax(dim=(0, 1)).clamp(max=4)  # a box with most of the mass
    inside = ((z - z.mean(dim=0)).abs() < bound).all(dim=-1).double().mean(dim=0)  # (B,)
    points = (2 * torch.rand(200_000, 1, z.shape[-1], generator=seeded(5), dtype=z.dtype) - 1) * bound + z.mean(dim=0)
    mass = mixture.log_prob(points).exp().mean(dim=0) * (2 * bound).prod()
    assert torch.allclose(mass, inside, atol=0.03)


@torch.no_grad()
def test_only_networks_work_in_16_bits():
    model = vnca.load("conv-mnist-small")
    x, observed = model.sample(3, seeded()).round(), masks.left_half(3)
    search = posterior.prepare(model, seeded())
    task = posterior.Task.of(model, x, observed)
    mixture, z = posterior.fit(task, search, seeded()), torch.randn(20, 3, model.latent_size, generator=seeded(1))
    logits = posterior.decode(model, z)
    jacobian = torch.randn(3, 784, 5, generator=seeded(2))

    def densities():
        root = posterior._root(task, logits[0], jacobian)
        return [mixture.log_prob(z), task.log_joint(z, logits), root, task.suiting(search.logits, 9)]

    plain = densities()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for expected, found in zip(plain, densities(), strict=True):
            assert found.dtype == torch.float32 and torch.equal(expected, found)
        assert not torch.equal(posterior.decode(model, z), logits), "while these do"


@torch.no_grad()
def test_a_latent_whose_cells_overflow_is_the_worst_and_not_the_best(one_mode):
    model = one_mode.model
    task = posterior.Task.of(model, one_mode.x, one_mode.observed)
    logits = posterior.decode(model, torch.zeros(3, len(one_mode.x), model.latent_size, dtype=torch.float64))
    logits[1] = torch.inf  # inf - inf is NaN, which ranks above all numbers
    assert (task.log_likelihood(logits).argmin(dim=0) == 1).all() and not task.log_likelihood(logits).isnan().any()
    best = task.suiting(logits[:, 0], 2)  # (2, B, 784)
    assert best.isfinite().all()


@pytest.mark.parametrize("wrong", [{"num_samples": 8.0}, {"iterations": 2.5}, {"chains": 0.5}])
def test_evidence_takes_whole_numbers(wrong, known):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is a whole number"):
        evidence.evidence(known.model, known.x, known.observed, **{"chains": 1} | wrong)
    with pytest.raises(ValueError, match="drawn are a torch.Tensor, not a ndarray"):
        evidence.evidence(known.model, known.x, known.observed, drawn=np.zeros((1, len(known.x), 2)))


def test_the_conditional_log_likelihood_meets_quadrature(known):
    ours = evidence.conditional_log_likelihood(known.model, known.x, known.observed, 4000, seeded())
    torch.testing.assert_close(ours, known.log_whole - known.log_observed, atol=0.1, rtol=0)


def test_evidence_bounds_the_observed_pixels_from_both_sides_and_closes_in(known):
    gaps = []
    for num_samples in (2, 32):
        found = [
            evidence.evidence(known.model, known.x, known.observed, num_samples, seeded(seed), chains=8)
            for seed in range(30)
        ]
        for side, bounds in ((1, [e.upper for e in found]), (-1, [e.log_likelihood for e in found])):
            bounds = torch.stack(bounds)
            slack = side * (bounds.mean(dim=0) - known.log_observed)
            assert (slack > -4 * bounds.std(dim=0) / len(found) ** 0.5 - 1e-3).all()
            gaps.append(slack.mean())
    for few, many in ((gaps[0], gaps[2]), (gaps[1], gaps[3])):
        assert many < max(0.3 * few, 0.02), "closer, or as close as 30 draws can tell"


def test_latents_that_images_were_drawn_from_bound_their_evidence_from_above():
    model = linear_toy()
    z = model.draw(200, seeded(7))
    x = torch.bernoulli(model.decode(z).sigmoid(), generator=seeded(8))
    everything = torch.ones_like(x, dtype=torch.bool)
    _, log_joint, _ = on_a_grid(model, x, everything)
    slack = {}
    for name, latents in (("their own", z), ("of others", z.roll(1, dims=0))):
        found = evidence.evidence(model, x, everything, 8, seeded(), drawn=latents[None])
        slack[name] = found.upper - log_joint.logsumexp(dim=1)
        assert (found.upper > found.log_likelihood - math.log(8)).all()
    mean, error = slack["their own"].mean(), slack["their own"].std() / len(x) ** 0.5
    assert -4 * error < mean < 0.1, "the fitted Gaussians nearly are the posteriors of this model"
    assert slack["of others"].mean() < mean - 5 * error, "latents from elsewhere are no substitute"


@pytest.mark.parametrize(("num_samples", "chains"), [(2000, 0), (2, 400)])
def test_mean_completions_meet_quadrature(known, num_samples, chains):
    found = evidence.evidence(known.model, known.x, known.observed, num_samples, seeded(), chains=chains).completion
    missing = ~known.observed
    torch.testing.assert_close(found[missing], known.mean.view_as(found)[missing], atol=0.02, rtol=0)
    assert torch.equal(found[known.observed], known.x[known.observed])


def check_completions(known, completions):
    """Their mean and their spread over the chains are those of p(z | x_o)."""
    missing = ~known.observed[0].flatten()
    completions = completions.flatten(2)[..., missing]  # (S, B, missing)
    mean, spread = known.mean[: completions.shape[1], missing], known.spread[: completions.shape[1], missing]
    error = spread / len(completions) ** 0.5
    assert ((completions.mean(dim=0) - mean).abs() < 5 * error + 0.003).all()
    torch.testing.assert_close(completions.std(dim=0), spread, rtol=0.1, atol=0.003)


def test_completions_are_draws_from_the_conditional_distribution(known):
    check_completions(known, vnca.inpaint(known.model, known.x[:2], known.observed[:2], 1500, seeded()))


def test_without_rejections_they_are_not(monkeypatch):
    """The Gaussians are fitted as if the prior were a standard normal, and only the rejections make up for it."""
    known = solve(mixture_toy())
    monkeypatch.setattr(inpainting, "_accept", lambda log_ratio, proposed, current, generator: proposed)
    completions = vnca.inpaint(known.model, known.x[:2], known.observed[:2], 1500, seeded())
    with pytest.raises(AssertionError):
        check_completions(known, completions)


def test_moves_to_latents_nearby_keep_the_posterior(one_mode):
    """Moves alone, which begin with a Gaussian that is wide of the mark, end in p(z | x_o)."""
    task = posterior.Task.of(one_mode.model, one_mode.x[:2], one_mode.observed[:2])
    mixture = posterior.fit(task, posterior.prepare(one_mode.model, seeded()), seeded())
    mixture = dataclasses.replace(mixture, mean=mixture.mean + 0.3, root=mixture.root / 1.5)
    z = mixture.mean[0] + mixture.spread(0, torch.randn(3000, *mixture.mean[0].shape, generator=seeded(1)).double())
    logits, generator = posterior.decode(one_mode.model, z), seeded(2)
    with pytest.raises(AssertionError):
        check_completions(one_mode, logits.sigmoid())
    for turn in range(60):
        z, logits = inpainting._move(task, mixture, turn % 4, (0.6, 0.9)[turn % 2], z, logits, generator)
    check_completions(one_mode, logits.sigmoid())


def test_quick_completions_fit_better_than_the_images_they_begin_with(one_mode):
    quick = inpainting.QuickInpainter(one_mode.model, seeded(1))
    missing = ~one_mode.observed[0].flatten()
    completions = quick(one_mode.x, one_mode.observed, 8, seeded()).flatten(2)[..., missing]
    begin = torch.randn(8, one_mode.model.latent_size, generator=seeded(3), dtype=torch.float64)
    prior = one_mode.model.decode(begin).sigmoid().flatten(1)[:, None, missing]
    mean = one_mode.mean[:, missing]
    assert (completions - mean).square().mean() < 0.5 * (prior - mean).square().mean()


# -------------------------------------------------------------------------------------- the promises at their limits


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = vnca.build(vnca.ModelConfig("doubling", 4, 2, {"hidden": 4, "steps": 1}))
    nn.init.normal_(model.decoder.update.layers[-1].weight, std=0.3)
    return model.eval()


def images(n, dtype=torch.float32):
    return torch.rand(n, 1, 28, 28, generator=seeded(5)).round().to(dtype)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", masks.MASKS)
def test_observed_pixels_come_back_as_they_are(model, name, quick):
    x, observed = model.sample(3, seeded(1)), masks.MASKS[name](3)  # grey
    if quick:
        completions = inpainting.QuickInpainter(model, seeded(1))(x, observed, 4, seeded())
    else:
        completions = vnca.inpaint(model, x, observed, 4, seeded(), iterations=12)
    assert completions.shape == (4, 3, 1, 28, 28)
    assert torch.equal(completions[:, observed], x[observed].expand(4, -1))
    missing = completions[:, ~observed]
    assert missing.min() > 0 and missing.max() < 1
    assert (missing.std(dim=0) > 0).all(), "each completion is its own"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8, torch.bool])
def test_images_of_another_type_are_taken(model, dtype):
    x, observed = images(2, dtype), masks.stroke(2)
    for completions in (
        vnca.inpaint(model, x, observed, 2, seeded(), iterations=1),
        inpainting.QuickInpainter(model, seeded(1))(x, observed, 2, seeded()),
    ):
        assert completions.dtype == (dtype if dtype.is_floating_point else torch.float32)
        assert (completions[:, observed] == x[observed]).all()
        assert (completions[:, ~observed] > 0).all(), "probabilities, not rounded ones"


def test_with_all_observed_nothing_changes(model):
    x = images(2)
    assert torch.equal(vnca.inpaint(model, x, torch.ones_like(x, dtype=torch.bool), 3), x.expand(3, -1, -1, -1, -1))
    everything = torch.ones_like(x, dtype=torch.bool)
    assert (evidence.conditional_log_likelihood(model, x, everything, 4, seeded()) == 0).all()


def test_with_nothing_observed_completions_are_samples(model):
    x = images(2)
    completions = vnca.inpaint(model, x, torch.zeros_like(x, dtype=torch.bool), 3, seeded())
    assert torch.equal(completions.flatten(0, 1), model.sample(6, seeded()))


def test_with_nothing_observed_the_conditional_likelihood_is_the_likelihood(one_mode):
    nothing = torch.zeros_like(one_mode.observed)
    ours = evidence.conditional_log_likelihood(one_mode.model, one_mode.x, nothing, 1000, seeded())
    torch.testing.assert_close(ours, one_mode.log_whole, atol=0.1, rtol=0)


def test_a_batch_may_mix_images_with_all_some_and_nothing_observed(model):
    x = model.sample(3, seeded(1))
    observed = torch.cat([masks.center_square(1, size) for size in (0, 14, 28)])
    completions = vnca.inpaint(model, x, observed, 5, seeded(), iterations=12)
    assert torch.equal(completions[:, 0], x[0].expand(5, -1, -1, -1))
    assert torch.equal(completions[:, 1:][:, observed[1:]], x[1:][observed[1:]].expand(5, -1))
    assert (completions[:, 1:][:, ~observed[1:]].std(dim=0) > 0).all()


@pytest.mark.parametrize("n", [0, 1, inpainting.GROUP + 1])
def test_batches_of_any_size(model, n):
    x, observed = images(n), masks.left_half(n)
    assert vnca.inpaint(model, x, observed, 2, iterations=1).shape == (2, n, 1, 28, 28)
    assert inpainting.QuickInpainter(model)(x, observed, 2).shape == (2, n, 1, 28, 28)
    assert evidence.conditional_log_likelihood(model, x, observed, 3).shape == (n,)


def test_missing_pixels_play_no_part(model):
    x, observed = images(2), masks.center_square(2)
    other = torch.where(observed, x, 1 - x)
    quick = inpainting.QuickInpainter(model, seeded(1))
    for one, two in (
        [vnca.inpaint(model, t, observed, 3, seeded(), iterations=3) for t in (x, other)],
        [quick(t, observed, 3, seeded()) for t in (x, other)],
    ):
        assert torch.equal(one, two)
    one, two = (evidence.evidence(model, t, observed, 8, seeded(), chains=2) for t in (x, other))
    assert torch.equal(one.log_likelihood, two.log_likelihood) and torch.equal(one.upper, two.upper)


def test_completions_are_reproducible_by_their_generator(model):
    x, observed = images(2), masks.left_half(2)
    one, two, three = (vnca.inpaint(model, x, observed, 3, seeded(seed), iterations=3) for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, three)
    one, two = (evidence.conditional_log_likelihood(model, x, observed, 8, seeded(1)) for _ in range(2))
    assert torch.equal(one, two)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    vnca.inpaint(model, x, observed, 3, seeded(), iterations=3)
    assert torch.equal(before, torch.random.get_rng_state()), "no random number from elsewhere"


def test_the_quick_way_decodes_no_more_than_it_says(model):
    sizes = []
    quick = inpainting.QuickInpainter(model, seeded(), size=3)
    hook = model.decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    completions = quick(images(2), masks.left_half(2), 4, seeded())
    hook.remove()
    assert completions.shape == (4, 2, 1, 28, 28), "also where there are more completions than images to begin with"
    assert sum(sizes) == 2 * 4 * quick.CANDIDATES


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_memory_is_bounded_however_many_completions_are_wanted(model, part):
    sizes = []
    hook = getattr(model, part).register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    vnca.inpaint(model, images(2), masks.left_half(2), CHUNK_SIZE, seeded(), iterations=2)
    inpainting.QuickInpainter(model, seeded())(images(2), masks.left_half(2), CHUNK_SIZE, seeded())
    hook.remove()
    assert max(sizes) == CHUNK_SIZE


def ask(model, x=None, observed=None, *more):
    x = images(2) if x is None else x
    return vnca.inpaint(model, x, torch.ones_like(x, dtype=torch.bool) if observed is None else observed, *more)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: ask(m, torch.zeros(28, 28)), r"\(B, 1, 28, 28\), not \(28, 28\)"),
        (lambda m: ask(m, torch.zeros(1, 1, 32, 32)), r"not \(1, 1, 32, 32\)"),
        (lambda m: ask(m, 255 * torch.ones(1, 1, 28, 28)), "from 255 to 255: divide"),
        (lambda m: ask(m, torch.full((1, 1, 28, 28), math.nan)), "NaN; put any number"),
        (lambda m: ask(m, None, torch.ones(2, 1, 28, 28)), "the mask is bool, .* not torch.float32; compare"),
        (lambda m: ask(m, None, masks.left_half(2).numpy()), "mask is a torch.Tensor, not a ndarray: torch.as_tensor"),
        (lambda m: ask(m, None, masks.left_half(1)), r"\(2, 1, 28, 28\), not \(1, 1, 28, 28\)"),
        (lambda m: ask(m, None, masks.left_half(2)[:, 0]), r"\(2, 1, 28, 28\), not \(2, 28, 28\)"),
        (lambda m: ask(m, None, None, 0), "at least 1 and iterations at least 0, not 0 and"),
        (lambda m: ask(m, images(2).numpy(), masks.left_half(2)), "images are a torch.Tensor, not a ndarray"),
        (lambda m: ask(m, None, None, 2.0), "num_samples is a whole number .*, not 2.0"),
        (lambda m: ask(m, None, masks.left_half(2), 2, 0), "is a torch.Generator, not 0"),
        (lambda m: vnca.inpaint(m, images(1), masks.left_half(1), iterations=1.5), "iterations is a whole number"),
        (lambda m: vnca.inpaint(m, images(1), masks.left_half(1), iterations=-1), "at least 0, not 16 and -1"),
        (lambda m: evidence.evidence(m, images(1), masks.left_half(1), 0), "at least 1, .* not 0, 0 and 30"),
        (lambda m: evidence.evidence(m, images(1), masks.left_half(1), chains=-1), "not 128, -1 and 30"),
        (
            lambda m: evidence.evidence(m, images(1), masks.left_half(1), chains=1, drawn=torch.zeros(1, 1, 8)),
            r"not \(1, 1, 8\) beside 1 chains",
        ),
        (lambda m: evidence.evidence(m, images(1), masks.left_half(1), drawn=torch.zeros(1, 8)), r"not \(1, 8\)"),
        (lambda m: evidence.evidence(m, images(1), masks.left_half(1), drawn=torch.zeros(0, 1, 8)), r"not \(0, 1, 8\)"),
        (lambda m: evidence.conditional_log_likelihood(m, images(2), masks.left_half(1)), "mask has the shape"),
        (lambda m: masks.center_square(1, 29), "0 to 28 pixels, not 29"),
        (lambda m: masks.stroke(1, width=0), "more than 0 pixels wide, not 0"),
        (lambda m: masks.random_half(-1), "at least 0, not -1"),
    ],
)
def test_bad_input_is_named(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


# ------------------------------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("name", masks.MASKS)
def test_masks_are_bool_deterministic_and_the_same_in_longer_batches(name):
    mask = masks.MASKS[name](40)
    assert mask.shape == (40, 1, 28, 28) and mask.dtype == torch.bool
    assert torch.equal(mask[:7], masks.MASKS[name](7))
    hidden = (~mask).flatten(1).sum(dim=1)
    shares = {"center square": (196, 196), "left half": (392, 392), "random half": (392, 392), "stroke": (100, 260)}
    assert shares[name][0] <= hidden.min() and hidden.max() <= shares[name][1]


def test_masks_hide_where_they_say():
    assert not masks.center_square(1, 2)[0, 0, 13:15, 13:15].any()
    assert not masks.left_half(1)[..., :14].any() and masks.left_half(1)[..., 14:].all()
    random = masks.random_half(50)
    assert not torch.equal(random[0], random[1]) and not torch.equal(random, masks.random_half(50, seed=1))
    strokes = ~masks.stroke(50)[:, 0]
    from_side_to_side = strokes.any(dim=1).all(dim=1) | strokes.any(dim=2).all(dim=1)
    assert from_side_to_side.all() and len(strokes.unique(dim=0)) == 50


# --------------------------------------------------------------------------------------------------- local regrowth


def decoders():
    torch.manual_seed(0)
    doubling = vnca.DoublingDecoder(channels=4, hidden=4, steps=2, residual_blocks=1)
    regrowing = vnca.RegrowingDecoder(channels=4, hidden=4, min_steps=2, max_steps=4)
    for decoder in (doubling, regrowing):
        nn.init.normal_(decoder.update.layers[-1].weight, std=0.2)
    return doubling, regrowing


def square(size, grid=32):
    region = torch.zeros(1, 1, grid, grid, dtype=torch.bool)
    region[..., 2 : 2 + size, 3 : 3 + size] = True
    return region


@pytest.mark.parametrize("decoder", decoders(), ids=["doubling", "regrowing"])
def test_regrowth_shows_erasing_planting_and_each_step(decoder):
    *_, grown = decoder.grow(torch.randn(2, 4, generator=seeded()))
    region, z = square(5), torch.randn(2, 4, generator=seeded(1))
    erased, planted, *steps = regrowth.regrow(decoder, grown, region, z, 3)
    outside, inside = ~region.expand_as(grown), region.expand_as(grown)
    for frame in (erased, planted):
        assert torch.equal(frame[outside], grown[outside])
    assert (erased[inside] == 0).all()
    assert torch.equal(planted[inside], z[:, :, None, None].expand_as(grown)[inside])
    assert len(steps) == 3
    for before, after in zip([planted, *steps], steps, strict=False):
        torch.testing.assert_close(after, before + decoder.update(before))
    assert not steps[0].requires_grad


def test_noise_can_be_planted_or_nothing():
    decoder, _ = decoders()
    *_, grown = decoder.grow(torch.randn(1, 4, generator=seeded()))
    noise = torch.randn(grown.shape, generator=seeded(1))
    _, planted = regrowth.regrow(decoder, grown, square(4), noise, 0)
    assert torch.equal(planted, torch.where(square(4), noise, grown))
    erased, stepped = regrowth.regrow(decoder, grown, square(4), None, 1)
    torch.testing.assert_close(stepped, erased + decoder.update(erased))


def test_an_early_state_is_replayed_to_the_full_grid():
    decoder, _ = decoders()
    z = torch.randn(2, 4, generator=seeded())
    states, events = list(decoder.grow(z)), [event for event, _ in decoder.schedule()]
    early = next(state for state in states if state.shape[-1] == 8)  # right after the doubling
    nothing = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    _, *frames = regrowth.regrow(decoder, early, nothing, None, decoder.steps)
    assert [frame.shape[-1] for frame in frames] == [8] * 2 + [16] * 3 + [32] * 3
    torch.testing.assert_close(frames[-1], states[-1])
    assert events.count("double") == 4
    edited = list(regrowth.regrow(decoder, early, square(2, 8), torch.randn(2, 4, generator=seeded(1)), 2))
    assert not torch.allclose(edited[-1], states[-1])


def test_regions_of_cells_from_masks_and_on_earlier_grids():
    observed = masks.center_square(2, 14)
    region = regrowth.cells_of(observed)
    assert region.shape == (2, 1, 32, 32) and torch.equal(region[..., 2:30, 2:30], ~observed)
    assert region.sum() == 2 * 14**2
    coarse = regrowth.coarsen(region, 8)
    assert coarse.dtype == torch.bool and coarse.shape == (2, 1, 8, 8)
    one = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    one[..., 9, 31] = True
    assert regrowth.coarsen(one, 8).nonzero().tolist() == [[0, 0, 2, 7]]
    assert torch.equal(regrowth.coarsen(one, 32), one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": vnca.ConvDecoder(4, 2)}, "a ConvDecoder has no cells"),
        ({"state": torch.zeros(4, 32, 32)}, r"\(B, C, H, W\), but this one is \(4, 32, 32\)"),
        ({"state": torch.zeros(1, 5, 32, 32)}, "have 4 channels, not 5"),
        ({"state": torch.zeros(1, 4, 12, 12)}, r"grids of \[2, 4, 8, 16, 32\] .* not 12 x 12"),
        ({"region": square(2).float()}, r"bool \(B, 1, H, W\), not torch.float32"),
        ({"region": square(2, 16)}, r"\(1, 1, 32, 32\), not \(1, 1, 16, 16\)"),
        ({"reseed": torch.zeros(1, 3)}, r"latent \(1, 4\) or a cell state \(1, 4, 32, 32\), not \(1, 3\)"),
        ({"steps": -1}, "at least 0, not -1"),
    ],
)
def test_impossible_regrowth_is_named(change, message):
    ask = {"decoder": decoders()[0], "state": torch.zeros(1, 4, 32, 32), "region": square(2), "reseed": None}
    with pytest.raises(ValueError, match=message):
        list(regrowth.regrow(**{**ask, "steps": 1, **change}))


def test_impossible_regions_are_named():
    with pytest.raises(ValueError, match="of 32 x 32 cells does not come from one of 5 x 5"):
        regrowth.coarsen(square(2), 5)
    with pytest.raises(ValueError, match=r"bool \(B, 1, 28, 28\), not torch.bool \(1, 1, 32, 32\)"):
        regrowth.cells_of(square(2))


# ------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def job(tmp_path, model):
    """Runs `inpaint` in a folder with weights, an image and a mask; returns its exit code."""
    config = vnca.ModelConfig("doubling", 4, 2, {"hidden": 4, "steps": 1})
    pretrained.save(model, config, tmp_path / "run")
    png(tmp_path / "in.png", 255 * images(1)[0, 0])
    png(tmp_path / "mask.png", 255 * masks.left_half(1)[0, 0])

    def run(**changes):
        options = {"weights": "run", "image": "in.png", "mask": "mask.png", "out": "out.png", "n": "4", **changes}
        files = {"weights", "image", "mask", "out"}
        pairs = [(f"--{key}", str(tmp_path / value) if key in files else value) for key, value in options.items()]
        return main(["inpaint", *[word for pair in pairs for word in pair if word != ""]])

    run.folder = tmp_path
    return run


def png(path, pixels):
    Image.fromarray(np.asarray(pixels).astype(np.uint8)).save(path)


def one_line_error(capsys):
    error = capsys.readouterr().err
    assert error.startswith("vnca: ") and error.count("\n") == 1
    return error


def test_the_command_writes_the_image_the_damage_and_the_completions(job, model, capsys):
    assert job() == 0
    x, observed = images(1), masks.left_half(1)
    completions = vnca.inpaint(model, x, observed, 4, seeded(0))
    expected = image_grid([x[0], torch.where(observed, x, 0.5)[0], *completions[:, 0]], columns=6)
    assert np.array_equal(np.asarray(Image.open(job.folder / "out.png")), expected)
    assert "392 of 784 pixels painted in, 4 times" in capsys.readouterr().out
    before = (job.folder / "out.png").read_bytes()
    assert job() == 0 and (job.folder / "out.png").read_bytes() == before
    assert job(seed="1") == 0 and (job.folder / "out.png").read_bytes() != before


def test_another_size_is_refused_unless_resized(job, capsys):
    large = np.kron(255 * images(1)[0, 0].numpy(), np.ones((5, 5)))
    mask = np.kron(255 * masks.center_square(1)[0, 0].numpy(), np.ones((5, 5)))
    mask[0, 0] = 0  # a corner of one small pixel
    png(job.folder / "large.png", large)
    png(job.folder / "large-mask.png", mask)
    assert job(image="large.png", mask="large-mask.png") == 2
    assert "140 x 140 pixels, and the models know images of 28 x 28 only; --resize" in one_line_error(capsys)
    assert not (job.folder / "out.png").exists()
    assert job(image="large.png", mask="large-mask.png", resize="") == 0
    assert "197 of 784 pixels" in capsys.readouterr().out
    grid = np.asarray(Image.open(job.folder / "out.png"))
    assert np.array_equal(grid[2:30, 2:30], 255 * images(1)[0, 0].numpy())
    assert job(image="large.png", resize="") == 2
    assert "large.png has 140 x 140 pixels and" in one_line_error(capsys)


@pytest.mark.parametrize("most", [1, 127])
def test_a_mask_of_zeros_and_ones_is_refused(job, capsys, most):
    png(job.folder / "mask.png", most * masks.left_half(1)[0, 0])
    assert job() == 2
    assert re.search(
        rf"mask.png .* its largest value is {most} of 255. Of zeros and ones save mask \* 255", one_line_error(capsys)
    )
    png(job.folder / "mask.png", np.zeros((28, 28)))
    assert job() == 0, "all is to be painted"


def _damaged(folder):
    whole = (folder / "in.png").read_bytes()
    (folder / "in.png").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("prepare", "changes", "message"),
    [
        (None, {"image": "none.png"}, "there is no file .*none.png"),
        (None, {"image": "run/config.json"}, "config.json is not a PNG file"),
        (None, {"image": "run"}, "run cannot be read as a PNG file"),
        (_damaged, {}, "in.png cannot be read as a PNG file"),
        (None, {"out": "in.png"}, "in.png would replace a file that is read"),
        (None, {"out": "run/../mask.png"}, "would replace a file that is read"),
        (None, {"out": "nowhere/out.png"}, "lies in one that does not exist"),
        (None, {"weights": "nothing"}, "no weights named"),
        (None, {"n": "0"}, "--n is from 1 to 10000, not 0"),
        (None, {"seed": "-1"}, "--seed is a whole number"),
    ],
)
def test_bad_arguments_end_in_one_line_and_no_file(job, capsys, prepare, changes, message):
    if prepare:
        prepare(job.folder)
    before = {path: path.read_bytes() for path in job.folder.rglob("*") if path.is_file()}
    assert job(**changes) == 2
    assert re.search(message, one_line_error(capsys))
    assert {path: path.read_bytes() for path in job.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("L", 51, 0.2),
        ("1", 1, 1.0),
        ("RGB", (255, 0, 0), 0.299),
        ("RGB", (0, 255, 0), 0.587),
        ("RGBA", (0, 0, 0, 0), 1.0),
        ("RGBA", (0, 0, 0, 255), 0.0),
        ("LA", (0, 51), 0.8),
        ("I;16", 13107, 0.2),
    ],
)
def test_pictures_of_every_kind_are_read_in_grey(tmp_path, mode, pixel, expected):
    Image.new(mode, (3, 2), pixel).save(tmp_path / "picture.png")
    grey = read_png(tmp_path / "picture.png")
    assert grey.shape == (1, 2, 3) and grey.dtype == torch.float32
    torch.testing.assert_close(grey, torch.full((1, 2, 3), expected), atol=0.003, rtol=0)


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_a_grey_that_stands_for_transparent_is_white(tmp_path, mode):
    picture = Image.new(mode, (2, 1), 0)
    picture.putpixel((1, 0), 255)
    picture.save(tmp_path / "picture.png", transparency=0)
    assert read_png(tmp_path / "picture.png")[0, 0, 0] == 1
    picture.save(tmp_path / "picture.png", transparency=255)
    grey = read_png(tmp_path / "picture.png")[0, 0]
    assert grey[0] == 0 and grey[1] == 1


def test_a_palette_is_read_by_its_colors(tmp_path):
    Image.new("RGB", (2, 2), (255, 255, 255)).convert("P").save(tmp_path / "picture.png")
    assert (read_png(tmp_path / "picture.png") == 1).all()


def test_a_picture_too_large_to_be_meant_is_refused(tmp_path, monkeypatch):
    Image.new("L", (20, 20)).save(tmp_path / "picture.png")
    for limit in (300, 100):  # where Pillow warns, and where it refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match="cannot be read as a PNG file"):
            read_png(tmp_path / "picture.png")


def test_a_model_without_a_single_finite_image_is_told_as_such(known):
    model = vnca.VAE(known.model.encoder, known.model.decoder)
    decode = model.decode
    model.decode = lambda z: decode(z) * math.nan
    for call in (vnca.inpaint, evidence.evidence):
        with pytest.raises(ValueError, match="the model's images are not finite numbers"):
            call(model, known.x, known.observed, 2)


def test_latents_of_numpy_take_the_place_of_chains(model):
    x = torch.bernoulli(torch.full((2, 1, 28, 28), 0.5), generator=seeded())
    observed = masks.left_half(2)
    drawn = torch.randn(3, 2, model.latent_size, dtype=torch.float64)
    ours = evidence.evidence(model, x, observed, 4, seeded(), drawn=drawn)
    same = evidence.evidence(model, x, observed, 4, seeded(), drawn=drawn.float())
    assert ours.upper.dtype == torch.float32 and torch.equal(ours.upper, same.upper)
