"""The objectives: the ELBO by its formula, the pool's rules, damage, and that the same seeds give the same run."""

import copy
from collections import Counter

import pytest
import torch
from safetensors.torch import load, save

from vnca import cells
from vnca.decoders import ConvDecoder, DoublingDecoder, PersistentDecoder, RegrowingDecoder, crop
from vnca.healing import image
from vnca.objectives import (
    HOLE_SIZE,
    LARGEST,
    PENALTY,
    CoarseToFine,
    Elbo,
    ImportanceWeighted,
    PersistentElbo,
    objective,
)
from vnca.priors import CorrelatedMixturePrior, MixturePrior
from vnca.vae import VAE, Encoder, bernoulli_log_likelihood, elbo_terms, iwae

CHANNELS = 3


def generators(seed=0) -> tuple[torch.Generator, torch.Generator]:
    return torch.Generator().manual_seed(seed), torch.Generator().manual_seed(1000 + seed)


def model(min_steps=1, max_steps=3) -> VAE:
    torch.manual_seed(0)
    decoder = RegrowingDecoder(CHANNELS, 4, min_steps, max_steps)
    torch.nn.init.normal_(decoder.update.layers[-1].weight, std=0.1)
    return VAE(Encoder(CHANNELS, width=2), decoder)


def images(count, seed=0) -> torch.Tensor:
    return torch.bernoulli(torch.full((count, 1, 28, 28), 0.3), generator=generators(seed)[0])


def full(persistent: PersistentElbo) -> PersistentElbo:
    """A pool in which entry i is a state full of the number i + 1, with an image of its own."""
    count = len(persistent.pool)
    persistent.pool.states.copy_(torch.arange(1.0, count + 1)[:, None, None, None].expand_as(persistent.pool.states))
    persistent.images.copy_(images(count, seed=9).bool())
    persistent.filled.fill_(True)
    return persistent


def trained(persistent: PersistentElbo, updates: range) -> list[torch.Tensor]:
    """A few updates, each with its own seeds; returns the mean log-likelihood of each."""
    optimizer = torch.optim.SGD(persistent.model.parameters(), lr=1e-4)
    curve = []
    for update in updates:
        drawn = persistent.draw(images(8, seed=update), *generators(update))
        terms = persistent(**drawn)
        optimizer.zero_grad()
        (terms.kl - terms.log_likelihood + terms.penalty).mean().backward()
        optimizer.step()
        persistent.keep(drawn, terms.outcome)
        curve.append(terms.log_likelihood.mean().detach())
    return curve


@pytest.mark.parametrize(
    "decoder",
    [ConvDecoder(4, width=2), DoublingDecoder(4, 4, steps=1, residual_blocks=1), RegrowingDecoder(4, 4, 2, 4)],
)
def test_the_elbo_is_that_of_the_model(decoder):
    any_vae = VAE(Encoder(4, width=2), decoder)
    x = images(5)
    drawn = Elbo(any_vae).draw(x, *generators())
    terms = Elbo(any_vae)(**drawn)
    log_likelihood, kl = elbo_terms(any_vae, x, generators()[0])
    torch.testing.assert_close(terms.log_likelihood, log_likelihood)
    torch.testing.assert_close(terms.kl, kl)
    assert terms.fresh.all() and terms.outcome is None


def test_the_decoder_chooses_the_objective():
    assert isinstance(objective(model()), PersistentElbo)
    assert len(objective(model()).pool) == 1024
    for decoder in (ConvDecoder(4, width=2), DoublingDecoder(4, 4)):
        assert isinstance(objective(VAE(Encoder(4, width=2), decoder)), Elbo)


def test_a_persistent_decoder_counts_its_steps_from_the_last_doubling():
    torch.manual_seed(0)
    decoder = PersistentDecoder(CHANNELS, 4, steps=2, residual_blocks=1, min_steps=1, max_steps=3)
    torch.nn.init.normal_(decoder.update.layers[-1].weight, std=0.1)
    staying = VAE(Encoder(CHANNELS, width=2), decoder)
    persistent = objective(staying)
    assert isinstance(persistent, PersistentElbo)
    x = images(8)
    drawn = persistent.draw(x, *generators())
    terms = persistent(**drawn)
    assert terms.fresh.all(), "the pool is empty"
    posterior = staying.encode(x)
    settled = decoder.settle(posterior.mean + posterior.stddev * drawn["noise"])
    assert persistent.pool.states.shape == (1024, CHANNELS + 1, 32, 32), "the age, too"
    after = [bernoulli_log_likelihood(crop(decoder.run(settled, steps)[:, :1]), x) for steps in (1, 2, 3)]
    torch.testing.assert_close(terms.log_likelihood, sum(after) / 3)
    torch.testing.assert_close(terms.outcome.float(), decoder.run(settled, drawn["steps"]), rtol=0.01, atol=0.01)


