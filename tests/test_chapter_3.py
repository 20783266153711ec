"""Chapter 3 teaches the package's own decoder: the code on the page and the code in `vnca` behave alike."""

import pytest
import torch
from chapters import definitions

from vnca import cells
from vnca.decoders import DoublingDecoder
from vnca.vae import VAE, Encoder

SIZES = [
    {"channels": 6, "hidden": 5, "steps": 2, "residual_blocks": 2},
    {"channels": 4, "hidden": 8, "steps": 1, "residual_blocks": 0},
    {"channels": 3, "hidden": 3, "steps": 3},
]


@pytest.fixture(scope="module")
def chapter():
    return definitions("03-doubling-decoder.ipynb")


def randomize(module: torch.nn.Module) -> None:
    """Random values for every parameter, also for those that start at zero and would hide a difference."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def pair(chapter: dict, sizes: dict) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The chapter's decoder and the package's, with the same random weights."""
    ours, theirs = chapter["DoublingDecoder"](**sizes), DoublingDecoder(**sizes)
    randomize(theirs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("sizes", SIZES)
def test_state_dict_loads_both_ways(chapter, sizes):
    ours, theirs = pair(chapter, sizes)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    randomize(ours)
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("sizes", SIZES)
def test_same_weights_same_growth(chapter, sizes):
    ours, theirs = pair(chapter, sizes)
    z = torch.randn(3, sizes["channels"], generator=torch.Generator().manual_seed(1))
    assert ours.schedule() == theirs.schedule()
    with torch.no_grad():
        # Up to rounding: the package keeps the channels of a cell side by side, which changes the order of sums.
        for state, expected in zip(ours.grow(z), theirs.grow(z), strict=True):
            torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-4)
        logits = ours(z)
        assert logits.std() > 0.01  # not an even picture, in which a wrong order or crop would not show
        torch.testing.assert_close(logits, theirs(z), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", SIZES)
def test_same_seed_same_start(chapter, sizes):
    decoders = []
    for decoder_class in (chapter["DoublingDecoder"], DoublingDecoder):
        torch.manual_seed(0)
        decoders.append(decoder_class(**sizes))
    for parameter, expected in zip(*(decoder.parameters() for decoder in decoders), strict=True):
        assert torch.equal(parameter, expected)


def test_the_papers_size(chapter):
    with torch.device("meta"):
        ours = chapter["DoublingDecoder"]()
    assert sum(parameter.numel() for parameter in ours.parameters()) == 1_182_208
    assert sum(event == "step" for event, _ in ours.schedule()) == 40


def test_update_and_residual(chapter):
    x = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(2))
    for name, arguments in (("Residual", (5,)), ("Update", (5, 7, 3))):
        ours, theirs = chapter[name](*arguments), getattr(cells, name)(*arguments)
        randomize(theirs)
        ours.load_state_dict(theirs.state_dict())
        assert torch.equal(ours(x), theirs(x))


def test_seed_and_double(chapter):
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(3))
    for size in (1, 2, 5):
        assert torch.equal(chapter["seed"](z, size), cells.seed(z, size))
    assert torch.equal(chapter["seed"](z), cells.seed(z))
    state = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(4))
    assert torch.equal(chapter["double"](state), cells.double(state))


def test_the_chapters_decoder_fits_the_packages_vae(chapter):
    model = VAE(Encoder(6, width=2), chapter["DoublingDecoder"](channels=6, hidden=5, steps=1))
    assert model.decode(model.encode(torch.zeros(2, 1, 28, 28)).mean).shape == (2, 1, 28, 28)
