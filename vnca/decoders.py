"""Decoders: from a latent `(B, D)` to the logits `(B, 1, 28, 28)` of Bernoulli pixels.

All are built for images of 28 × 28 pixels, worked on as 32 × 32 (two pixels of border on each side), so that four
doublings lead from 2 × 2 to the whole.
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vnca import cells, hardware
from vnca.checks import whole

IMAGE_SIZE = 28
BORDER = 2
GRID_SIZE = IMAGE_SIZE + 2 * BORDER  # 32, a power of two
FUSED_CHANNELS = (64, 128, 256)  # for which `vnca.fused` has kernels
MAX_GRAPHS = 64  # of a compiled update: 5 sizes of grid, each with gradients and without, and to spare


def crop(grid: Tensor) -> Tensor:
    """The image inside a 32 × 32 grid: `(B, C, 32, 32)` -> `(B, C, 28, 28)`."""
    return grid[:, :, BORDER:-BORDER, BORDER:-BORDER]


def pixel_logits(state: Tensor) -> Tensor:
    """Channel 0 of the last grid, cropped to the image: `(B, C, 32, 32)` -> `(B, 1, 28, 28)`."""
    # By way of (B, H, W, C), so that the gradient lies in memory like the state and no step has to copy it.
    return crop(state.permute(0, 2, 3, 1)[..., :1].permute(0, 3, 1, 2))


def _require_latents(z: Tensor, latent_size: int) -> None:
    if not isinstance(z, Tensor):
        raise ValueError(f"latents are a torch.Tensor (B, {latent_size}), not a {type(z).__name__}")
    if z.ndim != 2 or z.shape[1] != latent_size:
        raise ValueError(f"this decoder takes latents (B, {latent_size}), not {tuple(z.shape)}")


def _range(decoder: nn.Module, min_steps: int, max_steps: int) -> list[int]:
    min_steps, max_steps = whole(min_steps=min_steps, max_steps=max_steps)
    if not 0 <= min_steps <= max_steps:
        name = type(decoder).__name__
        raise ValueError(f"{name} needs 0 <= min_steps <= max_steps, not {min_steps} and {max_steps}")
    return [min_steps, max_steps]


class ConvDecoder(nn.Module):
    """The baseline: one linear layer, then five 5 × 5 convolutions that mirror the encoder.

    Four transposed convolutions of stride 2 lead from 2 × 2 to 32 × 32; a last convolution writes the logit. Unlike
    the cells of a VNCA, each layer has weights of its own.

    Args:
        latent_size: size `D` of the latent.
        width: channels at 32 × 32; each of the four layers before it has twice as many as the one after it.

    Raises:
        ValueError: if an argument is no whole number or below 1.
    """

    def __init__(self, latent_size: int = 256, width: int = 32):
        super().__init__()
        latent_size, width = whole(latent_size=latent_size, width=width)
        if latent_size < 1 or width < 1:
            raise ValueError(f"ConvDecoder needs latent_size and width >= 1, not {latent_size} and {width}")
        self.latent_size = latent_size
        layers: list[nn.Module] = [
            nn.Linear(latent_size, 16 * width * 2 * 2),
            nn.Unflatten(1, (16 * width, 2, 2)),
            nn.ELU(inplace=True),
        ]
        for channels in (16 * width, 8 * width, 4 * width, 2 * width):  # 2 -> 4 -> 8 -> 16 -> 32
            up = nn.ConvTranspose2d(channels, channels // 2, 5, stride=2, padding=2, output_padding=1)
            layers += [up, nn.ELU(inplace=True)]
        layers.append(nn.Conv2d(width, 1, 5, padding=2))
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Logits `(B, 1, 28, 28)` for latents `(B, D)`; raises `ValueError` on another shape."""
        _require_latents(z, self.latent_size)
        return crop(self.layers(z))  # (B, 1, 32, 32) -> (B, 1, 28, 28)


