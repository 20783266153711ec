"""What a model costs in arithmetic, counted and not measured.

Each weight of a cell's update works once in every cell at every step. So a VNCA of few parameters costs as much as a
large network.

>>> from vnca.decoders import DoublingDecoder
>>> cell_updates(DoublingDecoder())
10912
>>> multiply_adds(DoublingDecoder(), (256,))
12872318976
"""

from copy import deepcopy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vnca.decoders import CellDecoder
from vnca.vae import IMAGE_SIZE, VAE


def cell_updates(decoder: CellDecoder) -> int:
    """How many times an image's growth updates a cell: the number of cells, summed over all steps.

    Raises:
        ValueError: if the decoder has no cells.
    """
    if not isinstance(decoder, CellDecoder):
        raise ValueError(f"a {type(decoder).__name__} has no cells whose updates could be counted")
    return sum(side**2 for event, side in decoder.schedule() if event == "step")


def multiply_adds(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Products of a weight and a value, each added to a sum, in one forward pass for one input of that shape.

    Nothing is computed. Convolutions and linear layers are counted, at the border of a grid as if it went on;
    additions and activations are not.

    Args:
        module: any module that takes one tensor.
        shape: the shape of one input, without the batch.
    """
    abstract = deepcopy(module).to("meta")  # shapes without values
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        abstract(torch.empty(1, *shape, device="meta"))
    return counter.get_total_flops() // 2


def training_flops(model: VAE) -> int:
    """Floating-point operations of one image's forward and backward pass: 6 for each multiply-add.

    A multiply-add is 2 operations. The backward pass does each of them twice more, for the gradient of the weight and
    that of the value. Steps that are computed a second time to save memory do not count: they are no progress.
    """
    encoder = multiply_adds(model.encoder, (1, IMAGE_SIZE, IMAGE_SIZE))
    return 6 * (encoder + multiply_adds(model.decoder, (model.latent_size,)))