def small_vae(prior=None) -> VAE:
    torch.manual_seed(0)
    return VAE(Encoder(4, width=1), ConvDecoder(4, width=1), prior)


@pytest.mark.parametrize(
    "prior",
    [lambda: None, lambda: MixturePrior(4, 3), lambda: CorrelatedMixturePrior(4, 3, 2)],
    ids=["standard normal", "mixture", "correlated"],
)
@pytest.mark.parametrize("samples", [1, 5])
def test_the_importance_weighted_objective_is_the_bound_and_has_its_gradient(samples, prior):
    any_vae, x = small_vae(prior()), images(3)
    weighted = ImportanceWeighted(any_vae, samples)
    drawn = weighted.draw(x, *generators())
    assert drawn["noise"].shape == (3, samples, 4)
    terms = weighted(**drawn)
    # `iwae` draws sample by sample, so it gets the same noise in its own order.
    noise = iter(drawn["noise"].transpose(0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vnca.vae.standard_normal", lambda *_: next(noise))
        bound = iwae(any_vae, x, samples)
    torch.testing.assert_close(terms.log_likelihood - terms.kl, bound, rtol=1e-5, atol=1e-3)
    of_model = [*any_vae.decoder.parameters(), *any_vae.prior.parameters()]
    ours = torch.autograd.grad((terms.kl - terms.log_likelihood).mean(), of_model)
    theirs = torch.autograd.grad(-bound.mean(), of_model)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_the_encoder_gets_the_gradient_of_the_bound_on_average_and_with_less_noise():
    any_vae, x, repeats = small_vae(), images(1), 2000
    with torch.no_grad():
        any_vae.encoder.layers[-1].weight.mul_(0.1)
    ours, theirs = (torch.zeros(repeats, 8) for _ in range(2))
    bias = any_vae.encoder.layers[-1].bias
    weighted = ImportanceWeighted(any_vae, 8)
    for repeat in range(repeats):
        generator = generators(repeat)[0]
        terms = weighted(**weighted.draw(x, generator, generator))
        (ours[repeat],) = torch.autograd.grad((terms.log_likelihood - terms.kl).mean(), bias)
        (theirs[repeat],) = torch.autograd.grad(iwae(any_vae, x, 8, generator=generator).mean(), bias)
    error = torch.hypot(ours.std(dim=0), theirs.std(dim=0)) / repeats**0.5
    assert ((ours.mean(dim=0) - theirs.mean(dim=0)).abs() < 4 * error).all()
    assert (ours.mean(dim=0).abs() > 5 * ours.std(dim=0) / repeats**0.5).any(), "there is a gradient to compare"
    assert ours.var(dim=0).sum() < theirs.var(dim=0).sum()


def test_a_regrowing_decoder_takes_one_sample_and_no_objective_takes_none():
    with pytest.raises(ValueError, match="1 sample an image, not with 4"):
        objective(model(), samples=4)
    with pytest.raises(ValueError, match="at least 1 sample, not 0"):
        ImportanceWeighted(small_vae(), 0)
    assert isinstance(objective(small_vae(), samples=4), ImportanceWeighted)


def test_with_an_empty_pool_it_is_the_elbo_of_the_batch():
    persistent, x = PersistentElbo(model(2, 2), pool_size=8), images(6)
    drawn = persistent.draw(x, *generators())
    terms = persistent(**drawn)
    posterior = persistent.model.encode(x)
    z = posterior.mean + posterior.stddev * drawn["noise"]
    expected = Elbo(persistent.model)(x, drawn["noise"])
    assert drawn["steps"] == 2 and terms.fresh.all()
    assert torch.equal(drawn["x"], x)
    torch.testing.assert_close(terms.log_likelihood, expected.log_likelihood)
    torch.testing.assert_close(terms.kl, expected.kl)
    *_, last = persistent.model.decoder.grow(z)
    torch.testing.assert_close(terms.outcome, last.detach().bfloat16())


@pytest.mark.parametrize("count", [8, 9, 4])
def test_half_of_a_batch_goes_on_from_different_states_of_the_pool_with_their_images(count):
    persistent, x = full(PersistentElbo(model(), pool_size=20)), images(count)
    drawn = persistent.draw(x, *generators())
    half = count // 2
    assert drawn["resumed"].tolist() == [False] * (count - half) + [True] * half
    assert len(set(drawn["place"].tolist())) == count
    torch.testing.assert_close(drawn["start"][:, 0].amax(dim=(1, 2)).float(), drawn["place"] + 1.0)
    assert torch.equal(drawn["x"][: count - half], x[: count - half])
    assert torch.equal(drawn["x"][count - half :], persistent.images[drawn["place"][count - half :]].float())


def test_a_quarter_of_a_batch_gets_one_hole_of_half_the_image_s_side_anywhere_in_the_grid():
    persistent = full(PersistentElbo(model(), pool_size=16))
    corners = Counter()
    for seed in range(300):
        drawn = persistent.draw(images(8), *generators(seed))
        holes = drawn["start"] == 0
        assert holes.flatten(1).any(dim=1).tolist() == [False] * 4 + [True] * 2 + [False] * 2
        for hole in holes[4:6]:
            rows, cols = hole.all(dim=0).nonzero(as_tuple=True)
            row, col = rows.min().item(), cols.min().item()
            square = torch.zeros_like(hole)
            square[:, row : row + HOLE_SIZE, col : col + HOLE_SIZE] = True
            assert torch.equal(hole, square) and HOLE_SIZE == 14
            corners.update([("row", row), ("col", col)])
    assert set(corners) == {(axis, corner) for axis in ("row", "col") for corner in range(32 - 14 + 1)}
    assert (persistent.pool.states != 0).all(), "the pool itself stays whole"


def test_every_number_of_steps_in_the_range_is_drawn():
    persistent = PersistentElbo(model(2, 5), pool_size=4)
    assert {persistent.draw(images(2), *generators(seed))["steps"] for seed in range(100)} == {2, 3, 4, 5}


def test_resumed_samples_continue_their_state_and_have_no_kl():
    persistent = full(PersistentElbo(model(3, 3), pool_size=20))
    drawn = persistent.draw(images(8), *generators())
    drawn["start"] = drawn["start"] / 16
    terms = persistent(**drawn)
    expected = persistent.model.decoder.run(drawn["start"][4:].float(), 3)
    torch.testing.assert_close(terms.outcome[4:], expected.detach().bfloat16())
    assert terms.fresh.tolist() == [True] * 4 + [False] * 4
    assert (terms.kl[4:] == 0).all() and (terms.kl[:4] > 0).all()


def test_only_fresh_samples_teach_the_encoder_and_nothing_flows_into_the_pool():
    persistent = full(PersistentElbo(model(), pool_size=20))
    persistent.pool.states.div_(16)
    drawn = persistent.draw(images(8), *generators())
    terms = persistent(**drawn)
    assert not terms.outcome.requires_grad

    def gradients(samples):
        loss = (terms.kl - terms.log_likelihood)[samples].sum()
        return torch.autograd.grad(loss, list(persistent.model.parameters()), retain_graph=True)

    encoder = len(list(persistent.model.encoder.parameters()))
    fresh, resumed = gradients(terms.fresh), gradients(~terms.fresh)
    assert all(g.abs().sum() > 0 for g in fresh)
    assert all((g == 0).all() for g in resumed[:encoder])
    assert all(g.abs().sum() > 0 for g in resumed[encoder:])
    persistent.keep(drawn, terms.outcome)
    assert not persistent.pool.states.requires_grad


def test_outcomes_go_to_their_places_with_their_images_and_nowhere_else():
    persistent = full(PersistentElbo(model(), pool_size=20))
    before = copy.deepcopy(persistent)
    drawn = persistent.draw(images(8), *generators())
    outcome = torch.arange(100.0, 108)[:, None, None, None].expand(8, CHANNELS, 32, 32)
    persistent.keep(drawn, outcome)  # in float32, as a gathering over processes may leave it
    assert drawn["kept"].tolist() == [True] + [False] * 3 + [True] * 4, "one of the fresh, and all that were resumed"
    place = drawn["place"][drawn["kept"]]
    others = [i for i in range(20) if i not in place.tolist()]
    assert persistent.pool.states[place, 0, 0, 0].tolist() == [100, 104, 105, 106, 107]
    assert torch.equal(persistent.images[place].float(), drawn["x"][drawn["kept"]])
    assert torch.equal(persistent.pool.states[others], before.pool.states[others])
    assert torch.equal(persistent.images[others], before.images[others])


def test_the_pool_fills_and_only_filled_places_are_resumed():
    persistent = PersistentElbo(model(), pool_size=16)
    resumed = []
    for update in range(12):
        drawn = persistent.draw(images(8, update), *generators(update))
        resumed.append(drawn["resumed"].sum().item())
        assert persistent.filled[drawn["place"][drawn["resumed"]]].all()
        persistent.keep(drawn, persistent(**drawn).outcome)
    assert resumed[0] == 0 and resumed[-1] == 4
    assert persistent.filled.all()


def test_a_state_that_is_not_finite_frees_its_place():
    persistent = full(PersistentElbo(model(), pool_size=20))
    drawn = persistent.draw(images(8), *generators())
    outcome = torch.ones(8, CHANNELS, 32, 32, dtype=torch.bfloat16)
    outcome[0, 1, 5, 5], outcome[6, 0, 0, 0] = torch.nan, torch.inf
    persistent.keep(drawn, outcome)
    assert set((~persistent.filled).nonzero().flatten().tolist()) == set(drawn["place"][[0, 6]].tolist())


def test_shares_of_a_batch_give_what_the_whole_gives():
    persistent = full(PersistentElbo(model(), pool_size=20))
    persistent.pool.states.div_(16)
    drawn = persistent.draw(images(8), *generators())
    whole = persistent(**drawn)
    shares = [
        persistent(**{key: value if isinstance(value, int) else value[part] for key, value in drawn.items()})
        for part in (slice(0, 3), slice(3, 8))
    ]
    for name, value in whole._asdict().items():
        torch.testing.assert_close(torch.cat([getattr(share, name) for share in shares]), value)


def test_the_seeds_alone_decide_a_run_and_each_matters():
    persistent = full(PersistentElbo(model(1, 9), pool_size=20))
    x, (here, host) = images(8), generators()
    drawn = persistent.draw(x, here, host)
    again = persistent.draw(x, *generators())
    assert all(torch.equal(torch.as_tensor(drawn[key]), torch.as_tensor(again[key])) for key in drawn)
    other = persistent.draw(x, generators(1)[0], generators()[1])
    assert not torch.equal(other["place"], drawn["place"]) and not torch.equal(other["noise"], drawn["noise"])
    assert other["steps"] == drawn["steps"]


def test_a_run_goes_on_from_its_saved_state_as_if_never_stopped():
    straight = PersistentElbo(model(), pool_size=16)
    trained(straight, range(4))
    saved = save({key: value.contiguous() for key, value in straight.state_dict().items()})  # bytes of safetensors
    resumed = PersistentElbo(model(), pool_size=16)
    resumed.load_state_dict(load(saved))
    assert resumed.pool.states.dtype == torch.bfloat16 and resumed.images.dtype == torch.bool
    expected = trained(straight, range(4, 8))
    assert torch.equal(torch.stack(trained(resumed, range(4, 8))), torch.stack(expected))
    for (name, ours), theirs in zip(resumed.state_dict().items(), straight.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_cells_with_a_genome_are_trained_like_others():
    torch.manual_seed(0)
    decoder = RegrowingDecoder(channels=5, hidden=4, min_steps=1, max_steps=3, latent_size=2)
    torch.nn.init.normal_(decoder.update.layers[-1].weight, std=0.1)
    persistent = PersistentElbo(VAE(Encoder(2, width=2), decoder), pool_size=16)
    trained(persistent, range(6))
    assert persistent.pool.states.shape == (16, 5, 32, 32)
    genomes = persistent.pool.states[persistent.filled][:, 3:].flatten(2).float()  # (N, 2, 1024)
    same = (genomes - genomes.median(dim=2, keepdim=True).values).abs() < 0.02
    assert (same | (genomes == 0)).all()
    assert same.float().mean() > 0.8
    ages = 32 * persistent.pool.states[persistent.filled][:, 1].float()  # (N, 32, 32) steps
    assert torch.equal(ages, ages.round()) and ages.max() > 3, "bfloat16 is exact for ages"


@pytest.fixture
def planting():
    """An objective that plants genomes, with a pool of grown states that each have an image."""
    torch.manual_seed(0)
    decoder = RegrowingDecoder(channels=5, hidden=4, min_steps=2, max_steps=3, latent_size=2)
    torch.nn.init.normal_(decoder.update.layers[-1].weight, std=0.1)
    persistent = PersistentElbo(VAE(Encoder(2, width=2), decoder), pool_size=16, planted=True)
    with torch.no_grad():
        grown = decoder.run(decoder.seed(torch.randn(16, 2)), 40)
    persistent.pool.commit(torch.arange(16), grown)
    persistent.images.copy_(images(16, seed=7).bool())
    persistent.filled.fill_(True)
    return persistent


def test_a_planted_genome_is_that_of_the_image_wanted_in_the_hole(planting):
    x = images(8)
    drawn = planting.draw(x, *generators())
    assert drawn["planted"].tolist() == [False] * 6 + [True] * 2
    old = planting.images[drawn["place"]].float()
    hole = (drawn["start"] == 0).all(dim=1, keepdim=True)  # (B, 1, 32, 32)
    assert hole.flatten(1).sum(dim=1).tolist() == [0] * 4 + [HOLE_SIZE**2] * 4, "all that are resumed are wounded"
    assert torch.equal(drawn["x"], torch.cat([x[:4], old[4:6], x[6:]]))
    assert torch.equal(drawn["wanted"][:6], drawn["x"][:6])
    assert torch.equal(drawn["wanted"][6:], torch.where(hole[6:, :, 2:-2, 2:-2], x[6:], old[6:]))

    terms = planting(**drawn)
    posterior = planting.model.encode(drawn["x"])
    z = posterior.mean + posterior.stddev * drawn["noise"]
    start = drawn["start"].float()
    start[6:] = cells.plant(start[6:], z[6:])
    *_, before, last = states_of(planting.model.decoder, start[4:], 3)
    likelihood = [bernoulli_log_likelihood(crop(state[:, :1]), drawn["wanted"][4:]) for state in (before, last)]
    torch.testing.assert_close(terms.log_likelihood[4:], torch.stack(likelihood).mean(dim=0))
    genome = last[2:, -2:][~hole[6:].expand(-1, 2, -1, -1)].view(2, 2, -1)
    assert torch.equal(genome, z[6:, :, None].expand_as(genome)) and not torch.equal(z[6:], start[4:6, -2:, 0, 0])


def states_of(decoder, state, steps):
    """The states after 1 to `steps` steps."""
    for _ in range(steps):
        state = decoder.step(state)
        yield state


def test_planted_samples_teach_the_cells_alone_and_are_not_put_back(planting):
    drawn = planting.draw(images(8), *generators())
    assert drawn["kept"].tolist() == [True] + [False] * 3 + [True, True, False, False]
    terms = planting(**drawn)
    assert (terms.kl[6:] == 0).all() and not terms.fresh[6:].any()
    loss = (terms.kl - terms.log_likelihood)[6:].sum()
    gradients = torch.autograd.grad(loss, list(planting.model.parameters()))
    encoder = len(list(planting.model.encoder.parameters()))
    assert all((g == 0).all() for g in gradients[:encoder]) and all(g.abs().sum() > 0 for g in gradients[encoder:])
    before = copy.deepcopy(planting)
    planting.keep(drawn, terms.outcome)
    for place in drawn["place"][6:]:
        assert torch.equal(planting.pool.states[place], before.pool.states[place])
        assert torch.equal(planting.images[place], before.images[place])


def test_with_an_empty_pool_nothing_can_be_planted(planting):
    planting.filled.fill_(False)
    x = images(8)
    drawn = planting.draw(x, *generators())
    assert not drawn["planted"].any() and torch.equal(drawn["wanted"], x) and torch.equal(drawn["x"], x)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="only cells with a genome can get another's"):
        PersistentElbo(model(), planted=True)
    with pytest.raises(ValueError, match="planted genomes are for a RegrowingDecoder, not for a ConvDecoder"):
        objective(VAE(Encoder(4, width=2), ConvDecoder(4, width=2)), planted=True)
    with pytest.raises(ValueError, match="only a PersistentDecoder or a RegrowingDecoder .* not a ConvDecoder"):
        PersistentElbo(VAE(Encoder(4, width=2), ConvDecoder(4, width=2)))
    with pytest.raises(ValueError, match="a pool of 4 states cannot give 6"):
        PersistentElbo(model(), pool_size=4).draw(images(6), *generators())


def test_what_exceeds_the_largest_value_of_a_channel_is_penalized_and_pulled_back():
    def penalized(steps):
        persistent = full(PersistentElbo(model(steps, steps), pool_size=8))
        drawn = persistent.draw(images(8), *generators())
        drawn["start"][:] = LARGEST
        drawn["start"][:, 1] = -(LARGEST + 6.0)  # one of three channels is 6 too large
        return persistent, drawn["resumed"], persistent(**drawn)

    _, resumed, terms = penalized(0)
    assert terms.penalty[resumed].tolist() == pytest.approx([PENALTY * 2.0] * 4)
    assert not terms.penalty[terms.fresh].any()
    persistent, _, terms = penalized(1)
    terms.penalty.sum().backward()
    assert all(p.grad.any() for p in persistent.model.decoder.parameters())


def test_the_likelihood_is_the_mean_over_the_range_of_steps():
    persistent, x = PersistentElbo(model(2, 4), pool_size=8), images(4)
    drawn = persistent.draw(x, *generators())
    posterior = persistent.model.encode(x)
    states = [persistent.model.decoder.seed(posterior.mean + posterior.stddev * drawn["noise"])]
    for _ in range(4):
        states.append(persistent.model.decoder.step(states[-1]))
    each = [bernoulli_log_likelihood(image(state), x) for state in states]
    for steps in (2, 3, 4):
        terms = persistent(**drawn | {"steps": steps})
        torch.testing.assert_close(terms.log_likelihood, torch.stack(each[2:]).mean(dim=0))
        torch.testing.assert_close(terms.outcome, states[steps].detach().bfloat16())


# ------------------------------------------------------------------------------------------------------- lessons


def taught(lessons=((8, 2), (16, 1)), decoder=(4, 8)) -> CoarseToFine:
    return objective(model(*decoder), lessons)


def test_lessons_come_in_their_order_and_then_the_pool():
    drawn = [taught().draw(images(4), *generators(), update) for update in range(4)]
    assert [each.get("side") for each in drawn] == [8, 8, 16, None]
    assert "start" in drawn[3] and "start" not in drawn[2]


@pytest.mark.parametrize(("side", "steps"), [(4, (1,)), (8, (1, 2)), (16, (2, 3, 4)), (32, (4, 5, 6, 7, 8))])
def test_a_lesson_is_the_likelihood_of_the_coarse_image_on_a_small_grid(side, steps):
    coarse, x = taught(((side, 1),)), images(3)
    drawn = coarse.draw(x, *generators())
    terms = coarse(**drawn)
    posterior = coarse.model.encode(x)
    z = posterior.mean + posterior.stddev * drawn["noise"]
    states = [cells.seed(z, side)]
    for _ in range(max(steps)):
        states.append(coarse.model.decoder.step(states[-1]))
    whole = torch.zeros(3, 1, 32, 32)
    whole[..., 2:-2, 2:-2] = x
    block = 32 // side
    target = whole.unfold(2, block, block).unfold(3, block, block).mean(dim=(-2, -1))
    likelihoods = [
        -torch.nn.functional.binary_cross_entropy_with_logits(states[step][:, :1], target, reduction="none").sum(
            (1, 2, 3)
        )
        for step in steps
    ]
    torch.testing.assert_close(terms.log_likelihood, block**2 * torch.stack(likelihoods).mean(dim=0))
    torch.testing.assert_close(terms.kl, coarse.persistent(**coarse.persistent.draw(x, *generators())).kl)
    assert terms.fresh.all() and terms.outcome is None


def test_a_lesson_teaches_the_cells_alone_and_leaves_no_weight_without_a_gradient():
    coarse = taught()
    terms = coarse(**coarse.draw(images(4), *generators(), 0))
    (terms.kl - terms.log_likelihood).mean().backward()
    assert all((p.grad == 0).all() for p in coarse.model.encoder.parameters())
    assert all(p.grad.any() for p in coarse.model.decoder.parameters())


@pytest.mark.parametrize(("side", "size"), [(8, 3), (16, 7), (32, 14)])
def test_in_a_lesson_wounded_cells_get_the_genome_of_the_image_wanted(planting, side, size):
    lesson, x, host = CoarseToFine(planting, ((side, 1),)), images(8), generators()[1]
    drawn = lesson.draw(x, generators()[0], host)
    hole, old = drawn["hole"], drawn["old"]
    assert hole.flatten(1).sum(dim=1).tolist() == [0] * 4 + [size**2] * 4
    assert torch.equal(old, torch.cat([x[:6], x[5:7]])), "for the last two it is their neighbor's image"
    assert torch.equal(drawn["old_noise"][:6], drawn["noise"][:6])
    assert not torch.equal(drawn["old_noise"][6:], drawn["noise"][6:])

    terms = lesson(**drawn)
    assert terms.fresh.tolist() == [True] * 4 + [False] * 4 and (terms.kl[4:] == 0).all()
    decoder, posterior = planting.model.decoder, planting.model.encode(x)
    z = posterior.mean + posterior.stddev * drawn["noise"]
    before = planting.model.encode(old)
    z_old = before.mean + before.stddev * drawn["old_noise"]
    with torch.no_grad():
        mature = decoder.run(decoder.seed(z_old, side), side)
    assert torch.allclose(decoder.step(mature), mature, atol=1e-5), "it is mature"
    hurt = cells.plant(torch.where(hole, 0, mature), z)
    coarse = [torch.nn.functional.avg_pool2d(torch.nn.functional.pad(i, [2] * 4), 32 // side) for i in (x, old)]
    wanted = torch.where(hole, *coarse)
    first, last = max(1, 2 * side // 32), max(1, 3 * side // 32)
    found = [
        bernoulli_log_likelihood(state[4:, :1], wanted[4:])
        for count, state in enumerate(states_of(decoder, hurt, last), start=1)
        if count >= first
    ]
    torch.testing.assert_close(terms.log_likelihood[4:], (32 // side) ** 2 * torch.stack(found).mean(dim=0))


def test_lessons_with_planted_genomes_give_the_same_in_shares(planting):
    lesson = CoarseToFine(planting, ((8, 1),))
    drawn = lesson.draw(images(8), *generators())
    whole = lesson(**drawn)
    shares = [
        lesson(**{key: value if isinstance(value, int) else value[part] for key, value in drawn.items()})
        for part in (slice(0, 3), slice(3, 8))
    ]
    for name in ("log_likelihood", "kl", "penalty", "fresh"):
        torch.testing.assert_close(torch.cat([getattr(s, name) for s in shares]), getattr(whole, name))
    (whole.kl - whole.log_likelihood).mean().backward()
    assert all((p.grad == 0).all() for p in planting.model.encoder.parameters())
    assert all(p.grad.any() for p in planting.model.decoder.parameters())


def test_after_the_lessons_everything_is_as_without_them():
    coarse, persistent = taught(), objective(model(4, 8))
    drawn = coarse.draw(images(8), *generators(), 3)
    terms, expected = coarse(**drawn), persistent(**persistent.draw(images(8), *generators()))
    torch.testing.assert_close(terms.log_likelihood, expected.log_likelihood)
    coarse.keep(drawn, terms.outcome)
    assert coarse.persistent.filled.sum() == drawn["kept"].sum() > 0


def test_an_eighth_of_the_fresh_states_enters_the_pool():
    kept = PersistentElbo(model(), pool_size=40).draw(images(32), *generators())["kept"]
    assert kept.tolist() == [True] * 2 + [False] * 14 + [True] * 16


@pytest.mark.parametrize("lesson", [(5, 1), (0, 1), (1, 1), (64, 1), (8, 0)])
def test_impossible_lessons_are_refused(lesson):
    with pytest.raises(ValueError, match=rf"side of 2, 4, 8, 16 or 32 .* not \({lesson[0]}, {lesson[1]}\)"):
        taught((lesson,))


def test_lessons_are_for_regrowing_decoders():
    with pytest.raises(ValueError, match="not for a ConvDecoder"):
        objective(VAE(Encoder(4, width=2), ConvDecoder(4, width=2)), ((8, 1),))
