"""The growing automaton: what a cell sees, when it fires, when it lives, and the pool."""

import json

import pytest
import torch
import train_toadstool
from hypothesis import given
from hypothesis import strategies as st

from vnca import growing, pretrained
from vnca.growing import GrowingAutomaton, Pool, living, perceive, seed_with, single_cell, toadstool


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(seed: int = 0, fire_rate: float = 0.5, channels: int = 8) -> GrowingAutomaton:
    """An automaton that does something: its zero-started layer gets random weights."""
    automaton = GrowingAutomaton(channels=channels, hidden=16, fire_rate=fire_rate)
    for parameter in automaton.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator(seed))
    return automaton


def opaque(seed: int, size: int = 11, channels: int = 8) -> torch.Tensor:
    """A random state in which every cell lives and keeps living."""
    state = torch.randn(1, channels, size, size, generator=generator(seed))
    state[:, 3] = 1e3
    return state


def test_perception_is_the_value_and_the_two_sobel_sums():
    state = torch.randn(2, 5, 6, 7, generator=generator(0))
    seen = perceive(state).unflatten(1, (5, 3))
    torch.testing.assert_close(seen[:, :, 0], state)
    row, column = 3, 4
    block = state[:, :, row - 1 : row + 2, column - 1 : column + 2]
    right, left = block[..., 2], block[..., 0]
    below, above = block[..., 2, :], block[..., 0, :]
    weights = torch.tensor([1.0, 2.0, 1.0]) / 8
    torch.testing.assert_close(seen[:, :, 1, row, column], ((right - left) * weights).sum(-1))
    torch.testing.assert_close(seen[:, :, 2, row, column], ((below - above) * weights).sum(-1))


def test_a_ramp_of_one_per_cell_has_gradient_one():
    ramp = torch.arange(6.0).expand(1, 1, 6, 6)
    inside = perceive(ramp)[0, :, 1:-1, 1:-1]
    torch.testing.assert_close(inside[1], torch.ones(4, 4))
    torch.testing.assert_close(inside[2], torch.zeros(4, 4))


def test_the_article_s_size_has_8320_parameters():
    assert sum(parameter.numel() for parameter in GrowingAutomaton(hidden=128).parameters()) == 8320


def test_an_untrained_automaton_leaves_the_seed_as_it_is():
    state = single_cell(batch=2, channels=16, size=9)
    automaton = GrowingAutomaton(channels=16, hidden=8)
    torch.testing.assert_close(automaton(state), state, rtol=0, atol=0)


def test_the_seed_is_one_cell():
    state = single_cell(batch=3, channels=6, size=9)
    assert state.shape == (3, 6, 9, 9)
    assert (state != 0).any(dim=1).sum().item() == 3
    assert state[:, :, 4, 4].tolist() == [[0, 0, 0, 1, 1, 1]] * 3


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_the_share_of_firing_cells_is_the_fire_rate(rate):
    before = opaque(seed=1, size=100)
    after = shaken(fire_rate=rate)(before, generator=generator(2))
    share = (after != before).any(dim=1).double().mean().item()
    # 10,000 cells: five standard deviations are at most 0.025.
    assert abs(share - rate) < 5 * (rate * (1 - rate) / 10_000) ** 0.5


def test_a_cell_fires_with_all_its_channels_or_not_at_all():
    before = opaque(seed=1)
    automaton = shaken()
    change = automaton(before, generator=generator(2)) - before
    fired = (change != 0).any(dim=1, keepdim=True)
    torch.testing.assert_close(change, (before + automaton.update(before) - before) * fired)


def test_the_generator_decides_which_cells_fire():
    state, automaton = opaque(seed=3), shaken()
    first = automaton(state, generator=generator(7))
    torch.testing.assert_close(automaton(state, generator=generator(7)), first, rtol=0, atol=0)
    assert not torch.equal(automaton(state, generator=generator(8)), first)


