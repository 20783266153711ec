"""The steps of the doubling VNCA on a GPU, in a few kernels: what is computed stays what `vnca.cells.Update` says.

Written as layers, a step spends most of its time on moving numbers: each bias, activation and addition reads the
hidden values of all cells from memory and writes them back. Here a pointwise layer is one kernel, a product of
matrices that adds, activates and rounds what it has in its registers. The backward pass is written out by hand, with
the gradients of all pointwise layers of a step in one kernel. The 3 × 3 convolution is left to PyTorch.

Products are of bfloat16 numbers and are summed in float32, as under autocast; the state stays in float32. All steps
have the same weights. Their gradients are summed over the steps in float32, which autocast does in bfloat16.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vnca import cells, kernels


class FusedSteps:
    """Takes steps with an update, as `CellDecoder.step` does. One of it is made for each growth: it casts the weights.

    All steps that it takes form one chain. So a state keeps what the backward pass of all earlier steps needs, and
    once that pass has freed a step, no other can go through it.

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
        self.constants = [
            look.weight.detach().to(dtype, memory_format=torch.channels_last),
            weights.detach().to(dtype),
            biases.detach(),
        ]
        self.sums = _Collect.apply(look.weight, weights, biases)
        self.states, self.gradients = _Rounded(dtype), _Rounded(dtype)

    def __call__(self, state: Tensor) -> Tensor:
        """One step: `(B, C, H, W)` -> `(B, C, H, W)`, in float32."""
        state = state.contiguous(memory_format=torch.channels_last)
        keep = torch.is_grad_enabled()
        new, rounded, *sums = _Step.apply(
            state, self.states.of(state), *self.constants, *self.sums, self.gradients, keep
        )
        if keep:  # a step without gradients leaves the chain as it is
            self.sums = sums
        self.states.keep(new, rounded)
        return new


class _Rounded:
    """The last tensor that a kernel wrote both in float32 and rounded, so that nobody has to round it again."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.keep(None, None)

    def keep(self, exact: Tensor | None, rounded: Tensor | None) -> None:
        # What is held here, autograd does not add to: where gradients of two sources meet, it makes a new tensor.
        self.exact, self.rounded, self.version = exact, rounded, _version(exact)

    def of(self, tensor: Tensor) -> Tensor:
        """A tensor, rounded."""
        unchanged = tensor is self.exact and _version(tensor) == self.version
        return self.rounded if unchanged else tensor.detach().to(self.dtype)


def _version(tensor: Tensor | None) -> int | None:
    """How often a tensor was changed in place, where PyTorch counts that."""
    return None if tensor is None or tensor.is_inference() else tensor._version


class _Collect(torch.autograd.Function):
    """Hands out the gradients of the weights after all steps have added theirs.

    The sums are the gradients of placeholders, which every step takes and passes on to the next: so the backward pass
    carries them from the last step to the first, and each adds its share in place.
    """

    @staticmethod
    def forward(ctx, look: Tensor, weights: Tensor, biases: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Placeholders for the sums: tensors without memory of their own."""
        parts = kernels.parts_of(weights)
        shapes = (look.shape, (parts, *weights.shape), (parts, *biases.shape))
        return tuple(weights.new_empty(()).expand(shape) for shape in shapes)

    @staticmethod
    @once_differentiable
    def backward(ctx, of_look: Tensor, of_weights: Tensor, of_biases: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return of_look, of_weights.sum(dim=0), of_biases.sum(dim=0)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        state: Tensor,
        rounded_state: Tensor,
        look: Tensor,
        weights: Tensor,
        biases: Tensor,
        of_look: Tensor,
        of_weights: Tensor,
        of_biases: Tensor,
        gradients: _Rounded,
        keep: bool,
    ) -> tuple[Tensor, ...]:
        """The state after a step, in float32 and rounded; and the placeholders."""
        layers, channels = biases.shape
        seen = F.conv2d(rounded_state, look, padding=1).contiguous(memory_format=torch.channels_last)
        hidden = rows_of(seen)  # (B H W, C)
        # What each layer but the last writes. Without a backward pass four take turns, so that they stay in the cache.
        written = hidden.new_empty(layers - 1 if keep else 4, *hidden.shape)
        for layer in range(0, layers - 1, 2):
            inner, outer = written[layer % len(written)], written[(layer + 1) % len(written)]
            kernels.pointwise(hidden, weights[layer], inner, bias=biases[layer], elu=True, turned=True)
            kernels.pointwise(inner, weights[layer + 1], outer, bias=biases[layer + 1], added=hidden)
            hidden = outer
        new, new_rounded = torch.empty_like(state), torch.empty_like(rounded_state)
        kernels.pointwise(
            hidden,
            weights[-1],
            rows_of(new),
            bias=biases[-1],
            added=rows_of(state),
            copy=rows_of(new_rounded),
            turned=True,
        )
        if keep:
            ctx.save_for_backward(rounded_state, seen, written, look, weights)
        ctx.gradients = gradients
        ctx.mark_non_differentiable(new_rounded)
        ctx.set_materialize_grads(False)  # no zeros for it, nor for sums that nobody has begun
        return new, new_rounded, of_look, of_weights, of_biases

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor | None, _: Tensor, *sums: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:  # the state was not used, only steps after it were
            return None, None, None, None, None, *sums, None, None
        rounded_state, seen, written, look, weights = ctx.saved_tensors
        layers, parts = len(weights), kernels.parts_of(weights)
        if sums[0] is None:
            of_look = torch.zeros_like(look, dtype=torch.float32)
            of_weights = weights.new_zeros(parts, *weights.shape, dtype=torch.float32)
            of_biases = weights.new_zeros(parts, *weights.shape[:2], dtype=torch.float32)
        else:
            of_look, of_weights, of_biases = sums
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_change = rows_of(ctx.gradients.of(gradient))
        # Of what the other layers compute, before their activation and before the input of their block is added.
        of_layers = torch.empty_like(written)  # (L - 1, B H W, C)
        of_seen = torch.empty_like(seen)
        kernels.pointwise(of_change, weights[-1], of_layers[-1], backward=True, turned=True)
        for layer in range(layers - 3, -1, -2):  # the first layer of each block, from the last block on
            inner, outer = of_layers[layer], of_layers[layer + 1]
            kernels.pointwise(outer, weights[layer + 1], inner, backward=True, elu_result=written[layer])
            below = of_layers[layer - 1] if layer else rows_of(of_seen)
            kernels.pointwise(inner, weights[layer], below, backward=True, added=outer, turned=True)
        kernels.add_weight_gradients(of_layers, of_change, rows_of(seen), written, of_weights, of_biases)
        of_state, of_this_look, _ = torch.ops.aten.convolution_backward(
            of_seen, rounded_state, look, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
        )
        of_look += of_this_look
        of_state = of_state.contiguous(memory_format=torch.channels_last)
        of_whole, rounded = torch.empty_like(gradient), torch.empty_like(of_state)
        kernels.add(rows_of(gradient), rows_of(of_state), rows_of(of_whole), copy=rows_of(rounded))
        ctx.gradients.keep(of_whole, rounded)
        return of_whole, None, None, None, None, of_look, of_weights, of_biases, None, None


def rows_of(state: Tensor) -> Tensor:
    """A state as a matrix with a row for each cell: `(B, C, H, W)`, channels last in memory -> `(B H W, C)`, a view."""
    return state.permute(0, 2, 3, 1).view(-1, state.shape[1])
