"""What only an NVIDIA GPU can do: kernels against layers, and updates that are replayed against ordinary ones."""

from dataclasses import replace

import pytest
import torch

from vnca import load, training
from vnca.decoders import DoublingDecoder, PersistentDecoder, crop
from vnca.presets import TrainConfig
from vnca.recording import EAGER
from vnca.vae import ModelConfig

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="needs an NVIDIA GPU, Ampere on",
)


def gradients(decoder, z, target, fuse, dtype, every=False):
    """The logits and the gradient, of a loss of the logits or, if `every`, of all states."""
    decoder.fuse = fuse
    decoder.zero_grad()
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        *states, last = decoder.grow(z)
    logits = crop(last[:, :1]).float()
    loss = (logits * target).sum()
    if every:
        loss = loss + sum(state.float().square().sum() for state in states)
    loss.backward()
    return logits.detach(), torch.cat([p.grad.flatten() for p in decoder.parameters()])


@pytest.mark.parametrize("channels", [64, 128, 256])
@pytest.mark.parametrize(("batch_size", "every"), [(3, False), (64, False), (64, True)])
@pytest.mark.parametrize("kind", [DoublingDecoder, PersistentDecoder])
def test_fused_steps_are_as_exact_as_layers(kind, channels, batch_size, every):
    torch.manual_seed(0)
    decoder = kind(channels, channels, steps=2).cuda().to(memory_format=torch.channels_last)
    torch.nn.init.normal_(decoder.update.layers[-1].weight, std=0.02)
    z = torch.randn(batch_size, channels, device="cuda")
    target = torch.randn(batch_size, 1, 28, 28, device="cuda")
    exact = gradients(decoder, z, target, False, torch.float32, every)
    layers = gradients(decoder, z, target, False, torch.bfloat16, every)
    fused = gradients(decoder, z, target, True, torch.bfloat16, every)
    for ours, theirs, truth in zip(fused, layers, exact, strict=True):
        error, yardstick = ((t - truth).norm() / truth.norm() for t in (ours, theirs))
        assert 0 < error < max(1.2 * yardstick, 5e-3), (error, yardstick)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        assert torch.allclose(decoder(z).float(), fused[0], rtol=1e-2, atol=1e-2)


ROWS = 20_000  # of no tile a multiple


def drawn(*shape):
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


@pytest.mark.parametrize("channels", [64, 256])
@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("adding", [False, True])
def test_every_tile_of_a_layer_gives_the_same(channels, back, adding):
    from vnca import kernels

    torch.manual_seed(0)
    x, added, elu_result, out = drawn(4, ROWS, channels)
    weight, bias = drawn(channels, channels) / channels**0.5, torch.randn(channels, device="cuda")
    given = (None if back else bias, added if adding else None, None if adding or not back else elu_result)
    expected = x.float() @ (weight if back else weight.T).float() + (0 if back else bias)
    if not adding:
        expected = expected * (elu_result.float().clamp(max=0) + 1) if back else torch.nn.functional.elu(expected)
    expected = expected + (added.float() if adding else 0)
    tried = 0
    for tile in kernels._pointwise.configs:
        sizes = tile.kwargs
        if sizes["COLUMNS"] > channels:
            continue
        programs = 50 if sizes["STAYING"] else -(-ROWS // sizes["ROWS"])
        out.fill_(torch.nan)
        try:
            kernels._pointwise.fn[(programs * (channels // sizes["COLUMNS"]),)](
                x,
                weight,
                *given,
                out,
                None,
                ROWS,
                CHANNELS=channels,
                ELU=not back and not adding,
                BACKWARD=back,
                TURNED=adding,
                **tile.all_kwargs(),
            )
        except kernels.triton.runtime.errors.OutOfResources:
            continue  # this GPU has too little shared memory, so it is not chosen there
        tried += 1
        assert torch.allclose(out.float(), expected, rtol=1e-2, atol=1e-2), tile
    assert tried


def test_every_tile_of_the_gradients_of_weights_gives_the_same_each_time():
    from vnca import kernels

    torch.manual_seed(0)
    gradients, inputs = drawn(2, 3, 10 * ROWS, 256)
    expected = torch.stack([g.float().T @ x.float() for g, x in zip(gradients, inputs, strict=True)])
    parts, rows = 5, 10 * ROWS
    for tile in kernels._add_weight_gradients.configs:
        if tile.num_warps != 8:  # those are for fewer channels
            continue
        found = []
        for _ in range(20):
            sums = torch.zeros(parts, 3, 256, 256, device="cuda")
            of_biases = torch.zeros(parts, 3, 256, device="cuda")
            kernels._add_weight_gradients.fn[(2, parts, 3)](
                gradients[:-1],
                gradients[-1],
                inputs[0],
                inputs[1:],
                sums,
                of_biases,
                rows,
                rows // parts,
                3,
                CHANNELS=256,
                COLUMNS=128,
                **tile.all_kwargs(),
            )
            found.append((sums, of_biases))
        sums, of_biases = found[0]
        for again in found[1:]:  # a number that is overwritten before it was used would differ from time to time
            assert torch.equal(again[0], sums) and torch.equal(again[1], of_biases), tile
        assert ((sums.sum(dim=0) - expected).norm() / expected.norm()).item() < 1e-4, tile
        of_bias = gradients.float().sum(dim=1)
        assert ((of_biases.sum(dim=0) - of_bias).norm() / of_bias.norm()).item() < 1e-4, tile


def test_a_fused_growth_shows_every_step():
    decoder = DoublingDecoder(64, 64, steps=2).cuda()
    torch.nn.init.normal_(decoder.update.layers[-1].weight, std=0.02)
    z = torch.randn(2, 64, device="cuda")
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        states = list(decoder.grow(z))
        logits = decoder(z)
    assert len(states) == len(decoder.schedule())
    assert torch.equal(crop(states[-1][:, :1]), logits)


CONFIG = TrainConfig(
    ModelConfig("doubling", 64, 4, {"hidden": 64, "steps": 2}), "digits", "train", 3 * EAGER, 16, 1e-3, kl_warmup=4
)


@pytest.mark.parametrize("samples", [1, 3])
def test_replayed_updates_learn_what_ordinary_ones_learn(tmp_path, monkeypatch, samples):
    config = replace(CONFIG, samples=samples, kl_warmup=0) if samples > 1 else CONFIG
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    curves = {True: [], False: []}
    for replay, curve in curves.items():
        if not replay:
            monkeypatch.setattr(training._Run, "can_replay", lambda run, shared: False)
        training.train(config, tmp_path / str(replay), on_log=lambda record, curve=curve: curve.append(record["loss"]))
    assert len(curves[True]) == config.updates
    assert curves[True] == pytest.approx(curves[False], rel=2e-3)
    weights = [load(tmp_path / str(replay)).state_dict() for replay in curves]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], rtol=0.1, atol=2e-3), name


def test_a_replayed_run_goes_on_after_a_stop(tmp_path):
    config = replace(CONFIG, updates=40)
    seen = []

    def stop(record):
        seen.append(record["update"])
        if len(seen) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(config, tmp_path / "run", on_log=stop, checkpoint_minutes=1e-6)
    training.train(config, tmp_path / "run", resume=True, on_log=stop)
    assert seen == [20, 20, 40]  # the update that was not saved is done again
