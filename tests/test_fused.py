"""The kernels of fused steps, run by Triton's interpreter in float32: the same numbers as from layers.

The interpreter has to be chosen before Triton is imported, so it works in a process of its own.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from vnca import decoders
from vnca.decoders import DoublingDecoder

COMPARE = """
import torch
from vnca import cells
from vnca.fused import FusedSteps

torch.manual_seed(0)
update = cells.Update(64, 64, residual_blocks=2)
for parameter in update.parameters():
    torch.nn.init.normal_(parameter, std=0.05)
start = torch.randn(3, 64, 3, 5, requires_grad=True)
target = torch.randn(3, 64, 6, 10)

def grow(step):
    state = step(step(start))
    return step(cells.double(state))

def gradients(step):
    final = grow(step)
    return final.detach(), *torch.autograd.grad((final * target).sum(), [start, *update.parameters()])

ours = gradients(FusedSteps(update, torch.float32))
theirs = gradients(lambda state: state + update(state))
with torch.no_grad():
    ours, theirs = (*ours, grow(FusedSteps(update, torch.float32))), (*theirs, theirs[0])
print(len(ours), max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs, strict=True)))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton comes with PyTorch for NVIDIA GPUs only")
def test_fused_steps_and_their_gradients_are_those_of_the_layers():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", COMPARE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, error = done.stdout.split()
    assert int(count) == 1 + 1 + 12 + 1  # the state, what it started from, the parameters, the state without gradients
    assert 0 < float(error) < 2e-6


def test_elsewhere_steps_are_taken_layer_by_layer():
    decoder = DoublingDecoder(64, 64, steps=1)
    assert decoder.stepper() == decoder.step
    with torch.autocast("cpu", torch.bfloat16):
        assert decoder.stepper() == decoder.step


class OnGpu(torch.nn.Parameter):
    is_cuda = True


@pytest.mark.parametrize(
    ("channels", "hidden", "blocks", "dtype", "fits"),
    [
        (64, 64, 4, torch.bfloat16, True),
        (256, 256, 1, torch.bfloat16, True),
        (64, 32, 4, torch.bfloat16, False),
        (48, 48, 4, torch.bfloat16, False),
        (64, 64, 0, torch.bfloat16, False),
        (64, 64, 4, torch.float16, False),
    ],
)
def test_kernels_are_there_for_the_published_update_in_bfloat16(monkeypatch, channels, hidden, blocks, dtype, fits):
    decoder = DoublingDecoder(channels, hidden, residual_blocks=blocks)
    look = decoder.update.layers[0]
    look.weight = OnGpu(look.weight)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: dtype)
    monkeypatch.setattr(decoders.importlib.util, "find_spec", lambda name: name == "triton")
    assert decoders._can_fuse(decoder.update) == fits
