"""An update's forward and backward pass as one CUDA graph: a GPU then gets all its kernels at once.

A step of the cells on a small grid takes a GPU a few microseconds, less than it takes Python to ask for it. A graph is
recorded once and replayed as a whole.
"""

import gc
from collections.abc import Callable

import torch
from torch import Tensor

EAGER = 3  # calls before the recording, so that all libraries have chosen their kernels


class Recorded:
    """A function of tensors that leaves gradients behind; its first calls are ordinary, then it is replayed.

    Args:
        function: takes tensors by name, always of the same shapes; returns tensors and sets `.grad` of the parameters
            that it depends on. It draws no random numbers and makes no choice that depends on values.
        parameters: those parameters. Their gradients are overwritten, not added to.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], parameters: list[torch.nn.Parameter]):
        self.function, self.parameters = function, parameters
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, **tensors: Tensor) -> tuple[Tensor, ...]:
        """What `function` returns. It is valid until the next call."""
        if self.graph is None:
            for parameter in self.parameters:
                parameter.grad = None
            if self.calls < EAGER:
                self.calls += 1
                return self.function(**tensors)
            self.inputs = {name: tensor.clone() for name, tensor in tensors.items()}
            gc.collect()  # nodes of earlier updates belong to the ordinary stream, which must not be recorded
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.outputs = self.function(**self.inputs)
        for name, tensor in tensors.items():
            self.inputs[name].copy_(tensor)
        self.graph.replay()
        return self.outputs
