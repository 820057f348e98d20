"""Rotations and factors by position: what TritonBackend has of them."""

import torch
from torch import Tensor

from octavo.ops.torch import TorchBackend
from octavo.ops.triton.launching import ROWS, cdiv, power_of_two, together, warps_of
from octavo.ops.triton.rope_kernels import position_factors_kernel, turned_kernel

AT_ONCE = 256
"""Positions of a program."""


def _turned(
    x: Tensor, y: Tensor, angles: tuple[Tensor, Tensor], interleaved: bool, dtype: torch.dtype, backwards: bool = False
) -> Tensor:
    """`[rows, heads, columns of x and y]`: `x` as it is, and `y`, the first `2 * pairs` of which are rotated."""
    x, y, (cos, sin) = together(x), together(y), (angle.contiguous() for angle in angles)
    rows, heads, width = len(y), y.shape[1], x.shape[2] + y.shape[2]
    out, columns = torch.empty(rows, heads, width, dtype=dtype, device=y.device), power_of_two(width)
    if out.numel():
        turned_kernel[(cdiv(rows, ROWS), heads)](
            x, y, cos, sin, out, rows, heads, x.shape[2], width, x.stride(0), x.stride(1), y.stride(0), y.stride(1),
            cos.shape[1], interleaved, backwards, ROWS, columns, num_warps=warps_of(columns), enable_fp_fusion=False,
        )  # fmt: skip
    return out


class TritonRope(TorchBackend):
    """Operations by position."""

    _by_period: dict[tuple[float, float], Tensor]
    """What is copied to the device once, and never while a graph is recorded."""

    def position_factors(self, positions: Tensor, beta: float, period: float, offset: int) -> Tensor:
        key = beta, period
        if key not in self._by_period:
            self._by_period[key] = torch.tensor(key, dtype=torch.float64, device=positions.device)
        by, positions = self._by_period[key], positions.contiguous()
        out = torch.empty(len(positions), device=positions.device)
        if len(out):
            grid = (cdiv(len(out), AT_ONCE),)
            position_factors_kernel[grid](positions, out, len(out), offset, by[:1], by[1:], AT_ONCE, num_warps=4)
        return out

    def join_rope(self, x: Tensor, y: Tensor, angles: tuple[Tensor, Tensor], interleaved: bool) -> Tensor:
        return _turned(x, y, angles, interleaved, torch.float32)

    def rotate_tail(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        interleaved: bool,
        dtype: torch.dtype = torch.float32,
        backwards: bool = False,
    ) -> Tensor:
        first = x.shape[-1] - 2 * angles[0].shape[1]
        return _turned(x[..., :first], x[..., first:], angles, interleaved, dtype, backwards)
