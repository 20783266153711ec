"""The steps of the doubling VNCA on a GPU, in a few kernels: what is computed stays what `vnca.cells.Update` says.

Written as layers, a step spends most of its time on moving numbers: each bias, activation and addition reads the
hidden values of all cells from memory and writes them back. Here a pointwise layer is one kernel, a product of
matrices that adds, activates and rounds what it has in its registers. The backward pass is written out by hand, with
the gradients of all pointwise layers of a step in one kernel. The 3 × 3 convolution is left to PyTorch.

Products are of bfloat16 numbers and are summed in float32, as under autocast; the state stays in float32. The
gradients of the weights are summed over the steps in float32, which autocast does in bfloat16.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vnca import cells, kernels


class FusedSteps:
    """Takes steps with an update, as `CellDecoder.step` does. One of it is made for each growth: it casts the weights.

    Args:
        update: of the doubling VNCA.
        dtype: of the numbers that are multiplied.
    """

    def __init__(self, update: cells.Update, dtype: torch.dtype):
        look, *blocks, change = update.layers
        pointwise = [layer for block in blocks for layer in (block.layers[0], block.layers[2])] + [change]
        with torch.autocast(look.weight.device.type, enabled=False):
            weights = torch.stack([layer.weight.flatten(1) for layer in pointwise])  # (L, C, C)
            first, second, *others = (layer.bias for layer in pointwise)
            # The first block adds its input, and its first layer multiplies it: so both can add the bias of the look.
            biases = torch.stack([first + weights[0] @ look.bias, second + look.bias, *others])  # (L, C)
        self.dtype, self.look, self.weights, self.biases = dtype, look.weight, weights, biases
        self.rounded = [
            look.weight.detach().to(dtype, memory_format=torch.channels_last),
            weights.detach().to(dtype),
        ]
        self.last, self.last_rounded = None, None  # state: the kernel that writes a state rounds it, too

    def __call__(self, state: Tensor) -> Tensor:
        """One step: `(B, C, H, W)` -> `(B, C, H, W)`, in float32."""
        state = state.contiguous(memory_format=torch.channels_last)
        rounded = self.last_rounded if state is self.last else state.detach().to(self.dtype)
        inputs = (state, rounded, self.look, self.weights, self.biases, *self.rounded)
        self.last, self.last_rounded = _Step.apply(*inputs, torch.is_grad_enabled())
        return self.last


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        state: Tensor,
        rounded_state: Tensor,
        look: Tensor,
        weights: Tensor,
        biases: Tensor,
        rounded_look: Tensor,
        rounded_weights: Tensor,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        """The state after a step, in float32 and rounded."""
        layers, channels = biases.shape
        seen = F.conv2d(rounded_state, rounded_look, padding=1).contiguous(memory_format=torch.channels_last)
        hidden = rows_of(seen)  # (B H W, C)
        # What each layer but the last writes. Without a backward pass four take turns, so that they stay in the cache.
        written = hidden.new_empty(layers - 1 if keep else 4, *hidden.shape)
        for layer in range(0, layers - 1, 2):
            inner, outer = written[layer % len(written)], written[(layer + 1) % len(written)]
            kernels.pointwise(hidden, rounded_weights[layer], inner, bias=biases[layer], elu=True)
            kernels.pointwise(inner, rounded_weights[layer + 1], outer, bias=biases[layer + 1], added=hidden)
            hidden = outer
        new, new_rounded = torch.empty_like(state), torch.empty_like(rounded_state)
        kernels.pointwise(
            hidden, rounded_weights[-1], rows_of(new), bias=biases[-1], added=rows_of(state), copy=rows_of(new_rounded)
        )
        if keep:
            ctx.save_for_backward(rounded_state, seen, written, rounded_look, rounded_weights)
        ctx.mark_non_differentiable(new_rounded)
        ctx.set_materialize_grads(False)  # no zeros for it either
        return new, new_rounded

    @staticmethod
    def backward(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        rounded_state, seen, written, look, weights = ctx.saved_tensors
        layers = len(weights)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        # Of what each layer computes, before its activation and before the input of its block is added.
        gradients = written.new_empty(layers, *written.shape[1:])  # (L, B H W, C)
        of_seen = torch.empty_like(seen)
        gradients[-1].copy_(rows_of(gradient))
        kernels.pointwise(gradients[-1], weights[-1], gradients[-2], backward=True)
        for layer in range(layers - 3, -1, -2):  # the first layer of each block, from the last block on
            inner, outer = gradients[layer], gradients[layer + 1]
            kernels.pointwise(outer, weights[layer + 1], inner, backward=True, elu_result=written[layer])
            below = gradients[layer - 1] if layer else rows_of(of_seen)
            kernels.pointwise(inner, weights[layer], below, backward=True, added=outer)
        of_first = kernels.weight_gradients(gradients[:1], rows_of(seen)[None])
        of_others = kernels.weight_gradients(gradients[1:], written)
        of_weights, of_biases = (torch.cat(pair) for pair in zip(of_first, of_others, strict=True))
        of_state, of_look, _ = torch.ops.aten.convolution_backward(
            of_seen, rounded_state, look, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
        )
        return gradient + of_state, None, of_look.float(), of_weights, of_biases, None, None, None


def rows_of(state: Tensor) -> Tensor:
    """A state as a matrix with a row for each cell: `(B, C, H, W)`, channels last in memory -> `(B H W, C)`, a view."""
    return state.permute(0, 2, 3, 1).view(-1, state.shape[1])
