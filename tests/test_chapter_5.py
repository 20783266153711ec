"""Chapter 5: the code on the page behaves like that in `vnca`."""

import pytest
import torch
from chapters import definitions
from test_inpainting import seeded

from vnca import cells
from vnca.decoders import RegrowingDecoder
from vnca.objectives import CoarseToFine, PersistentElbo
from vnca.vae import VAE, Encoder, bernoulli_log_likelihood

SIZES = {"channels": 5, "hidden": 6, "min_steps": 2, "max_steps": 5}


@pytest.fixture(scope="module")
def chapter():
    return definitions("05-healing.ipynb")


def randomize(module: torch.nn.Module) -> torch.nn.Module:
    """Random values for every parameter, also for those that start at zero and would hide a difference."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=seeded()))
    return module


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 28, 28, generator=seeded(1)).round()


def test_the_decoder_grows_as_the_packages_does(chapter):
    ours, theirs = chapter["RegrowingDecoder"](**SIZES), randomize(RegrowingDecoder(**SIZES))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    z = torch.randn(3, SIZES["channels"], generator=seeded(2))
    with torch.no_grad():
        for state, expected in zip(ours.grow(z), theirs.grow(z), strict=True):
            torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-4)
        logits = ours(z)
        assert logits.std() > 0.01
        torch.testing.assert_close(logits, theirs(z), rtol=1e-4, atol=1e-4)
    assert (ours.min_steps, ours.max_steps, ours.steps) == (theirs.min_steps, theirs.max_steps, theirs.steps)


def test_the_update_starts_like_the_packages(chapter):
    updates = []
    for update_class in (chapter["SimpleUpdate"], cells.SimpleUpdate):
        torch.manual_seed(0)
        updates.append(update_class(4, 7))
    for ours, theirs in zip(*(update.parameters() for update in updates), strict=True):
        assert torch.equal(ours, theirs)


def test_cells_mature_as_the_packages_do(chapter):
    ours, theirs = chapter["MaturingUpdate"](7, 5, 3), randomize(cells.MaturingUpdate(7, 5, 3))
    ours.load_state_dict(theirs.state_dict())
    state = cells.damage(torch.randn(2, 7, 6, 6, generator=seeded(6)), 1, 2, 3)
    state[:, 1] = state[:, 1].abs().clamp(max=1)
    with torch.no_grad():
        for _ in range(8):
            torch.testing.assert_close(ours(state), theirs(state), rtol=1e-4, atol=1e-5)
            state = state + theirs(state)


@pytest.mark.parametrize("side", [2, 8, 32])
def test_the_seed_is_the_packages(chapter, side):
    z = torch.randn(3, 4, generator=seeded(3))
    assert torch.equal(chapter["seed"](z, side), cells.seed(z, side))


def test_a_lesson_judges_as_the_package_does(chapter):
    """The package's range of steps shrinks with the grid: 16 to 24 steps are 4 to 6 on a quarter of the side."""
    model = VAE(Encoder(4, width=2), randomize(RegrowingDecoder(4, 6, 16, 24)))
    theirs = CoarseToFine(PersistentElbo(model, pool_size=8), ((8, 1),))
    x = images(3)
    drawn = theirs.draw(x, seeded(4), seeded(4))
    posterior = model.encode(x)
    z = posterior.mean + posterior.stddev * drawn["noise"]
    target = chapter["coarse"](x, 8)
    ours, _ = chapter["judge"](model.decoder.update, chapter["seed"](z, 8), target, 4, 6)
    torch.testing.assert_close(16 * ours, theirs(**drawn).log_likelihood)


def test_the_excess_is_over_the_best_there_can_be(chapter):
    target = torch.rand(4, 1, 8, 8, generator=seeded(5))
    target[0] = target[0].round()  # whole zeros and ones, whose best logits are infinite
    best = bernoulli_log_likelihood(target.logit(eps=1e-6), target)
    assert chapter["excess"](best, target).abs().max() == 0
    for other in (0.1, -0.1):
        worse = bernoulli_log_likelihood(target.logit(eps=1e-6) + other, target)
        assert (chapter["excess"](worse, target) > 0)[1:].all()


def test_the_pool_gives_back_states_with_their_targets(chapter):
    pool = chapter["Pool"](6, 3, 4)
    fresh, target = torch.ones(2, 3, 4, 4), torch.ones(2, 1, 4, 4)
    place = torch.tensor([5, 1])
    assert all(torch.equal(*pair) for pair in zip(pool.resume(place, fresh, target), (fresh, target), strict=True))
    pool.put_back(place, 2 * fresh, 3 * target)
    states, targets = pool.resume(torch.tensor([1, 0]), fresh, target)
    assert states[:, 0, 0, 0].tolist() == [2, 1] and targets[:, 0, 0, 0].tolist() == [3, 1]


def test_a_wound_is_one_square_in_each_grid(chapter):
    torch.manual_seed(0)
    hurt = chapter["wound"](torch.ones(50, 2, 8, 8), 4)
    assert ((hurt == 0).flatten(1).sum(dim=1) == 2 * 16).all()
    assert len({tuple(grid.flatten().tolist()) for grid in hurt}) > 10, "at different places"
