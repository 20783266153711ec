"""What chapter 2 defines is what the package has, and its Game of Life is the Game of Life."""

import json

import pytest
import torch
from chapters import ROOT, definitions, read

from vnca import cells, growing

NOTEBOOK = "02-neural-cellular-automata.ipynb"


@pytest.fixture(scope="module")
def chapter() -> dict:
    return definitions(NOTEBOOK)


def grid(*rows: str) -> torch.Tensor:
    """A grid of the Game of Life drawn with # and . -> (1, 1, H, W)."""
    return torch.tensor([[float(sign == "#") for sign in row] for row in rows])[None, None]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_blinker_has_period_two(chapter):
    flat = grid(".....", ".....", ".###.", ".....", ".....")
    upright = grid(".....", "..#..", "..#..", "..#..", ".....")
    assert torch.equal(chapter["life"](flat), upright)
    assert torch.equal(chapter["life"](upright), flat)


def test_a_block_stays_and_a_lonely_cell_dies(chapter):
    block = grid("....", ".##.", ".##.", "....")
    assert torch.equal(chapter["life"](block), block)
    assert chapter["life"](grid("...", ".#.", "...")).sum() == 0


def test_a_glider_moves_one_cell_down_and_right_in_four_generations(chapter):
    state = grid(".#.....", "..#....", "###....", ".......", ".......", ".......", ".......")
    later = state
    for _ in range(4):
        later = chapter["life"](later)
    assert torch.equal(later, state.roll((1, 1), dims=(2, 3)))


def test_the_life_network_is_the_game_of_life(chapter):
    state = torch.bernoulli(torch.full((8, 1, 20, 20), 0.4), generator=generator())
    network = chapter["life_network"]()
    for _ in range(5):
        expected = chapter["life"](state)
        with torch.no_grad():
            state = network(state)
        assert torch.equal(state, expected)
    assert state.sum() > 0


def test_perception_and_life_signs_agree_with_the_package(chapter):
    state = torch.rand(2, 16, 9, 9, generator=generator()) - 0.85
    torch.testing.assert_close(chapter["perceive"](state), growing.perceive(state), rtol=0, atol=0)
    alive = growing.living(state)
    assert torch.equal(chapter["living"](state), alive)
    assert 0 < alive.sum() < alive.numel()


def test_the_automaton_agrees_with_the_package(chapter):
    theirs, ours = chapter["GrowingAutomaton"](), growing.GrowingAutomaton(channels=16, hidden=96)
    assert theirs.fire_rate == ours.fire_rate
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator())
    theirs.load_state_dict(ours.state_dict())
    first = their_state = our_state = torch.rand(2, 16, 12, 12, generator=generator(1))
    for step in range(5):
        their_state, our_state = theirs(their_state, generator(step)), ours(our_state, generator(step))
    torch.testing.assert_close(their_state, our_state, rtol=0, atol=0)
    assert not torch.equal(our_state, first)


def test_the_chapter_s_automaton_starts_at_zero(chapter):
    state = torch.rand(1, 16, 7, 7, generator=generator())
    assert (chapter["GrowingAutomaton"]().update(state) == 0).all()


def test_the_seed_agrees_with_the_package(chapter):
    assert torch.equal(chapter["single_cell"](3), growing.single_cell(batch=3, channels=16, size=22))
    assert torch.equal(chapter["single_cell"](1, 5, 8), growing.single_cell(1, 5, 8))


def test_a_seed_with_a_number_agrees_with_the_package(chapter):
    z = torch.tensor([1.0, -1.0, 0.25])
    assert torch.equal(chapter["seed_with"](z), growing.seed_with(z))


def test_the_pool_agrees_with_the_package(chapter):
    states = torch.rand(10, 4, 3, 3, generator=generator())
    theirs, ours = chapter["Pool"](states), growing.Pool(states)
    assert len(theirs) == len(ours) == 10
    for seed in range(3):
        (their_index, their_states), (index, drawn) = theirs.sample(4, generator(seed)), ours.sample(4, generator(seed))
        assert torch.equal(their_index, index) and torch.equal(their_states, drawn)
        theirs.commit(index, drawn + 1)
        ours.commit(index, drawn + 1)
    assert torch.equal(theirs.states, ours.states)
    assert not torch.equal(ours.states, states)


def test_small_holes_close_with_a_scar_as_it_says():
    config = json.loads((ROOT / "vnca" / "pretrained" / "automata" / "turned-toadstools" / "config.json").read_text())
    errors = config["run"]["errors"]
    (text,) = (cell.source for cell in read(NOTEBOOK).cells if cell.id == "between-read")
    assert f"The hole is one of {config['hole']} × {config['hole']} cells" in text
    assert errors["after 60 steps"] < errors["60 steps after a hole"] < 2 * errors["after 60 steps"]


def test_the_hole_that_the_chapter_cuts_is_that_of_the_package(chapter):
    state = torch.randn(2, 16, 9, 9, generator=generator())
    kept = state.clone()
    assert torch.equal(chapter["damage"](state, 5, 2, 6), cells.damage(state, 5, 2, 6))
    assert torch.equal(state, kept), "it is a copy that is hurt"
