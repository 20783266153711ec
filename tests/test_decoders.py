"""The decoders: the paper's figures, the schedule of growth, and what they refuse."""

import sys
import types
from copy import deepcopy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vnca import ConvDecoder, DoublingDecoder, PersistentDecoder, RegrowingDecoder, cells, decoders
from vnca.decoders import compile_update
from vnca.vae import ModelConfig, build


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


def small_decoder(steps=1) -> DoublingDecoder:
    torch.manual_seed(0)
    decoder = DoublingDecoder(channels=4, hidden=6, steps=steps, residual_blocks=1)
    torch.nn.init.normal_(decoder.update.layers[-1].weight, std=0.3)
    return decoder


def regrowing_decoder(min_steps=2, max_steps=5) -> RegrowingDecoder:
    torch.manual_seed(0)
    decoder = RegrowingDecoder(channels=4, hidden=6, min_steps=min_steps, max_steps=max_steps)
    torch.nn.init.normal_(decoder.update.layers[-1].weight, std=0.3)
    return decoder


def persistent_decoder(steps=2, min_steps=1, max_steps=4) -> PersistentDecoder:
    torch.manual_seed(0)
    decoder = PersistentDecoder(4, 6, steps, residual_blocks=1, min_steps=min_steps, max_steps=max_steps)
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


def test_the_papers_regrowing_decoder_is_two_layers_that_start_at_zero():
    decoder = RegrowingDecoder()
    assert [tuple(p.shape) for p in decoder.parameters()] == [(128, 128, 3, 3), (128,), (128, 128, 1, 1)]
    assert parameters(decoder) == 163_968
    assert torch.count_nonzero(decoder.update.layers[-1].weight) == 0
    assert (decoder.min_steps, decoder.max_steps) == (32, 64)
    assert decoder.schedule() == [("seed", 32)] + [("step", 32)] * 48


@pytest.mark.parametrize(
    "decoder",
    [small_decoder(0), small_decoder(1), small_decoder(3), regrowing_decoder(), persistent_decoder()],
)
def test_grow_follows_its_schedule(decoder):
    states = list(decoder.grow(torch.randn(2, 4)))
    schedule = decoder.schedule()
    assert [state.shape for state in states] == [(2, decoder.channels, size, size) for _, size in schedule]
    for before, after, (event, _) in zip(states, states[1:], schedule[1:], strict=False):
        if event == "double":
            torch.testing.assert_close(after, cells.double(before))
        elif not isinstance(decoder, PersistentDecoder):
            torch.testing.assert_close(after, before + decoder.update(before))
        else:
            change = (1 - before[:, -1:]) * decoder.update(before[:, :-1])
            torch.testing.assert_close(after[:, :-1], before[:, :-1] + change)


@pytest.mark.parametrize("decoder", [small_decoder(), regrowing_decoder(), persistent_decoder()])
def test_the_image_is_channel_0_of_the_last_grid_without_its_border(decoder):
    z = torch.randn(3, 4)
    *_, last = decoder.grow(z)
    assert torch.equal(decoder(z), last[:, :1, 2:30, 2:30])


@pytest.mark.parametrize("decoder", [DoublingDecoder(4, 6, steps=2), RegrowingDecoder(4, 6, 2, 2)])
def test_an_untrained_decoder_paints_the_first_entry_of_the_latent(decoder):
    z = torch.randn(2, 4)
    assert torch.equal(decoder(z), z[:, :1, None, None].expand(2, 1, 28, 28))


@pytest.mark.parametrize("steps", [0, 2])
def test_a_persistent_decoder_grows_like_a_doubling_one_and_takes_its_own_steps_on_the_last_grid(steps):
    decoder = persistent_decoder(steps, min_steps=1, max_steps=6)
    growing = DoublingDecoder(4, 6, steps, residual_blocks=1)
    growing.load_state_dict(decoder.state_dict())
    assert decoder.last_steps == 3
    assert decoder.schedule()[: 5 + 4 * steps] == growing.schedule()[: 5 + 4 * steps]
    assert decoder.schedule()[5 + 4 * steps :] == [("step", 32)] * 3
    z = torch.randn(2, 4)
    settled = decoder.settle(z)
    torch.testing.assert_close(settled[:, :-1], list(growing.grow(z))[4 + 4 * steps])
    assert (settled[:, -1] == 0).all(), "cells that divide do not age"
    torch.testing.assert_close(decoder(z), decoder.run(settled, 3)[:, :1, 2:30, 2:30])