class CellDecoder(nn.Module):
    """What decoders made of cells share: one update, and the step that adds it to the state.

    Attributes:
        latent_size: size `D` of the latent.
        channels: channels `C` of a cell, at least as many.
        update: maps a cell state to its change, both `(B, C, H, W)`; of a persistent decoder both without the age.
        recompute: compute each step a second time in the backward pass instead of keeping what is inside it. A step
            then keeps its state alone; training takes about a third more arithmetic. False unless set.
        fuse: take the steps by the kernels of `vnca.fused` where they can. True unless set.
    """

    latent_size: int
    channels: int
    update: nn.Module
    recompute = False
    fuse = True

    def seed(self, z: Tensor, size: int) -> Tensor:
        """The first grid, with the latent in every cell, in its last channels: `(B, D)` -> `(B, C, size, size)`.

        Raises:
            ValueError: if `z` has another shape.
        """
        return cells.seed(F.pad(self._checked(z), (self.channels - self.latent_size, 0)), size)

    def _checked(self, z: Tensor) -> Tensor:
        """Latents `(B, D)` in the type of the weights (those of NumPy are float64); `ValueError` for another shape."""
        _require_latents(z, self.latent_size)
        return z.to(next(self.parameters()).dtype)

    def step(self, state: Tensor) -> Tensor:
        """One step: `(B, C, H, W)` -> `(B, C, H, W)`."""
        if self.recompute and torch.is_grad_enabled():
            return state + checkpoint(self.update, state, use_reentrant=False, preserve_rng_state=False)
        return state + self.update(state)

    def stepper(self) -> Callable[[Tensor], Tensor]:
        """What takes all steps of one growth: `step`, or on a GPU where it can, the same in fewer kernels."""
        if self.recompute or not self.fuse or not _can_fuse(self.update):
            return self.step
        from vnca.fused import FusedSteps  # needs Triton

        return FusedSteps(self.update, torch.bfloat16)

    def require_steps(self, state: Tensor, steps: int) -> None:
        """Raise `ValueError` unless a state `(B, C, H, W)` of these cells can take so many steps."""
        cells.require_state(state)
        if state.shape[1] != self.channels:
            raise ValueError(f"the cells of this decoder have {self.channels} channels, not {state.shape[1]}")
        if steps < 0:
            raise ValueError(f"the number of steps is at least 0, not {steps}")

    def run(self, state: Tensor, steps: int) -> Tensor:
        """The state after `steps` more steps, on a grid of any size: `(B, C, H, W)` -> `(B, C, H, W)`.

        Raises:
            ValueError: if the state has another number of dimensions or channels, or `steps` is negative.
        """
        self.require_steps(state, steps)
        for _ in range(steps):
            state = self.step(state)
        return state


def _can_fuse(update: nn.Module) -> bool:
    """Whether `vnca.fused` has kernels for an update, here and under the present autocast."""
    weight = next(update.parameters())
    if not isinstance(update, cells.Update) or not weight.is_cuda:
        return False
    channels, hidden = update.layers[0].in_channels, update.layers[0].out_channels
    return (
        channels == hidden in FUSED_CHANNELS
        and len(update.layers) > 2  # it has residual blocks
        and torch.is_autocast_enabled("cuda")
        and torch.get_autocast_dtype("cuda") == torch.bfloat16
        and hardware.has_bfloat16(weight.device)
        and weight.device.index == torch.cuda.current_device()  # there Triton launches, wherever the tensors are
        and _has_triton()
    )


def _has_triton() -> bool:
    """Whether there is a Triton that knows all that `vnca.kernels` asks of it."""
    try:
        import triton
    except ImportError:
        return False
    return tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 2)


def compile_update(decoder: CellDecoder, **options) -> None:
    """Compile the update of a decoder in place; its parameters and their names stay.

    Each size of grid gets a graph of its own the first time it comes by, one with gradients and one without. PyTorch
    would give up after 8 graphs and go on uncompiled; this raises the limit, and beyond it there is an error instead.
    Batches of another size need graphs of their own, so keep it the same.

    Args:
        decoder: a decoder made of cells.
        options: further options of `torch.compile`, such as `mode` or `backend`.

    Raises:
        ValueError: if the decoder has no cells.
    """
    if not isinstance(decoder, CellDecoder):
        raise ValueError(f"a {type(decoder).__name__} has no update to compile: take a decoder made of cells")
    from torch import _dynamo  # takes seconds to import, and few need it

    _dynamo.config.cache_size_limit = max(MAX_GRAPHS, _dynamo.config.cache_size_limit)
    decoder.fuse = False
    decoder.update.compile(fullgraph=True, dynamic=False, **options)


