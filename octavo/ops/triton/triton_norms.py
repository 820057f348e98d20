"""Norms over rows, computed in float32 and rounded once: see octavo.ops.torch.torch_norms.

Columns are summed up in as many lanes as a program has at a time, then the lanes by the compiler's tree: both depend on
a row's width alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.ops.triton.activation_kernels import activated
from octavo.ops.triton.launching import ROWS, cdiv, columns_of, rounded, together, warps_of


@triton.jit
def rms_norm_kernel(
    x,
    weight,
    gate,
    out,
    rows,
    width,
    row_stride,
    gate_stride,
    eps,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Rows of `x`; times the activation of `gate` where there is one."""
    row, lane = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    at = row.to(tl.int64)
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, width, COLUMNS):
        column = first + lane
        value = tl.load(x + at * row_stride + column, mask=(row < rows) & (column < width), other=0.0).to(tl.float32)
        squares += value * value
    scale = (1.0 / tl.sqrt_rn(tl.sum(squares, axis=1) / width + eps))[:, None]
    for first in range(0, width, COLUMNS):
        column = first + lane
        seen = (row < rows) & (column < width)
        value = tl.load(x + at * row_stride + column, mask=seen, other=0.0).to(tl.float32)
        normed = value * scale * tl.load(weight + column, mask=column < width, other=0.0)
        if ACTIVATION is not None:
            normed *= activated(
                tl.load(gate + at * gate_stride + column, mask=seen, other=0.0).to(tl.float32), ACTIVATION
            )
        tl.store(out + at * width + column, rounded(normed, out.dtype.element_ty), mask=seen)


@triton.jit
def layer_norm_kernel(
    x,
    weight,
    bias,
    out,
    rows,
    width,
    row_stride,
    eps,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row, lane = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    at = row.to(tl.int64)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, width, COLUMNS):
        column = first + lane
        total += tl.load(x + at * row_stride + column, mask=(row < rows) & (column < width), other=0.0).to(tl.float32)
    mean = (tl.sum(total, axis=1) / width)[:, None]
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, width, COLUMNS):
        column = first + lane
        seen = (row < rows) & (column < width)
        away = tl.load(x + at * row_stride + column, mask=seen, other=0.0).to(tl.float32) - mean
        squares += tl.where(seen, away * away, 0.0)
    scale = (1.0 / tl.sqrt_rn(tl.sum(squares, axis=1) / width + eps))[:, None]
    for first in range(0, width, COLUMNS):
        column = first + lane
        seen = (row < rows) & (column < width)
        normed = (tl.load(x + at * row_stride + column, mask=seen, other=0.0).to(tl.float32) - mean) * scale
        if HAS_WEIGHT:
            normed *= tl.load(weight + column, mask=column < width, other=0.0)
        if HAS_BIAS:
            normed += tl.load(bias + column, mask=column < width, other=0.0)
        tl.store(out + at * width + column, rounded(normed, out.dtype.element_ty), mask=seen)


@triton.jit
def _mean_square(x, rows, width, row, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    lane, squares = tl.arange(0, COLUMNS)[None, :], tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, width, COLUMNS):
        seen = (row < rows) & (first + lane < width)
        value = tl.load(x + row.to(tl.int64) * stride + first + lane, mask=seen, other=0.0).to(tl.float32)
        squares += value * value
    return (tl.sum(squares, axis=1) / width)[:, None]


@triton.jit
def magnitude_kernel(
    x, like, out, rows, width, row_stride, like_stride, least, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Rows of `x` as large as those of `like`."""
    row, lane = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    at, target = row.to(tl.int64), _mean_square(like, rows, width, row, like_stride, ROWS, COLUMNS)
    own = _mean_square(x, rows, width, row, row_stride, ROWS, COLUMNS)
    factor = tl.sqrt_rn(target / tl.maximum(own, least, propagate_nan=tl.PropagateNan.ALL))
    for first in range(0, width, COLUMNS):
        column = first + lane
        seen = (row < rows) & (column < width)
        value = tl.load(x + at * row_stride + column, mask=seen, other=0.0).to(tl.float32) * factor
        tl.store(out + at * width + column, rounded(value, out.dtype.element_ty), mask=seen)


@triton.jit
def cutoffs_kernel(x, out, rows, width, row_stride, deviations, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of each row the mean and so many standard deviations."""
    row, lane = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    start, total = row.to(tl.int64) * row_stride, tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, width, COLUMNS):
        seen = (row < rows) & (first + lane < width)
        total += tl.load(x + start + first + lane, mask=seen, other=0.0).to(tl.float32)
    mean = (tl.sum(total, axis=1) / width)[:, None]
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, width, COLUMNS):
        seen = (row < rows) & (first + lane < width)
        away = tl.load(x + start + first + lane, mask=seen, other=0.0).to(tl.float32) - mean
        squares += tl.where(seen, away * away, 0.0)
    cutoff = mean + (tl.sqrt_rn(tl.sum(squares, axis=1) / width) * deviations)[:, None]
    tl.store(out + row, cutoff, mask=row < rows)


def _normed(x: Tensor, gate: Tensor, weight: Tensor, eps: float, activation: str | None) -> Tensor:
    """`rms_norm_kernel` of `x` `[rows, width]`."""
    rows, width = x.shape
    x, gate, columns = together(x), together(gate), columns_of(width)
    out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    if rows:
        sizes = rows, width, x.stride(0), gate.stride(0)
        warps = warps_of(columns)
        rms_norm_kernel[(cdiv(rows, ROWS),)](
            x, weight, gate, out, *sizes, eps, activation, ROWS, columns, num_warps=warps
        )
    return out


class TritonNorms:
    """The norms."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return _normed(x, x, weight, eps, None)

    def rms_norm_gated(self, x: Tensor, gate: Tensor, weight: Tensor, eps: float, activation: str) -> Tensor:
        size = len(weight)
        return _normed(x.reshape(-1, size), gate.reshape(-1, size), weight, eps, activation).view(x.shape)

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        flat = together(x if x.dim() == 2 else x.reshape(-1, x.shape[-1]))
        (rows, width), columns = flat.shape, columns_of(flat.shape[1])
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if rows:
            by = flat if weight is None else weight, flat if bias is None else bias
            has, sizes = (weight is not None, bias is not None), (rows, width, flat.stride(0))
            warps = warps_of(columns)
            layer_norm_kernel[(cdiv(rows, ROWS),)](flat, *by, out, *sizes, eps, *has, ROWS, columns, num_warps=warps)
        return out

    def match_magnitude(self, x: Tensor, like: Tensor, least: float) -> Tensor:
        x, like, columns = together(x), together(like), columns_of(x.shape[1])
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if len(x):
            magnitude_kernel[(cdiv(len(x), ROWS),)](
                x, like, out, *x.shape, x.stride(0), like.stride(0), least, ROWS, columns, num_warps=warps_of(columns)
            )
        return out

    def row_cutoffs(self, x: Tensor, deviations: float) -> Tensor:
        x, columns = together(x), columns_of(x.shape[1])
        out = torch.empty(len(x), device=x.device)
        if len(x):
            cutoffs_kernel[(cdiv(len(x), ROWS),)](
                x, out, *x.shape, x.stride(0), float(deviations), ROWS, columns, num_warps=warps_of(columns)
            )
        return out
