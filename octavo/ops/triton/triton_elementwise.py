"""Operations value by value, computed in float32 and rounded as the reference says."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.ops.specs import Gate, RotaryTable
from octavo.ops.torch import TorchBackend
from octavo.ops.triton.activation_kernels import activated, gate_of, sigmoid
from octavo.ops.triton.launching import ROWS, cdiv, columns_of, rounded, together, warps_of


@triton.jit
def _xielu(x, shape):
    alpha_p, alpha_n, beta, eps = tl.load(shape), tl.load(shape + 1), tl.load(shape + 2), tl.load(shape + 3)
    below = (tl.exp(tl.minimum(x, eps, propagate_nan=tl.PropagateNan.ALL)) - 1.0 - x) * alpha_n
    return tl.where(x > 0, x * x * alpha_p, below) + x * beta


@triton.jit
def each_kernel(
    x,
    y,
    factors,
    out,
    rows,
    width,
    x_stride,
    y_stride,
    scale,
    OPERATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One operation on `x` `[rows, width]`, `y` of the same shape, and factors of rows or columns."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    is_row, is_column, at = row < rows, column < width, row.to(tl.int64)
    seen = is_row & is_column
    value = tl.load(x + at * x_stride + column, mask=seen, other=0.0).to(tl.float32)
    if OPERATION == "activate":
        result = activated(value, ACTIVATION)
    elif OPERATION == "xielu":
        result = _xielu(value, factors)
    elif OPERATION == "scale_rows":
        result = value * tl.load(factors + row, mask=is_row, other=0.0)
    elif OPERATION == "scale_columns":
        result = value * tl.load(factors + column, mask=is_column, other=0.0)
    else:
        other = tl.load(y + at * y_stride + column, mask=seen, other=0.0).to(tl.float32)
        if OPERATION == "multiply":
            result = value * activated(other, ACTIVATION)
        elif OPERATION == "add":
            result = value + other * scale
        else:
            tl.static_assert(OPERATION == "add_gated")
            weight = sigmoid(tl.load(factors + row, mask=is_row, other=0.0).to(tl.float32))
            result = value + rounded(other * weight, out.dtype.element_ty).to(tl.float32)
    tl.store(out + at * width + column, rounded(result, out.dtype.element_ty), mask=seen)


@triton.jit
def gated_kernel(
    x,
    cutoffs,
    out,
    rows,
    size,
    stride,
    ACTIVATION: tl.constexpr,
    THRESHOLD: tl.constexpr,
    LIMIT: tl.constexpr,
    UP_OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    seen, at = (row < rows) & (column < size), row.to(tl.int64)
    first = tl.load(x + at * stride + column, mask=seen, other=0.0).to(tl.float32)
    up = tl.load(x + at * stride + size + column, mask=seen, other=0.0).to(tl.float32)
    if cutoffs is not None:
        above = first - tl.load(cutoffs + row, mask=row < rows, other=0.0)
        first = tl.maximum(above, 0.0, propagate_nan=tl.PropagateNan.ALL)
    result = gate_of(first, up, ACTIVATION, THRESHOLD, LIMIT, UP_OFFSET)
    tl.store(out + at * size + column, rounded(result, out.dtype.element_ty), mask=seen)


@triton.jit
def angles_kernel(
    positions,
    lengths,
    frequencies,
    scales,
    cos,
    sin,
    rows,
    pairs,
    offset,
    THRESHOLD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """cos and sin of what each pair turns by; of two tables, the second for sequences beyond THRESHOLD."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    pair = tl.arange(0, COLUMNS)[None, :]
    is_row, seen = row < rows, (row < rows) & (pair < pairs)
    table = tl.zeros((ROWS, 1), tl.int64)
    if THRESHOLD is not None:
        table = (tl.load(lengths + row, mask=is_row, other=0) > THRESHOLD).to(tl.int64)
    position = (tl.load(positions + row, mask=is_row, other=0) + offset).to(tl.float32)
    angle = position * tl.load(frequencies + table * pairs + pair, mask=pair < pairs, other=0.0)
    scale = tl.load(scales + table)
    target = row.to(tl.int64) * pairs + pair
    tl.store(cos + target, tl.cos(angle) * scale, mask=seen)
    tl.store(sin + target, tl.sin(angle) * scale, mask=seen)