class DoublingDecoder(CellDecoder):
    """The doubling VNCA: a seed of 2 × 2 cells that grows, by one shared update and four doublings, into an image.

    Without arguments it is the decoder of Palm et al., ICLR 2022, with 1,182,208
    parameters. Each of its five stages (2 × 2, 4 × 4, 8 × 8, 16 × 16, 32 × 32) takes `steps` steps; a doubling leads
    from one stage to the next. The logits are cropped to the image; the paper's code has some for its border, too.

    Args:
        channels: channels of a cell, which is also the size `D` of the latent.
        hidden: channels inside the update.
        steps: steps in each stage, so `5 * steps` in all.
        residual_blocks: residual blocks inside the update.

    Raises:
        ValueError: if `steps` is negative or no whole number, or the update does not accept the other arguments.
    """

    doublings = 4  # from 2 x 2 to 32 x 32

    def __init__(self, channels: int = 256, hidden: int = 256, steps: int = 8, residual_blocks: int = 4):
        super().__init__()
        channels, steps = whole(channels=channels, steps=steps)
        if steps < 0:
            raise ValueError(f"DoublingDecoder needs steps >= 0, not {steps}")
        self.channels = self.latent_size = channels
        self.steps = steps
        self.update = cells.Update(channels, hidden, residual_blocks)

    def schedule(self) -> list[tuple[str, int]]:
        """What `grow` does, in order: pairs of `"seed"`, `"step"` or `"double"` and the side of the grid after it."""
        plan = [("seed", 2)]
        for stage in range(self.doublings + 1):
            if stage > 0:
                plan.append(("double", 2 * 2**stage))
            plan += [("step", 2 * 2**stage)] * self.steps
        return plan

    def grow(self, z: Tensor) -> Iterator[Tensor]:
        """Yield the cell state `(B, C, H, W)` after the seed, after each doubling and after each step.

        Args:
            z: latents `(B, D)`.

        Raises:
            ValueError: at the first state, if `z` has another shape.
        """
        step = self.stepper()
        state = self.seed(z, 2)  # (B, C, 2, 2)
        for event, _ in self.schedule():
            if event == "double":
                state = cells.double(state)  # (B, C, H, W) -> (B, C, 2H, 2W)
            elif event == "step":
                state = step(state)
            yield state

    def forward(self, z: Tensor) -> Tensor:
        """Logits `(B, 1, 28, 28)` for latents `(B, D)`: channel 0 of the last grid, cropped to the image."""
        final = deque(self.grow(z), maxlen=1).pop()  # (B, C, 32, 32)
        return pixel_logits(final)  # (B, 1, 28, 28)