@torch.no_grad()
def test_cells_of_the_last_grid_change_less_the_older_they_are():
    decoder = persistent_decoder().double()
    state = decoder.settle(torch.randn(2, 4, dtype=torch.float64))
    for age in range(3):
        change = decoder.update(state[:, :-1])
        after = decoder.step(state)
        torch.testing.assert_close(after[:, :-1], state[:, :-1] + (1 - age / 32) * change)
        torch.testing.assert_close(after[:, -1], torch.full_like(after[:, -1], (age + 1) / 32))
        state = after


@torch.no_grad()
def test_a_persistent_decoder_ages_in_fused_steps_too(monkeypatch):
    decoder, z = persistent_decoder(), torch.randn(2, 4)
    expected = decoder(z)
    fused = types.ModuleType("vnca.fused")
    fused.FusedSteps = lambda update, dtype: lambda state: state + 2 * update(state)  # not the same, to be told apart
    monkeypatch.setitem(sys.modules, "vnca.fused", fused)
    monkeypatch.setattr(decoders, "_can_fuse", lambda update: True)
    for layer in (decoder.update.layers[-1].weight, decoder.update.layers[-1].bias):
        layer.data.div_(2)
    torch.testing.assert_close(decoder(z), expected)


@torch.no_grad()
def test_a_grown_up_grid_stands_still_but_for_the_cells_of_a_hole():
    decoder = persistent_decoder()
    old = decoder.run(decoder.settle(torch.randn(2, 4)), 32)
    assert (old[:, -1] == 1).all()
    assert torch.equal(decoder.run(old, 5), old)
    hurt = cells.damage(old, 4, 6, 10)
    hole = torch.zeros(32, 32, dtype=torch.bool)
    hole[4:14, 6:16] = True
    after = decoder.step(hurt)
    assert torch.equal(after[..., ~hole], old[..., ~hole])
    assert (after[:, :-1, 4:14, 6:16] != 0).any() and (after[:, -1, 4:14, 6:16] == 1 / 32).all()
    healed = decoder.run(hurt, 32)
    assert torch.equal(decoder.step(healed), healed)


def test_a_regrowing_decoder_settles_at_once():
    decoder, z = regrowing_decoder(), torch.randn(2, 4)
    assert torch.equal(decoder.settle(z), decoder.seed(z))


def test_steps_add_up():
    decoder = regrowing_decoder()
    state = decoder.seed(torch.randn(2, 4))
    assert state.shape == (2, 4, 32, 32)
    assert decoder.run(state, 0) is state
    torch.testing.assert_close(decoder.run(decoder.run(state, 2), 3), decoder.run(state, 5))
    assert decoder.run(torch.randn(1, 4, 7, 9), 2).shape == (1, 4, 7, 9), "any grid"


def test_the_grid_knows_of_its_border_only_as_far_as_its_steps():
    """All cells start alike and follow one rule, so a cell differs from the middle once the border can tell it to."""
    decoder, z = regrowing_decoder().double(), torch.randn(1, 4, dtype=torch.float64)
    for steps in (1, 3, 5):
        state = decoder.run(decoder.seed(z), steps)
        like_the_middle = torch.isclose(state, state[:, :, 15:16, 15:16], rtol=1e-9, atol=0).all(dim=1)[0]
        expected = torch.zeros(32, 32, dtype=torch.bool)
        expected[steps : 32 - steps, steps : 32 - steps] = True
        assert torch.equal(like_the_middle, expected)


