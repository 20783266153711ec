"""The ELU is PyTorch's, on vectors; the backward pass keeps its result alone."""

import pytest
import torch
from torch.nn import functional as F

from vnca.elu import ELU


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients_are_those_of_pytorch(dtype):
    x = torch.cat([torch.linspace(-30, 30, 4001), -torch.logspace(-12, 0, 400), torch.zeros(1)]).to(dtype)
    weight = torch.linspace(-2, 2, len(x)).to(dtype)
    results = []
    for elu in (ELU(), lambda x: F.elu(x.clone(), inplace=True)):
        ours = x.clone().requires_grad_()
        y = elu(ours)
        (y * weight).sum().backward()
        assert y.dtype == ours.grad.dtype == dtype
        results.append((y.detach(), ours.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_what_cannot_be_a_number_stays_none():
    values = ELU()(torch.tensor([float("nan"), float("inf"), -float("inf")]))
    assert values[0].isnan() and values[1] == float("inf") and values[2] == -1


def test_the_input_is_neither_changed_nor_kept():
    x = torch.randn(50, requires_grad=True)
    before, kept = x.detach().clone(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = ELU()(x)
    assert torch.equal(x, before)
    assert [t.data_ptr() for t in kept] == [y.data_ptr()]