@given(row=st.integers(0, 10), column=st.integers(0, 10), steps=st.integers(1, 4), channel=st.integers(0, 7))
def test_after_s_steps_a_change_has_reached_at_most_s_cells(row, column, steps, channel):
    automaton, state = shaken(), opaque(seed=4)
    other = state.clone()
    other[0, channel, row, column] += 1
    for step in range(steps):
        state, other = automaton(state, generator(step)), automaton(other, generator(step))
    rows, columns = (state != other).any(dim=1)[0].nonzero(as_tuple=True)
    assert len(rows) > 0
    assert max((rows - row).abs().max(), (columns - column).abs().max()) <= steps


def test_a_cell_without_an_opaque_neighbor_is_emptied():
    automaton = GrowingAutomaton(channels=5, hidden=4, fire_rate=1)
    state = torch.zeros(1, 5, 9, 9)
    state[:, 3, 2, 2] = 0.11  # alive
    state[:, 3, 6, 6] = 0.09  # too faint
    state[:, 4, 3, 3] = 1.0  # hidden only, but beside a living cell
    state[:, 4, 2, 4] = 1.0  # hidden only, two columns away from it
    after = automaton(state)
    expected = state.clone()
    expected[:, 3, 6, 6] = 0
    expected[:, 4, 2, 4] = 0
    torch.testing.assert_close(after, expected, rtol=0, atol=0)


def test_a_cell_must_live_after_the_step_too():
    automaton = GrowingAutomaton(channels=5, hidden=4, fire_rate=1)
    with torch.no_grad():
        automaton.think.weight.zero_()
        automaton.think.bias.fill_(1.0)
        automaton.change.weight[3] = -0.25  # every cell loses an opacity of 1: 4 hidden units, -0.25 each
    assert living(single_cell(1, 5, 7)).sum() == 9
    assert (automaton(single_cell(1, 5, 7)) == 0).all()


def test_growth_reaches_one_cell_farther_with_each_step():
    automaton = shaken(fire_rate=1)
    with torch.no_grad():
        automaton.change.weight[3] = automaton.change.weight[3].abs()  # opacity only grows
    state = single_cell(batch=1, channels=8, size=15)
    for step in range(1, 6):
        state = automaton(state)
        rows, columns = (state != 0).any(dim=1)[0].nonzero(as_tuple=True)
        assert max((rows - 7).abs().max(), (columns - 7).abs().max()) == step


def test_a_seed_carries_its_number_in_the_first_hidden_channel():
    state = seed_with(torch.tensor([1.0, -0.25]), channels=6, size=9)
    assert torch.equal(state[:1], single_cell(batch=1, channels=6, size=9))
    assert state[1, :, 4, 4].tolist() == [0, 0, 0, 1, -0.25, 1]
    assert (state[1] != 0).any(dim=0).sum() == 1


@given(count=st.integers(1, 20), data=st.data())
def test_the_pool_draws_each_index_once_and_keeps_states_at_their_index(count, data):
    size = data.draw(st.integers(1, count))
    states = torch.arange(count, dtype=torch.float32).view(count, 1, 1, 1)
    pool = Pool(states)
    index, drawn = pool.sample(size, generator(size))
    assert len(set(index.tolist())) == size
    assert drawn.flatten().tolist() == index.tolist()
    pool.commit(index, drawn + 100)
    expected = [float(i + 100 * (i in index.tolist())) for i in range(count)]
    assert pool.states.flatten().tolist() == expected
    assert states.flatten().tolist() == list(range(count))


def test_every_entry_of_the_pool_is_drawn_equally_often():
    pool, source = Pool(torch.zeros(8, 1, 1, 1)), generator(0)
    counts = torch.bincount(torch.cat([pool.sample(4, source)[0] for _ in range(2000)]), minlength=8)
    # Each is drawn 1000 times in expectation, with a standard deviation of 22.
    assert (counts - 1000).abs().max() < 112