def _run(
    operation: str,
    x: Tensor,
    y: Tensor | None = None,
    factors: Tensor | None = None,
    activation: str | None = None,
    scale: float = 1.0,
) -> Tensor:
    """`each_kernel`, on tensors of any shape whose first dimension is the rows'."""
    flat = together(x if x.dim() == 2 else x.reshape(len(x), -1))
    other = flat if y is None else together(y if y.dim() == 2 else y.reshape(len(y), -1))
    rows, width = flat.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if rows and width:
        columns = columns_of(width)
        each_kernel[(cdiv(rows, ROWS), cdiv(width, columns))](
            flat,
            other,
            flat if factors is None else factors,
            out,
            rows,
            width,
            flat.stride(0),
            other.stride(0),
            scale,
            operation,
            activation,
            ROWS,
            columns,
            num_warps=warps_of(columns),
        )
    return out


def _gated(gate_up: Tensor, gate: Gate, cutoffs: Tensor | None) -> Tensor:
    gate_up = together(gate_up)
    rows, size = len(gate_up), gate_up.shape[1] // 2
    out, columns = torch.empty(rows, size, dtype=gate_up.dtype, device=gate_up.device), columns_of(size)
    if rows:
        settings = gate.activation, gate.threshold, gate.limit, float(gate.up_offset)
        gated_kernel[(cdiv(rows, ROWS), cdiv(size, columns))](
            gate_up, cutoffs, out, rows, size, gate_up.stride(0), *settings, ROWS, columns, num_warps=warps_of(columns)
        )
    return out


class TritonElementwise(TorchBackend):
    """Operations value by value."""

    _factors: dict[tuple[float, torch.dtype], Tensor]
    _tables: dict[int, tuple[RotaryTable, Tensor, Tensor]]
    """What is copied to the device once, and never while a graph is recorded."""

    def add(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        return x + y if scale == 1.0 else _run("add", x, y, scale=scale)

    def activate(self, x: Tensor, activation: str) -> Tensor:
        return _run("activate", x, activation=activation)

    def scale(self, x: Tensor, factor: float) -> Tensor:
        key = factor, x.dtype
        if key not in self._factors:
            self._factors[key] = torch.tensor(factor, dtype=x.dtype, device=x.device)
        return x * self._factors[key]

    def scale_rows(self, x: Tensor, factors: Tensor) -> Tensor:
        return _run("scale_rows", x, factors=factors)

    def scale_columns(self, x: Tensor, factors: Tensor) -> Tensor:
        return _run("scale_columns", x, factors=factors)

    def multiply(self, x: Tensor, y: Tensor, activation: str | None = None) -> Tensor:
        return _run("multiply", x, y, activation=activation)

    def xielu(self, x: Tensor, shape: Tensor) -> Tensor:
        return _run("xielu", x, factors=shape)

    def add_gated(self, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        return _run("add_gated", x, y, gate.reshape(-1))

    def gated(self, gate_up: Tensor, gate: Gate) -> Tensor:
        return _gated(gate_up, gate, None)

    def gated_above(self, gate_up: Tensor, cutoffs: Tensor, activation: str) -> Tensor:
        return _gated(gate_up, Gate(activation), cutoffs.contiguous())

    def angles(self, table: RotaryTable, positions: Tensor, lengths: Tensor, offset: int = 0) -> tuple[Tensor, Tensor]:
        if id(table) not in self._tables:
            scales = torch.tensor(table.scales, device=positions.device)
            self._tables[id(table)] = table, table.frequencies.to(positions.device).contiguous(), scales
        _, frequencies, scales = self._tables[id(table)]
        rows, pairs = len(positions), frequencies.shape[1]
        cos, sin = torch.empty(2, rows, pairs, device=positions.device).unbind(0)
        if rows:
            angles_kernel[(cdiv(rows, ROWS),)](
                positions, lengths, frequencies, scales, cos, sin, rows, pairs, offset,
                table.long_rope_threshold, ROWS, columns_of(pairs),
            )  # fmt: skip
        return cos, sin