class PersistentDecoder(DoublingDecoder):
    """A doubling VNCA that goes on living on its last grid and grows up there. It is not in the paper.

    It grows as `DoublingDecoder` does. On the 32 × 32 grid it is then judged, and trained with a pool and damage
    (`vnca.objectives.PersistentElbo`), after every number of steps from `min_steps` to `max_steps`; `grow` and
    `forward` take their mean, `last_steps`, so that a latent always gives the same image.

    Cells of the last grid do not divide any more, and so they age. The age is one more channel, the last one, from 0
    after the last doubling to 1 after 32 steps. What the update wants to change is multiplied by one minus the age, as
    in `cells.MaturingUpdate`. So a grown-up cell stays as it is. Damage sets the age to zero, too: the cells of a hole
    are young. The update neither reads nor writes the age. So the weights are those of a `DoublingDecoder`, and this
    one can begin with those of one that was trained.

    Args:
        channels, hidden, steps, residual_blocks: of the growth, as for `DoublingDecoder`; `steps` in each stage but
            the last. A cell has one channel more than `channels`, its age.
        min_steps, max_steps: the range of steps on the last grid in training.

    Raises:
        ValueError: unless `0 <= min_steps <= max_steps` are whole numbers, or as `DoublingDecoder` does.
    """

    def __init__(
        self,
        channels: int = 256,
        hidden: int = 256,
        steps: int = 8,
        residual_blocks: int = 4,
        min_steps: int = 8,
        max_steps: int = 24,
    ):
        super().__init__(channels, hidden, steps, residual_blocks)
        self.channels += 1
        self.min_steps, self.max_steps = _range(self, min_steps, max_steps)
        self.last_steps = (self.min_steps + self.max_steps) // 2

    def schedule(self) -> list[tuple[str, int]]:
        """What `grow` does, as in `DoublingDecoder`, but with `last_steps` on the last grid."""
        plan = super().schedule()
        return plan[: len(plan) - self.steps] + [("step", GRID_SIZE)] * self.last_steps

    def seed(self, z: Tensor, size: int) -> Tensor:
        """The first grid: in every cell the latent, and an age of zero: `(B, D)` -> `(B, D + 1, size, size)`.

        Raises:
            ValueError: if `z` has another shape.
        """
        return cells.seed(F.pad(self._checked(z), (0, 1)), size)

    def step(self, state: Tensor) -> Tensor:
        """One step, in which cells of the last grid age: `(B, C, H, W)` -> `(B, C, H, W)`."""
        return self._live(super().step, state)

    def stepper(self) -> Callable[[Tensor], Tensor]:
        """As in `CellDecoder`."""
        step = super().stepper()
        return step if step == self.step else partial(self._live, step)

    def _live(self, step: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
        state, age = state[:, :-1], state[:, -1:].detach()  # (B, C - 1, H, W), (B, 1, H, W)
        state = state.contiguous(memory_format=torch.channels_last)
        state = torch.lerp(state, step(state).to(state.dtype), 1 - age)
        if state.shape[-1] == GRID_SIZE:
            age = age + cells.aging(age)
        return torch.cat([state, age], dim=1)  # (B, C, H, W)

    def settle(self, z: Tensor) -> Tensor:
        """The grid from which training counts the steps, after the last doubling: `(B, D)` -> `(B, D + 1, 32, 32)`."""
        states = islice(self.grow(z), len(self.schedule()) - self.last_steps)
        return deque(states, maxlen=1).pop()


class RegrowingDecoder(CellDecoder):
    """The regrowing (non-doubling) VNCA: a whole grid of copies of the latent takes one step after another.

    Without arguments it is that of Palm et al., ICLR 2022, with 163,968 parameters; their code works on 28 × 28
    cells, this class on 32 × 32 like the others. Trained with a pool (`vnca.objectives.PersistentElbo`), an image
    stays over many steps and closes holes. Training judges it after every number of steps from `min_steps` to
    `max_steps`; `grow` and `forward` take their mean, `steps`, so that a latent always gives the same image.

    In the paper a cell has as many channels as the latent has numbers, and the update writes them all. Given more,
    a cell keeps its copy of the latent as a genome in the last ones, has an age in channel 1, and grows up: see
    `cells.MaturingUpdate`. All channels but the genome begin at zero. This is not in the paper.

    Args:
        channels: channels of a cell, those of its genome and its age included.
        hidden: channels inside the update.
        min_steps, max_steps: the range of steps in training.
        latent_size: size `D` of the latent. At most `channels - 2`: then the cells have a genome and an age. Or
            `channels`, which None stands for: then they have neither.

    Raises:
        ValueError: unless `0 <= min_steps <= max_steps` are whole numbers, or if the update does not accept the other
            arguments.
    """

    def __init__(
        self,
        channels: int = 128,
        hidden: int = 128,
        min_steps: int = 32,
        max_steps: int = 64,
        latent_size: int | None = None,
    ):
        super().__init__()
        self.min_steps, self.max_steps = _range(self, min_steps, max_steps)
        self.steps = (self.min_steps + self.max_steps) // 2
        latent_size = channels if latent_size is None else latent_size
        self.channels, self.latent_size = whole(channels=channels, latent_size=latent_size)
        if self.latent_size == channels:
            self.update = cells.SimpleUpdate(channels, hidden)
        else:
            self.update = cells.MaturingUpdate(channels, hidden, self.latent_size)

    def schedule(self) -> list[tuple[str, int]]:
        """What `grow` does, in order: pairs of `"seed"` or `"step"` and the side of the grid."""
        return [("seed", GRID_SIZE)] + [("step", GRID_SIZE)] * self.steps

    def seed(self, z: Tensor, size: int = GRID_SIZE) -> Tensor:
        """The first grid, by default the whole one: `(B, D)` -> `(B, C, size, size)`; see `CellDecoder.seed`."""
        return super().seed(z, size)

    def settle(self, z: Tensor) -> Tensor:
        """The grid from which training counts the steps, the seed: `(B, D)` -> `(B, C, 32, 32)`."""
        return self.seed(z)

    def grow(self, z: Tensor) -> Iterator[Tensor]:
        """Yield the cell state `(B, C, 32, 32)` after the seed and after each of `steps` steps.

        Args:
            z: latents `(B, D)`.

        Raises:
            ValueError: at the first state, if `z` has another shape.
        """
        state = self.seed(z)  # (B, C, 32, 32)
        yield state
        for _ in range(self.steps):
            state = self.step(state)
            yield state

    def forward(self, z: Tensor) -> Tensor:
        """Logits `(B, 1, 28, 28)` for latents `(B, D)`: channel 0 after `steps` steps, cropped to the image."""
        final = self.run(self.seed(z), self.steps)  # (B, C, 32, 32)
        return pixel_logits(final)  # (B, 1, 28, 28)


DECODERS = {
    "conv": ConvDecoder,
    "doubling": DoublingDecoder,
    "persistent": PersistentDecoder,
    "regrowing": RegrowingDecoder,
}