def test_the_pool_holds_no_graph_and_hands_out_copies():
    pool = Pool(torch.zeros(4, 1, 2, 2, requires_grad=True))
    assert not pool.states.requires_grad
    index, drawn = pool.sample(2)
    drawn += 1
    assert (pool.states == 0).all()
    pool.commit(index, drawn.requires_grad_())
    assert not pool.states.requires_grad


def test_the_pool_keeps_its_precision_and_is_saved_with_what_has_it():
    pool = Pool(torch.zeros(3, 1, 2, 2, dtype=torch.bfloat16))
    pool.commit(torch.tensor([1]), torch.ones(1, 1, 2, 2))
    assert pool.states.dtype == torch.bfloat16
    other = Pool(torch.zeros(3, 1, 2, 2))
    other.load_state_dict(pool.state_dict())
    assert other.states[:, 0, 0, 0].tolist() == [0, 1, 0]


def test_the_target_is_premultiplied_and_keeps_clear_of_the_border():
    target = toadstool(size=16, padding=3)
    assert target.shape == (4, 22, 22)
    assert target.min() == 0 and target.max() == 1
    assert (target[:3] <= target[3:] + 1e-6).all()
    assert target[:, 3:-3, 3:-3].count_nonzero() == target.count_nonzero()


def test_at_minus_one_the_target_is_upside_down_and_blue():
    swapped = toadstool()[[2, 1, 0, 3]].rot90(2, dims=(1, 2))
    torch.testing.assert_close(toadstool(z=-1), swapped, rtol=0, atol=1e-5)


@given(z=st.floats(-1, 1), by=st.floats(0, 0.02))
def test_the_targets_turn_steadily_and_lose_no_color(z, by):
    one, other = toadstool(z=z), toadstool(z=max(-1.0, z - by))
    assert (one - other).square().mean() < 0.01, "no jump: a step of 0.02 turns the picture by less than two degrees"
    upright = toadstool()
    for channels in ([0, 2], [1], [3]):
        torch.testing.assert_close(one[channels].sum(), upright[channels].sum(), rtol=0.01, atol=0)