def test_a_hole_closes_where_the_rule_is_to_become_like_the_neighbors():
    decoder = RegrowingDecoder(channels=1, hidden=2)
    look, _, change = decoder.update.layers
    with torch.no_grad():
        look.bias.zero_()
        look.weight.zero_()
        look.weight[0] = 1 / 9  # the mean of the neighborhood
        look.weight[1, 0, 1, 1] = 1  # the cell itself
        change.weight.copy_(torch.tensor([1.0, -1.0]).view(1, 2, 1, 1))
    grown = torch.ones(1, 1, 64, 64)  # so large that the border does not reach the hole
    hurt = cells.damage(grown, 25, 25, 14)
    with torch.no_grad():
        errors = [(1 - decoder.run(hurt, steps)[..., 25:39, 25:39]).mean().item() for steps in (0, 5, 20, 40)]
    assert errors[0] == 1
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5


def test_every_parameter_of_each_decoder_gets_a_gradient():
    for decoder in (small_decoder(), regrowing_decoder(), ConvDecoder(latent_size=4, width=2)):
        decoder(torch.randn(2, 4)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())


def test_gradients_equal_finite_differences():
    torch.manual_seed(0)
    decoder = DoublingDecoder(channels=2, hidden=2, steps=1, residual_blocks=1).double()
    torch.nn.init.normal_(decoder.update.layers[-1].weight, std=0.3)
    z = torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: decoder(z)[:, :, ::9, ::9], (z,))


@pytest.mark.parametrize("decoder", [small_decoder(), regrowing_decoder(), ConvDecoder(latent_size=4, width=2)])
def test_latents_of_another_shape_are_refused(decoder):
    for shape in [(2, 5), (4,), (2, 4, 1, 1)]:
        with pytest.raises(ValueError, match=r"takes latents \(B, 4\)"):
            decoder(torch.zeros(shape))


def test_states_and_steps_that_do_not_fit_are_refused():
    decoder = regrowing_decoder()
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        decoder.run(torch.zeros(2, 4), 1)
    with pytest.raises(ValueError, match="4 channels, not 5"):
        decoder.run(torch.zeros(1, 5, 32, 32), 1)
    with pytest.raises(ValueError, match="at least 0, not -1"):
        decoder.run(torch.zeros(1, 4, 32, 32), -1)


def test_a_regrowing_model_is_built_from_its_configuration():
    options = {"hidden": 6, "min_steps": 3, "max_steps": 6}
    model = build(ModelConfig("regrowing", 4, 2, options))
    assert (model.decoder.min_steps, model.decoder.max_steps, model.decoder.steps) == (3, 6, 4)
    assert model.decoder.update.layers[0].weight.shape == (6, 4, 3, 3)
    with pytest.raises(ValueError, match="not 7 and 6"):
        build(ModelConfig("regrowing", 4, 2, options | {"min_steps": 7}))


def test_a_genome_is_in_the_last_channels_and_the_others_begin_at_zero():
    options = {"channels": 5, "hidden": 6, "min_steps": 1, "max_steps": 1}
    decoder = build(ModelConfig("regrowing", 2, 2, options)).decoder
    assert (decoder.latent_size, decoder.channels) == (2, 5)
    z = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    for state, size in ((decoder.seed(z), 32), (decoder.seed(z, 3), 3), (next(decoder.grow(z)), 32)):
        assert state.shape == (2, 5, size, size)
        assert torch.equal(state[:, :3], torch.zeros(2, 3, size, size))
        assert torch.equal(state[:, 3:], z[:, :, None, None].expand(-1, -1, size, size))
    assert decoder(z).shape == (2, 1, 28, 28)
    with pytest.raises(ValueError, match=r"takes latents \(B, 2\)"):
        decoder(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="5 channels, not 2"):
        decoder.run(torch.zeros(1, 2, 32, 32), 1)


def test_impossible_decoders_are_refused():
    with pytest.raises(ValueError, match="a genome of 5 needs at least 7 channels"):
        RegrowingDecoder(channels=4, latent_size=5)
    with pytest.raises(ValueError, match="steps >= 0, not -1"):
        DoublingDecoder(steps=-1)
    with pytest.raises(ValueError, match="not 0 and 32"):
        ConvDecoder(latent_size=0)


