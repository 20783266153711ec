"""What a grid of cells promises: exact copies, locality, equivariance, and no change before training."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vnca import cells

KINDS = ["residual", "simple"]


def update_of(kind, channels, hidden) -> torch.nn.Module:
    return cells.Update(channels, hidden, 2) if kind == "residual" else cells.SimpleUpdate(channels, hidden)


def trained_update(kind="residual", channels=3, hidden=5) -> torch.nn.Module:
    """An update whose last layer is no longer zero, in float64."""
    torch.manual_seed(0)
    update = update_of(kind, channels, hidden).double()
    for parameter in update.layers[-1].parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return update


def advance(update, state, steps):
    for _ in range(steps):
        state = state + update(state)
    return state


def test_seed_is_a_grid_of_copies():
    z = torch.randn(2, 5)
    state = cells.seed(z, 3)
    assert state.shape == (2, 5, 3, 3)
    assert all(torch.equal(state[:, :, i, j], z) for i in range(3) for j in range(3))


@settings(deadline=None, max_examples=20)
@given(height=st.integers(1, 6), width=st.integers(1, 6), channels=st.integers(1, 4))
def test_doubling_makes_exact_copies(height, width, channels):
    state = torch.randn(2, channels, height, width)
    doubled = cells.double(state)
    assert doubled.shape == (2, channels, 2 * height, 2 * width)
    for row in range(2):
        for col in range(2):
            assert torch.equal(doubled[:, :, row::2, col::2], state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_update_changes_no_cell(kind):
    state = torch.randn(2, 4, 8, 8)
    assert torch.count_nonzero(update_of(kind, 4, 8)(state)) == 0


def test_the_simple_update_is_two_layers_and_the_last_has_no_bias():
    names = [(name, tuple(p.shape)) for name, p in cells.SimpleUpdate(3, 5).named_parameters()]
    assert names == [("layers.0.weight", (5, 3, 3, 3)), ("layers.0.bias", (5,)), ("layers.2.weight", (3, 5, 1, 1))]
    state = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    update = trained_update("simple")
    look, _, change = update.layers
    hidden = torch.nn.functional.conv2d(state, look.weight, look.bias, padding=1)
    expected = torch.einsum("ch,bhij->bcij", change.weight[:, :, 0, 0], torch.nn.functional.elu(hidden))
    torch.testing.assert_close(update(state), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cell_reaches_exactly_as_far_as_steps(steps, kind):
    update = trained_update(kind)
    state = torch.randn(1, 3, 11, 11, dtype=torch.float64)
    touched = state.clone()
    touched[:, :, 5, 5] += 1
    change = (advance(update, touched, steps) - advance(update, state, steps)).abs().amax(dim=(0, 1)) > 0
    rows, cols = torch.meshgrid(torch.arange(11), torch.arange(11), indexing="ij")
    distance = torch.maximum((rows - 5).abs(), (cols - 5).abs())
    assert torch.equal(change, distance <= steps)


@pytest.mark.parametrize("kind", KINDS)
def test_the_update_is_the_same_everywhere(kind):
    update, steps = trained_update(kind), 2
    state = torch.randn(1, 3, 14, 14, dtype=torch.float64)
    moved = torch.roll(state, (3, 2), dims=(2, 3))
    after, after_moved = advance(update, state, steps), advance(update, moved, steps)
    inner = slice(6, 12)  # further than `steps` cells from every border, before and after the move
    expected = torch.roll(after, (3, 2), dims=(2, 3))[:, :, inner, inner]
    torch.testing.assert_close(after_moved[:, :, inner, inner], expected)
    assert not torch.allclose(after_moved[:, :, :2], torch.roll(after, (3, 2), dims=(2, 3))[:, :, :2])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_update_equal_finite_differences(kind):
    update = trained_update(kind, channels=2, hidden=3)
    state = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: advance(update, s, 2), (state,))


@settings(deadline=None, max_examples=30)
@given(row=st.integers(0, 5), col=st.integers(0, 7), size=st.integers(0, 9))
def test_damage_zeroes_its_square_and_nothing_else(row, col, size):
    state = torch.ones(2, 3, 6, 8)
    damaged = cells.damage(state, row, col, size)
    expected = torch.ones(6, 8)
    expected[row : row + size, col : col + size] = 0
    assert torch.equal(damaged, expected.expand_as(state))
    assert torch.equal(state, torch.ones_like(state)), "the state itself is left alone"


def maturing(channels=6, hidden=4, genome=2):
    """An update of double precision whose last layer is awake."""
    torch.manual_seed(0)
    update = cells.MaturingUpdate(channels, hidden, genome).double()
    torch.nn.init.normal_(update.layers[-1].weight, std=0.3)
    return update


def test_a_genome_stays_and_closes_a_hole_one_cell_a_step():
    update = maturing()
    z = torch.randn(3, 2, dtype=torch.float64)
    whole = torch.cat([torch.randn(3, 4, 12, 12, dtype=torch.float64), cells.seed(z, 12)], dim=1)
    whole[:, 1] = 0  # newborn
    assert torch.equal(advance(update, whole, 4)[:, 4:], whole[:, 4:])
    hurt = cells.damage(whole, 0, 4, 6)  # at the upper border: nobody lives beyond it
    for steps, lost in enumerate([36, 20, 8, 0, 0]):
        state = advance(update, hurt, steps)
        assert (state[:, 4:] == 0).all(dim=1).flatten(1).sum(dim=1).tolist() == [lost] * 3
    torch.testing.assert_close(state[:, 4:], whole[:, 4:])


def test_cells_age_and_change_the_less_the_older_they_are():
    update = maturing()
    state = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    state[:, 1] = 0
    for step in range(1, 10):
        before, expected = state, update.layers(state) * (1 - state[:, 1:2])
        state = state + update(state)
        torch.testing.assert_close(state[:, 1], torch.full_like(state[:, 1], min(step / 8, 1)))
        torch.testing.assert_close(state[:, [0, 2, 3]] - before[:, [0, 2, 3]], expected)
    assert (expected == 0).all() and torch.equal(state, before), "after 8 steps, the side of the grid, nothing moves"


def test_only_the_cells_of_a_hole_are_young_and_change():
    update = maturing()
    mature = torch.randn(1, 6, 8, 8, dtype=torch.float64)
    mature[:, 1] = 1
    hurt = cells.damage(mature, 2, 3, 3)
    hole = (hurt != mature).any(dim=1)
    later = advance(update, hurt, 20)
    assert torch.equal(later[:, :, ~hole[0]], mature[:, :, ~hole[0]])
    assert (later[:, 1] == 1).all() and (later[:, :, hole[0]] != 0).all()


def test_a_longer_side_takes_longer_to_mature():
    state = torch.zeros(1, 6, 4, 10, dtype=torch.float64)
    torch.testing.assert_close(maturing()(state)[:, 1], torch.full((1, 4, 10), 0.1, dtype=torch.float64))


def test_a_planted_genome_replaces_that_of_every_cell_that_has_one():
    state, z = torch.rand(2, 5, 4, 4) + 0.1, torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    hurt = cells.damage(state, 1, 1, 2)
    planted = cells.plant(hurt, z)
    assert torch.equal(planted[:, :3], hurt[:, :3])
    assert torch.equal(planted[:, 3:], cells.damage(z[:, :, None, None].expand(2, 2, 4, 4), 1, 1, 2))
    assert torch.equal(hurt, cells.damage(state, 1, 1, 2)), "the state itself stays"


def test_where_two_genomes_meet_a_cell_without_one_takes_their_mean():
    genome = torch.zeros(1, 2, 1, 3)
    genome[0, :, 0, 0] = torch.tensor([1.0, 2.0])
    genome[0, :, 0, 2] = torch.tensor([3.0, -2.0])
    change = cells.inherit(genome)
    assert torch.count_nonzero(change[..., 0]) == torch.count_nonzero(change[..., 2]) == 0
    torch.testing.assert_close(change[0, :, 0, 1], torch.tensor([2.0, 0.0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cells.seed(torch.zeros(3)), r"\(B, D\).*\(3,\)"),
        (lambda: cells.seed(torch.zeros(1, 2), 0), "at least 1 cell, not 0"),
        (lambda: cells.double(torch.zeros(2, 2)), r"\(B, C, H, W\).*\(2, 2\)"),
        (lambda: cells.damage(torch.zeros(1, 1, 4, 4), 4, 0, 1), r"\(4, 0\).*rows go from 0 to 3"),
        (lambda: cells.damage(torch.zeros(1, 1, 4, 4), 0, -1, 1), r"\(0, -1\)"),
        (lambda: cells.damage(torch.zeros(1, 1, 4, 4), 0, 0, -1), "at least 0 cells, not -1"),
        (lambda: cells.Update(0, 4), "not 0, 4 and 4"),
        (lambda: cells.SimpleUpdate(4, 0), "not 4 and 0"),
        (lambda: cells.MaturingUpdate(4, 2, 3), "needs at least 5 channels, with the pixel and its age, not 4"),
        (lambda: cells.MaturingUpdate(4, 0, 2), "not 0 and 2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
