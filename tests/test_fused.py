"""The kernels of fused steps, run by Triton's interpreter: the same numbers as from layers.

The interpreter has to be chosen before Triton is imported, so it works in a process of its own.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from chapters import ROOT

from vnca import decoders
from vnca.decoders import DoublingDecoder

PREPARE = """
import torch
from vnca import cells
from vnca.fused import FusedSteps

torch.manual_seed(0)
update = cells.Update(64, 64, residual_blocks=2)
for parameter in update.parameters():
    torch.nn.init.normal_(parameter, std=0.05)
start = torch.randn(3, 64, 3, 5, requires_grad=True)
target = torch.randn(3, 64, 3, 5)
target_of_doubled = torch.randn(3, 64, 6, 10)
inputs = [start, *update.parameters()]

def as_layers(state):
    return state + update(state)

def report(ours, theirs):
    print(len(ours), max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs, strict=True)))
"""
COMPARE = """
def grow(step):
    state = step(step(start))
    return step(cells.double(state))

def gradients(step):
    final = grow(step)
    return final.detach(), *torch.autograd.grad((final * target_of_doubled).sum(), inputs)

ours, theirs = gradients(FusedSteps(update, torch.float32)), gradients(as_layers)
with torch.no_grad():
    ours, theirs = (*ours, grow(FusedSteps(update, torch.float32))), (*theirs, theirs[0])
report(ours, theirs)
"""
SHORT = """
def gradients(step):
    final = step(step(cells.double(step(step(start)))))
    return final.detach(), *torch.autograd.grad((final * target_of_doubled).sum(), inputs)

report(gradients(FusedSteps(update, torch.float16)), gradients(as_layers))
"""
PARTS = """
from vnca import kernels

