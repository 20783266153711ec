"""What models cost: counted arithmetic, and tiny runs of the programs that measure it."""

import pytest
import torch
from torch import nn

from vnca import ConvDecoder, DoublingDecoder, RegrowingDecoder
from vnca.arithmetic import cell_updates, multiply_adds, training_flops
from vnca.vae import ModelConfig, build


def test_the_papers_arithmetic():
    """10,912 cell-updates, 12.9 billion multiply-adds and 77 GFLOP an image."""
    decoder = DoublingDecoder()
    weights = sum(p.numel() for name, p in decoder.named_parameters() if name.endswith("weight"))
    assert cell_updates(decoder) == 10_912
    assert multiply_adds(decoder, (256,)) == 10_912 * weights == 12_872_318_976
    flops = training_flops(build(ModelConfig()))
    assert 77.0e9 < flops < 77.7e9  # the encoder is less than a hundredth of it


def test_multiply_adds_of_layers():
    assert multiply_adds(nn.Linear(3, 5), (3,)) == 15
    assert multiply_adds(nn.Conv2d(2, 4, 3, padding=1), (2, 6, 7)) == 2 * 4 * 9 * 6 * 7
    assert multiply_adds(nn.Conv2d(2, 4, 5, stride=2, padding=2), (2, 8, 8)) == 2 * 4 * 25 * 4 * 4
    assert multiply_adds(nn.ELU(), (3,)) == 0


def test_multiply_adds_leave_the_module_as_it_was():
    decoder = RegrowingDecoder(channels=2, hidden=3, min_steps=2, max_steps=2)
    assert multiply_adds(decoder, (2,)) == cell_updates(decoder) * (2 * 3 * 9 + 3 * 2) == 2 * 32**2 * 60
    assert all(p.device == torch.device("cpu") for p in decoder.parameters())


def test_only_cells_are_counted():
    with pytest.raises(ValueError, match="ConvDecoder has no cells"):
        cell_updates(ConvDecoder(latent_size=4, width=2))
