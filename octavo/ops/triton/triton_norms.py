"""Norms over rows, computed in float32 and rounded once: see octavo.ops.torch.torch_norms."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.ops.triton.launching import ROWS, cdiv, columns_of, together, warps_of


@triton.jit
def _rms_norm(x, weight, out, rows, width, row_stride, eps, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows of `x`; columns are summed up in as many lanes as a program has at a time, then lane by lane."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    lane = tl.arange(0, COLUMNS)[None, :]
    source, target = x + row.to(tl.int64) * row_stride, out + row.to(tl.int64) * width
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, width, COLUMNS):
        at = first + lane
        value = tl.load(source + at, mask=(row < rows) & (at < width), other=0.0).to(tl.float32)
        squares += value * value
    scale = 1.0 / tl.sqrt_rn(tl.sum(squares, axis=1) / width + eps)
    for first in range(0, width, COLUMNS):
        at = first + lane
        seen = (row < rows) & (at < width)
        value = tl.load(source + at, mask=seen, other=0.0).to(tl.float32)
        factor = tl.load(weight + at, mask=at < width, other=0.0)
        tl.store(target + at, (value * scale[:, None] * factor).to(out.dtype.element_ty), mask=seen)


class TritonNorms:
    """The norms."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows, width = x.shape
        x, columns = together(x), columns_of(width)
        out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
        if rows:
            _rms_norm[(cdiv(rows, ROWS),)](
                x, weight, out, rows, width, x.stride(0), eps, ROWS, columns, num_warps=warps_of(columns)
            )
        return out