channels, layers = 256, 3
sums = torch.randn(kernels.parts_of(torch.empty(layers, channels, channels)), layers, channels, channels)
of_biases = torch.randn(len(sums), layers, channels)
expected = sums.clone(), of_biases.clone()
for rows, parts in ((600, 2), (1100, 4)):  # none of equal length
    gradients, inputs = torch.randn(2, layers, rows, channels)
    kernels.add_weight_gradients(gradients[:-1], gradients[-1], inputs[0], inputs[1:], sums, of_biases)
    length = -(-rows // parts)
    for part, (g, x) in enumerate(zip(gradients.split(length, dim=1), inputs.split(length, dim=1), strict=True)):
        expected[0][part] += torch.einsum("lno,lni->loi", g, x)
        expected[1][part] += g.sum(dim=1)
report([sums, of_biases], expected)
"""
TILES = """
from vnca import kernels

channels, rows = 256, 300
x, added, elu_result = torch.randn(3, rows, channels)
weight, bias = torch.randn(channels, channels), torch.randn(channels)
forward = torch.nn.functional.elu(x @ weight.T + bias) + added
backward = (x @ weight) * (elu_result.clamp(max=0) + 1) + added
ours, expected = [], []
for tile in kernels._pointwise.configs:
    programs = 2 if tile.kwargs["STAYING"] else -(-rows // tile.kwargs["ROWS"])  # those that stay take turns
    grid = (programs * (channels // tile.kwargs["COLUMNS"]),)
    for back in (False, True):
        given = (None, added, elu_result) if back else (bias, added, None)
        out, copy = torch.full((2, rows, channels), torch.nan)
        kernels._pointwise.fn[grid](
            x,
            weight,
            *given,
            out,
            copy,
            rows,
            CHANNELS=channels,
            ELU=not back,
            BACKWARD=back,
            TURNED=back,
            **tile.kwargs,
        )
        ours += [out, copy]
        expected += [backward if back else forward] * 2
report(ours, expected)
"""
CHANGED = """
def change(state):  # a step without gradients, a change in place, then steps with gradients
    state = state.detach().clone()
    with torch.no_grad():
        state = step(state)
        state[:, :, 1:] = 0.5
    return step(step(state))

found = []
for step in (FusedSteps(update, torch.float32), as_layers):
    final = change(start)
    found.append([final, *torch.autograd.grad((final * target).sum(), inputs[1:])])
report(*found)
"""
LOSSES = """
def loss_of_the_last(states):
    return (states[3] * target).sum()

def loss_of_all(states):
    return (states[3] * target).sum() + states[2].square().sum() + states[1].sin().sum()

def loss_of_an_early_one(states):
    return (states[1] * target).sum()

def loss_beside(states):  # the states after the first were for nothing
    return (step(states[1]) * target).sum()

def parts(loss, states):
    value = loss(states)
    first, *_ = torch.autograd.grad(value, [start], retain_graph=True)  # nobody asks for the gradients of the weights
    again = torch.autograd.grad(value, inputs, retain_graph=True)
    return first, *again, *torch.autograd.grad(value, inputs)

found = []
for fused in (True, False):
    found.append([])
    for loss in (loss_of_the_last, loss_of_all, loss_of_an_early_one, loss_beside):
        step = FusedSteps(update, torch.float32) if fused else as_layers
        states = [start]
        for _ in range(3):
            states.append(step(states[-1]))
        found[-1] += parts(loss, states)
report(*found)
"""


BENCHMARK = """
import sys
import torch
from vnca import kernels

sys.path.insert(0, "benchmarks")
import kernels as benchmark

benchmark.CHANNELS, benchmark.LAYERS, benchmark.HALF, kernels.FEW_ROWS = 128, 3, torch.float32, 0
kernels._multiprocessors = lambda device: 2
times = iter(range(1, 100))
for kernel in (kernels._pointwise, kernels._add_weight_gradients):
    kernel.do_bench = lambda call, quantiles: (call(), 3 * [next(times)])[1]
sys.exit(benchmark.main(["--rows", "300", "--out", sys.argv[1]], device="cpu"))
"""


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton comes with PyTorch for NVIDIA GPUs only"
)


def interpret(program: str, *arguments: str) -> str:
    """What a program prints whose kernels Triton's interpreter runs."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_triton
def test_the_benchmark_of_kernels_tries_every_tile(tmp_path):
    lines = interpret(BENCHMARK, str(tmp_path)).splitlines()
    (path,) = tmp_path.iterdir()
    found = json.loads(path.read_text())["tiles"]
    assert len(lines) == len(found) + 1 and {row["rows"] for row in found} == {300}
    kinds = Counter(row["kind"] for row in found)
    assert len(kinds) == 7 and kinds.pop("gradients of weights") == 3
    assert set(kinds.values()) == {5}  # the tiles for many rows with at most 128 columns
    moved = {row["kind"]: row["bytes"] for row in found}
    tensor = 300 * 128 * 4  # bytes
    assert moved["layer with ELU"] == 2 * tensor and moved["layer with ELU, backward"] == 2.5 * tensor  # one in 16 bits
    assert moved["gradients of weights"] == 6 * tensor


@needs_triton
@pytest.mark.parametrize(
    ("program", "tensors", "limit"),
    [
        (COMPARE, 1 + 1 + 12 + 1, 2e-6),  # the state, what it started from, the parameters, the state without gradients
        (LOSSES, 4 * (1 + 13 + 13), 2e-6),
        (PARTS, 2, 2e-6),
        (TILES, 10 * 4, 2e-6),
        (CHANGED, 1 + 12, 2e-6),
        (SHORT, 1 + 1 + 12, 2e-3),  # in float16, because the interpreter cannot compute in bfloat16
    ],
    ids=["growth", "losses", "parts", "tiles", "changed", "short"],
)
def test_fused_steps_and_their_gradients_are_those_of_the_layers(program, tensors, limit):
    count, error = interpret(PREPARE + program).split()
    assert int(count) == tensors
    assert 0 < float(error) < limit


def test_elsewhere_steps_are_taken_layer_by_layer():
    decoder = DoublingDecoder(64, 64, steps=1)
    assert decoder.stepper() == decoder.step
    with torch.autocast("cpu", torch.bfloat16):
        assert decoder.stepper() == decoder.step


class OnGpu(torch.nn.Parameter):
    is_cuda = True


@pytest.mark.parametrize(
    ("channels", "hidden", "blocks", "dtype", "device", "emulated", "fits"),
    [
        (64, 64, 4, torch.bfloat16, None, False, True),
        (256, 256, 1, torch.bfloat16, None, False, True),
        (64, 32, 4, torch.bfloat16, None, False, False),
        (48, 48, 4, torch.bfloat16, None, False, False),
        (64, 64, 0, torch.bfloat16, None, False, False),
        (64, 64, 4, torch.float16, None, False, False),
        (64, 64, 4, torch.bfloat16, 1, False, False),  # another GPU than that of the weights
        (64, 64, 4, torch.bfloat16, None, True, False),  # a T4
    ],
)
def test_kernels_are_there_for_the_published_update_in_bfloat16(
    monkeypatch, channels, hidden, blocks, dtype, device, emulated, fits
):
    decoder = DoublingDecoder(channels, hidden, residual_blocks=blocks)
    look = decoder.update.layers[0]
    look.weight = OnGpu(look.weight)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: device)
    monkeypatch.setattr(decoders.hardware, "has_bfloat16", lambda device: not emulated)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: dtype)
    monkeypatch.setattr(decoders, "_has_triton", lambda: True)
    assert decoders._can_fuse(decoder.update) == fits


@pytest.mark.parametrize(("version", "fits"), [("3.1.0", False), ("3.2.0", True), ("3.9.0+git", True), ("4.0", True)])
def test_a_triton_that_is_too_old_is_left_alone(monkeypatch, version, fits):
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))
    assert decoders._has_triton() == fits


def test_there_may_be_no_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not decoders._has_triton()