class Memory(TorchDispatchMode):
    """Counts the bytes of the tensors made inside of it that are still alive, and their peak."""

    def __init__(self):
        super().__init__()
        self.storages, self.peak = {}, 0

    def alive(self) -> int:
        self.storages = {key: value for key, value in self.storages.items() if not value[0].expired()}
        return sum(size for _, size in self.storages.values())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(made) if isinstance(t, torch.Tensor)):
            self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, self.alive())
        return made


def training_memory(decoder, batch_size: int) -> tuple[int, int]:
    """Bytes kept between the forward and the backward pass, and the peak of both, in bfloat16 autocast."""
    z = torch.randn(batch_size, decoder.latent_size, requires_grad=True)
    with Memory() as memory:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = decoder(z)
        kept = memory.alive()
        logits.float().square().sum().backward()
    return kept, memory.peak


def gradients(decoder, z) -> list[torch.Tensor]:
    z = z.clone().requires_grad_()
    return list(torch.autograd.grad(decoder(z).square().sum(), [z, *decoder.parameters()]))


@pytest.mark.parametrize(
    "decoder",
    [small_decoder(2), persistent_decoder(), regrowing_decoder()],
    ids=["doubling", "persistent", "regrowing"],
)
def test_recomputed_steps_give_the_same_gradients(decoder):
    z = torch.randn(2, 4)
    expected = gradients(decoder, z)
    again = deepcopy(decoder)
    again.recompute = True
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients(again, z), expected, strict=True))
    with torch.no_grad():
        assert torch.equal(again(z), decoder(z))


def test_a_recomputed_step_keeps_its_state_alone():
    decoder = DoublingDecoder(channels=8, hidden=16, steps=4)
    states = sum(side**2 for event, side in decoder.schedule() if event == "step") * 8 * 4  # bytes an image, float32
    growth = [training_memory(decoder, batch_size)[0] for batch_size in (1, 2)]
    assert growth[1] - growth[0] > 5 * states
    decoder.recompute = True
    growth = [training_memory(decoder, batch_size)[0] for batch_size in (1, 2)]
    assert states <= growth[1] - growth[0] < 1.2 * states


@pytest.mark.parametrize("recompute, most", [(False, 8e9), (True, 2.6e9)])
def test_memory_of_the_papers_decoder_at_batch_128(recompute, most):
    """Of tensors that have sizes but no contents: both fit a GPU of 16 GB."""
    with FakeTensorMode():
        decoder = DoublingDecoder()
        decoder.recompute = recompute
        _, peak = training_memory(decoder, 128)
    assert peak < most


def test_a_compiled_update_has_one_graph_for_each_size_of_grid():
    decoder, z = small_decoder(2), torch.randn(2, 4)
    names, expected, logits = list(decoder.state_dict()), gradients(decoder, z), decoder(z)
    graphs = []

    def backend(module, inputs):
        (size,) = {t.shape[-1] for t in inputs if len(t) == len(z)}  # the others are weights
        graphs.append((torch.is_grad_enabled(), size))
        return module.forward

    compile_update(decoder, backend=backend)
    for _ in range(2):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients(decoder, z), expected, strict=True))
    assert graphs == [(True, 2), (True, 4), (True, 8), (True, 16), (True, 32)]
    graphs.clear()
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(decoder(z), logits)
    assert graphs == [(False, 2), (False, 4), (False, 8), (False, 16), (False, 32)]
    assert list(decoder.state_dict()) == names


def test_only_cells_can_be_compiled():
    with pytest.raises(ValueError, match="ConvDecoder has no update to compile"):
        compile_update(ConvDecoder(latent_size=4, width=2))


@pytest.mark.parametrize(
    "decoder",
    [DoublingDecoder(4, 4, 1), PersistentDecoder(4, 4, 1), RegrowingDecoder(4, 4, 1, 2)],
    ids=lambda decoder: type(decoder).__name__,
)
def test_latents_of_numpy_grow_in_the_numbers_of_the_weights(decoder):
    z = torch.randn(2, 4, dtype=torch.float64)
    with torch.no_grad():
        assert [state.dtype for state in decoder.grow(z)][-1] == torch.float32
        twice = deepcopy(decoder).double()
        assert list(twice.grow(z.float()))[-1].dtype == torch.float64