def test_a_quarter_turn_is_clockwise():
    lying = toadstool(z=0)
    torch.testing.assert_close(lying[3], toadstool()[3].rot90(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(lying[0], lying[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: perceive(torch.zeros(3, 4, 5)), r"\(3, 4, 5\)"),
        (lambda: seed_with(torch.ones(2, 1)), r"\(B,\), not \(2, 1\)"),
        (lambda: seed_with(torch.ones(2), channels=4), "at least 5 channels, not 4"),
        (lambda: toadstool(z=1.5), "from -1 to 1, not 1.5"),
        (lambda: living(torch.zeros(4, 5)), r"\(4, 5\)"),
        (lambda: single_cell(1, 3, 5), "at least 4 channels"),
        (lambda: GrowingAutomaton(channels=3), "channels >= 4"),
        (lambda: GrowingAutomaton(fire_rate=0), "fire_rate"),
        (lambda: Pool(torch.zeros(4, 3)), r"\(4, 3\)"),
        (lambda: Pool(torch.zeros(2, 1, 1, 1)).sample(3), "pool of 2"),
        (lambda: Pool(torch.zeros(3, 1, 1, 1)).commit(torch.tensor([0]), torch.zeros(2, 1, 1, 1)), "2 states"),
    ],
)
def test_errors_say_what_was_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("name", train_toadstool.RECIPES)
def test_the_shipped_automata_do_what_their_configs_say(name):
    automaton = growing.load(name)
    assert not automaton.training
    assert name not in pretrained.available(), "it is no VAE"
    recipe = train_toadstool.RECIPES[name]
    config = pretrained.read_config(growing.FOLDER / name)
    assert config["training"] == {
        training: {"updates": updates, "rate": rate} for training, (updates, rate) in recipe.trainings.items()
    }
    recorded = config["run"]["errors"]
    torch.manual_seed(2)
    numbers = torch.tensor(recipe.numbers)
    z = numbers[torch.arange(16) * len(numbers) // 16]
    with torch.no_grad():
        young = train_toadstool.grown(automaton, seed_with(z), 60)
        healed = train_toadstool.grown(automaton, train_toadstool.cut(young, recipe.hole), 60)
    wanted = train_toadstool.pictures(z)
    assert train_toadstool.error(young, wanted).median() < 1.5 * recorded["after 60 steps"] < 0.01
    assert train_toadstool.error(healed, wanted).median() < 1.5 * recorded["60 steps after a hole"] < 0.015


def test_the_rule_that_learned_many_numbers_knows_those_between_and_the_other_one_does_not():
    """What chapter 2 says of both."""
    learned = torch.tensor(train_toadstool.RECIPES["turned-toadstools"].numbers)
    between = (learned[1:] + learned[:-1]) / 2
    wanted, both = train_toadstool.pictures(between), train_toadstool.pictures(torch.tensor([1.0, -1.0]))
    torch.manual_seed(3)
    with torch.no_grad():
        two, turned = (
            train_toadstool.grown(growing.load(name), seed_with(between), 60)
            for name in ("two-toadstools", "turned-toadstools")
        )
    assert train_toadstool.error(turned, wanted).max() < 0.03
    assert train_toadstool.error(two, wanted).median() > 5 * train_toadstool.error(turned, wanted).median()
    to_either = torch.stack([train_toadstool.error(two, one) for one in both]).min(dim=0).values
    assert (to_either < 0.01).float().mean() > 0.5, "from most seeds one of its two pictures grows"


def test_an_automaton_that_cannot_be_loaded_says_why(tmp_path):
    with pytest.raises(ValueError, match="no automaton named 'oak': there are toadstool, turned-toadstools, two-"):
        growing.load("oak")
    for name in ("toadstool", ""):
        with pytest.raises(ValueError, match="there are none yet"):
            growing.load(name, tmp_path)
    (tmp_path / "oak").mkdir()
    (tmp_path / "oak" / "config.json").write_text('{"model": {"channels": 16, "hidden": 8, "fire_rate": 0.5}}')
    (tmp_path / "oak" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="the weights in .*oak cannot be read"):
        growing.load("oak", tmp_path)


@pytest.mark.parametrize("name", ["toadstool", "turned-toadstools"])
def test_an_automaton_is_trained_from_one_seed(name, tmp_path, monkeypatch, capsys):
    recipe = train_toadstool.RECIPES[name]
    short = recipe._replace(trainings={name: (2, 0.01) for name in recipe.trainings})
    monkeypatch.setitem(train_toadstool.RECIPES, name, short)
    monkeypatch.setattr(train_toadstool, "FOLDER", tmp_path)
    monkeypatch.setattr(train_toadstool, "GRIDS", 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # the tests keep theirs
    weights = []
    for _ in range(2):
        assert train_toadstool.main([name]) == 0
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert growing.load(name, tmp_path).change.weight.abs().sum() > 0
    run = json.loads((tmp_path / name / "config.json").read_text())["run"]
    assert run["updates"] == 6 and run["hardware"]
    assert len(run["errors"]) == (4 if len(recipe.numbers) < 3 else 5)
    assert "error after 300 steps" in capsys.readouterr().out


def test_each_place_of_the_pool_begins_anew_with_its_number(monkeypatch):
    wanted = {}

    def descend(automaton, adam, state, targets):
        for seed, target in zip(state, targets, strict=True):
            wanted.setdefault(seed[growing.NUMBER].sum().item(), []).append(target)
        adam.step()
        return state

    monkeypatch.setattr(train_toadstool, "descend", descend)
    recipe = train_toadstool.RECIPES["two-toadstools"]
    trainings = {"from the seed": (20, 0.01), "with a pool": (20, 0.01)}
    train_toadstool.train(GrowingAutomaton(), recipe._replace(trainings=trainings))
    assert set(wanted) == {1.0, -1.0}
    for number, targets in wanted.items():
        assert all(torch.equal(target, toadstool(z=number)) for target in targets)
