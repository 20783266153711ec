"""The decoders: the paper's figures, the schedule of growth, and what they refuse."""

import pytest
import torch

from vnca import ConvDecoder, DoublingDecoder, cells


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


def small_decoder(steps=1) -> DoublingDecoder:
    torch.manual_seed(0)
    decoder = DoublingDecoder(channels=4, hidden=6, steps=steps, residual_blocks=1)
    torch.nn.init.normal_(decoder.update.layers[-1].weight, std=0.3)
    return decoder


def test_the_papers_decoder_has_the_papers_parameters():
    decoder = DoublingDecoder()
    assert parameters(decoder) == 1_182_208
    shapes = [tuple(p.shape) for p in decoder.parameters()]
    assert shapes[:2] == [(256, 256, 3, 3), (256,)]
    assert shapes[2:-2] == [(256, 256, 1, 1), (256,)] * 8
    assert shapes[-2:] == [(256, 256, 1, 1), (256,)]


def test_growth_of_the_papers_decoder_is_40_steps_and_4_doublings():
    schedule = DoublingDecoder().schedule()
    events = [event for event, _ in schedule]
    assert (events.count("seed"), events.count("step"), events.count("double")) == (1, 40, 4)
    assert sum(size**2 for event, size in schedule if event == "step") == 10_912


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_grow_follows_its_schedule(steps):
    decoder = small_decoder(steps)
    states = list(decoder.grow(torch.randn(2, 4)))
    schedule = decoder.schedule()
    assert [state.shape for state in states] == [(2, 4, size, size) for _, size in schedule]
    for before, after, (event, _) in zip(states, states[1:], schedule[1:], strict=False):
        expected = cells.double(before) if event == "double" else before + decoder.update(before)
        torch.testing.assert_close(after, expected)


def test_the_image_is_channel_0_of_the_last_grid_without_its_border():
    decoder = small_decoder()
    z = torch.randn(3, 4)
    *_, last = decoder.grow(z)
    assert torch.equal(decoder(z), last[:, :1, 2:30, 2:30])


def test_an_untrained_decoder_paints_the_first_entry_of_the_latent():
    z = torch.randn(2, 4)
    logits = DoublingDecoder(channels=4, hidden=6, steps=2)(z)
    assert torch.equal(logits, z[:, :1, None, None].expand(2, 1, 28, 28))


def test_every_parameter_of_both_decoders_gets_a_gradient():
    for decoder in (small_decoder(), ConvDecoder(latent_size=4, width=2)):
        decoder(torch.randn(2, 4)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())


def test_gradients_equal_finite_differences():
    torch.manual_seed(0)
    decoder = DoublingDecoder(channels=2, hidden=2, steps=1, residual_blocks=1).double()
    torch.nn.init.normal_(decoder.update.layers[-1].weight, std=0.3)
    z = torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: decoder(z)[:, :, ::9, ::9], (z,))


@pytest.mark.parametrize("decoder", [small_decoder(), ConvDecoder(latent_size=4, width=2)])
def test_latents_of_another_shape_are_refused(decoder):
    for shape in [(2, 5), (4,), (2, 4, 1, 1)]:
        with pytest.raises(ValueError, match=r"takes latents \(B, 4\)"):
            decoder(torch.zeros(shape))


def test_impossible_decoders_are_refused():
    with pytest.raises(ValueError, match="steps >= 0, not -1"):
        DoublingDecoder(steps=-1)
    with pytest.raises(ValueError, match="not 0 and 32"):
        ConvDecoder(latent_size=0)
