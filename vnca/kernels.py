"""The GPU kernels of `vnca.fused`, in Triton: a pointwise layer, the gradients of its weights, and a sum.

The first two multiply tall matrices, with one row for each cell, and work on tiles of rows. Which tiles are fastest
depends on the GPU and on the number of rows, so a few are tried the first time that a large number of rows comes by.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

FEW_ROWS = 8192  # below, large tiles are too few to keep a GPU busy, and there is little to gain by trying
PROGRAMS = 132  # of the kernel for gradients of weights: one for each multiprocessor of a large GPU
COLUMNS = 128  # of a layer's output, which one of these programs takes at most


def pointwise(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    elu: bool = False,
    added: Tensor | None = None,
    copy: Tensor | None = None,
    backward: bool = False,
    elu_result: Tensor | None = None,
    turned: bool = False,
) -> None:
    """A pointwise layer of all cells, `out = elu(x weightᵀ + bias) + added`, or a step of its backward pass.

    Args:
        x: `(N, C)`, bfloat16.
        weight: `(C, C)`, bfloat16.
        out: where the result goes, `(N, C)`. It must be none of the tensors that are read.
        bias: `(C,)`, float32.
        elu: whether to apply the ELU.
        added: `(N, C)`.
        copy: where the result goes a second time, `(N, C)`, rounded to the type of this tensor.
        backward: multiply by `weight` and not by its transpose: `x` is the gradient of what the layer computed.
        elu_result: what the ELU before that layer returned, `(N, C)`; `out` is then the gradient of what went into it.
        turned: begin with the last rows. A layer that goes the other way than the one before it begins with rows that
            are still in the cache.

    Raises:
        ValueError: if `N C` is 2³¹ or more, which the kernels cannot count.
    """
    rows, channels = x.shape
    if rows * channels >= 2**31:
        raise ValueError(
            f"the GPU takes at most {(2**31 - 1) // channels:,} cells of {channels} channels at once, not {rows:,}: "
            "decode fewer images at once"
        )

    def programs(tile: dict) -> tuple[int]:
        tiles = triton.cdiv(rows, tile["ROWS"])
        if tile["STAYING"]:
            tiles = min(tiles, _multiprocessors(x.device))
        return (tiles * (channels // tile["COLUMNS"]),)

    _pointwise[programs](
        x,
        weight,
        bias,
        added,
        elu_result,
        out,
        copy,
        rows,
        CHANNELS=channels,
        ELU=elu,
        BACKWARD=backward,
        TURNED=turned,
    )


def parts_of(weights: Tensor) -> int:
    """Into how many parts the rows are split for the gradients of weights `(L, C, C)`: sums are kept for each part."""
    layers, channels, _ = weights.shape
    return max(1, PROGRAMS // (layers * (channels // min(COLUMNS, channels))))


def add_weight_gradients(
    gradients: Tensor, last_gradient: Tensor, first_input: Tensor, inputs: Tensor, weights: Tensor, biases: Tensor
) -> None:
    """Add the gradients of the weights and biases of L pointwise layers to sums.

    No two programs add to the same sum, so the same tiles give the same numbers. But tiles are chosen by the time that
    they take, and the sums of two runs can differ in their last bits.

    Args:
        gradients: of what all layers but the last computed, `(L - 1, N, C)`, bfloat16.
        last_gradient: of what the last one computed, `(N, C)`, likewise.
        first_input: of the first layer, `(N, C)`, bfloat16.
        inputs: of the others, `(L - 1, N, C)`, likewise.
        weights: sums for P parts of the rows, `(P, L, C, C)`, float32. Few rows add to the first parts only.
        biases: `(P, L, C)`, likewise.
    """
    (parts, layers, channels), rows = biases.shape, len(first_input)
    parts = max(1, min(parts, rows // 256))
    columns = min(COLUMNS, channels)
    _add_weight_gradients[(channels // columns, parts, layers)](
        gradients,
        last_gradient,
        first_input,
        inputs,
        weights,
        biases,
        rows,
        triton.cdiv(rows, parts),
        layers,
        CHANNELS=channels,
        COLUMNS=columns,
    )


def add(a: Tensor, b: Tensor, out: Tensor, copy: Tensor) -> None:
    """`out = a + b`, and a second time in `copy`, rounded to the type of that one: `(N, C)` each."""
    size = a.numel()
    _add[(triton.cdiv(size, 1024),)](a, b, out, copy, size, SIZE=1024)


def _worth_trying(tiles: list[triton.Config], arguments: dict, **constants) -> list[triton.Config]:
    few = arguments["rows"] < FEW_ROWS
    return [t for t in tiles if t.kwargs["COLUMNS"] <= constants["CHANNELS"] and (t.kwargs["ROWS"] == 32) == few]


def _fitting(tiles: list[triton.Config], arguments: dict, **constants) -> list[triton.Config]:
    warps = 8 if constants["CHANNELS"] > 128 else 4  # with fewer a thread had more sums than registers
    fitting = [t for t in tiles if t.num_warps == warps]
    return fitting[:1] if arguments["rows"] < FEW_ROWS else fitting


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


TIMED = functools.partial(triton.testing.do_bench, warmup=5, rep=20)  # milliseconds


@triton.autotune(
    configs=[
        triton.Config({"ROWS": rows, "COLUMNS": columns, "STAYING": staying}, num_warps=warps, num_stages=stages)
        for rows, columns, staying, warps, stages in (
            (64, 256, True, 8, 1),
            (64, 128, True, 4, 1),
            (128, 256, False, 8, 3),
            (128, 128, False, 8, 3),
            (128, 128, False, 4, 3),
            (64, 256, False, 4, 2),
            (64, 256, False, 8, 2),
            (64, 128, False, 4, 3),
            (64, 64, False, 4, 3),
            (32, 64, False, 4, 3),
        )
    ],
    key=["rows", "CHANNELS", "ELU", "BACKWARD", "TURNED"],
    prune_configs_by={"early_config_prune": _worth_trying},
    do_bench=TIMED,
)
@triton.jit
def _pointwise(
    x,
    weight,
    bias,
    added,
    elu_result,
    out,
    copy,
    rows,
    CHANNELS: tl.constexpr,
    ELU: tl.constexpr,
    BACKWARD: tl.constexpr,
    TURNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAYING: tl.constexpr,
):
    # Programs with the same rows follow each other, so that these are still in the cache.
    tiles: tl.constexpr = CHANNELS // COLUMNS
    row = (tl.program_id(0) // tiles) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    constants = None if bias is None else tl.load(bias + column)
    if STAYING:  # in shared memory: the weights of this program, while rows pass by that would else fetch them again
        every = tl.arange(0, CHANNELS)
        coming = _numbers(x, row, every, rows, CHANNELS, TURNED)
        factors = _factors(weight, every, column, CHANNELS, BACKWARD)
        step = tl.num_programs(0) // tiles * ROWS
        for _ in range(tl.program_id(0) // tiles * ROWS, rows, step):
            some = coming
            coming = _numbers(x, row + step, every, rows, CHANNELS, TURNED)  # on their way while these are multiplied
            slope = None if elu_result is None else _numbers(elu_result, row, column, rows, CHANNELS, TURNED)
            more = None if added is None else _numbers(added, row, column, rows, CHANNELS, TURNED)
            total = tl.dot(some, factors)
            _finish(total, constants, slope, more, out, copy, row, column, rows, CHANNELS, ELU, TURNED)
            row += step
    else:
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for start in range(0, CHANNELS, 64):
            inner = start + tl.arange(0, 64)
            some = _numbers(x, row, inner, rows, CHANNELS, TURNED)
            total = tl.dot(some, _factors(weight, inner, column, CHANNELS, BACKWARD), total)
        slope = None if elu_result is None else _numbers(elu_result, row, column, rows, CHANNELS, TURNED)
        more = None if added is None else _numbers(added, row, column, rows, CHANNELS, TURNED)
        _finish(total, constants, slope, more, out, copy, row, column, rows, CHANNELS, ELU, TURNED)


@triton.jit
def _numbers(matrix, row, column, rows, CHANNELS: tl.constexpr, TURNED: tl.constexpr):
    place = _place(row, column, rows, CHANNELS, TURNED)
    return tl.load(matrix + place, mask=(row < rows)[:, None], other=0.0)


@triton.jit
def _place(row, column, rows, CHANNELS: tl.constexpr, TURNED: tl.constexpr):
    if TURNED:
        return (rows - 1 - row)[:, None] * CHANNELS + column[None, :]
    else:
        return row[:, None] * CHANNELS + column[None, :]


@triton.jit
def _factors(weight, inner, column, CHANNELS: tl.constexpr, BACKWARD: tl.constexpr):
    if BACKWARD:
        return tl.load(weight + inner[:, None] * CHANNELS + column[None, :])
    else:
        return tl.load(weight + column[None, :] * CHANNELS + inner[:, None])


@triton.jit
def _finish(
    total,
    bias,
    slope,
    more,
    out,
    copy,
    row,
    column,
    rows,
    CHANNELS: tl.constexpr,
    ELU: tl.constexpr,
    TURNED: tl.constexpr,
):
    there = (row < rows)[:, None]
    if bias is not None:
        total += bias[None, :]
    if ELU:
        total = tl.where(total > 0, total, tl.exp(tl.minimum(total, 0.0)) - 1)
    if slope is not None:  # that of the ELU is 1, or where its result is negative, the result plus 1
        total *= tl.minimum(slope.to(tl.float32), 0.0) + 1
    if more is not None:  # `where`, because Triton would begin the product's sum with `more`, and wait for it
        total = tl.where(there, total, 0.0) + more.to(tl.float32)
    place = _place(row, column, rows, CHANNELS, TURNED)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=there)
    if copy is not None:
        tl.store(copy + place, total.to(copy.dtype.element_ty), mask=there)


@triton.autotune(
    configs=[
        triton.Config({"ROWS": rows}, num_warps=warps, num_stages=stages)
        for warps in (4, 8)
        for rows, stages in ((32, 4), (64, 3), (128, 2))  # on an A100 the first alone keeps its sums in registers
    ],
    key=["rows", "CHANNELS"],
    prune_configs_by={"early_config_prune": _fitting},
    restore_value=["weights", "biases"],  # each try adds to them
    do_bench=TIMED,
)
@triton.jit
def _add_weight_gradients(
    gradients,
    last_gradient,
    first_input,
    inputs,
    weights,
    biases,
    rows,
    rows_each,
    layers,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    part, layer = tl.program_id(1), tl.program_id(2)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    every = tl.arange(0, CHANNELS)
    whole = layer.to(tl.int64) * rows * CHANNELS
    if layer == layers - 1:
        gradients = last_gradient
    else:
        gradients += whole
    if layer == 0:
        inputs = first_input
    else:
        inputs += whole - rows * CHANNELS
    total = tl.zeros((COLUMNS, CHANNELS), dtype=tl.float32)
    # Gradients of biases are sums over rows: a product with ones. If anything else than products took what is loaded,
    # Triton would overwrite it, on Hopper, while a product still reads it.
    ones = tl.full((ROWS, 16), 1.0, dtype=gradients.dtype.element_ty)
    sums = tl.zeros((COLUMNS, 16), dtype=tl.float32)  # 16 times the same, because a product has no fewer columns
    end = tl.minimum((part + 1) * rows_each, rows)
    for start in range(part * rows_each, end, ROWS):
        row = start + tl.arange(0, ROWS)
        there = row < end
        gradient = tl.load(gradients + row[None, :] * CHANNELS + column[:, None], mask=there[None, :], other=0.0)
        some = tl.load(inputs + row[:, None] * CHANNELS + every[None, :], mask=there[:, None], other=0.0)
        total = tl.dot(gradient, some, total)
        sums = tl.dot(gradient, ones, sums)
    place = part * layers + layer
    weights += place * CHANNELS * CHANNELS + column[:, None] * CHANNELS + every[None, :]
    biases += place * CHANNELS + column
    tl.store(weights, tl.load(weights) + total)
    tl.store(biases, tl.load(biases) + tl.max(sums, axis=1))


@triton.jit
def _add(a, b, out, copy, size, SIZE: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    there = place < size
    total = tl.load(a + place, mask=there).to(tl.float32) + tl.load(b + place, mask=there).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=there)
    tl.store(copy + place, total.to(copy.dtype.element_ty), mask=there)
