"""Linear: `x @ weight.T + bias`.

Library matrix products pick another kernel, with another order of sums, when there are very few rows. So each
implementation states the fewest rows from which its result no longer depends on their number, and pads up to it.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

ROWS_HINT = 16
"""The number of rows that oneDNN lays a packed weight out for; any number of rows may be computed with it."""


class LinearKernel(Protocol):
    """A weight, ready to be multiplied with."""

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x` `[rows, in]` to `[rows, out]`."""
        ...


class TorchLinear:
    """The reference: the weight as it is, multiplied by PyTorch."""

    min_rows = 16

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = x.shape[0]
        if rows < self.min_rows:
            return functional.linear(functional.pad(x, (0, 0, 0, self.min_rows - rows)), self.weight, bias)[:rows]
        return functional.linear(x, self.weight, bias)


class OneDNNLinear:
    """The weight packed once into oneDNN's blocked layout, which about halves the time of a product of few rows."""

    min_rows = 8

    def __init__(self, weight: Tensor) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_HINT)
        self._product = torch.ops.mkldnn._linear_pointwise.default  # looked up once: it is called for every layer

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = x.shape[0]
        if rows < self.min_rows:
            x = functional.pad(x, (0, 0, 0, self.min_rows - rows))
        out: Tensor = self._product(x, self.packed, bias, "none", [], "")
        return out[:rows] if rows < self.min_rows else out


def _onednn_packs(dtype: torch.dtype) -> bool:
    """Whether this PyTorch and processor have the packed product for `dtype`, found out by trying it."""
    try:
        OneDNNLinear(torch.ones(16, 16, dtype=dtype))(torch.ones(8, 16, dtype=dtype))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True


def linear_implementation(dtype: torch.dtype, device: torch.device, preference: str = "auto") -> type[LinearKernel]:
    """The class that serves weights of `dtype` on `device`; `preference="torch"` forces the reference."""
    if preference == "auto" and device.type == "cpu" and torch.backends.mkldnn.enabled and _onednn_packs(dtype):
        return OneDNNLinear
    return TorchLinear


def prepare_linear(weight: Tensor, implementation: type[LinearKernel]) -> LinearKernel:
    """The weight `[out, in]` in the implementation's own layout. The caller may drop `weight` afterwards."""
    return implementation(weight)  # type: ignore[call-arg]


TERMS = 128
"""Library batched products sum up to so many terms in plain order, whatever the number of rows."""
ROW_GRAIN = 8
"""Rows of a batched product are padded to a multiple of it: below, libraries use another order of sums."""


def head_product(x: Tensor, weight: Tensor) -> Tensor:
    """Each head's own product: `x` `[rows, heads, in]` and `weight` `[heads, in, out]` to `[rows, heads, out]`."""
    rows = x.shape[0]
    by_head = functional.pad(x.transpose(0, 1), (0, 0, 0, -rows % ROW_GRAIN)).contiguous()
    return grouped_sum(by_head, weight)[:, :rows].transpose(0, 1)


def grouped_sum(x: Tensor, y: Tensor) -> Tensor:
    """`x @ y` of `[batch, rows, in]` and `[batch, in, out]`, summed in groups of TERMS in ascending order.

    The number of rows is a multiple of ROW_GRAIN. A row's result depends on that row alone.
    """
    total = torch.bmm(x[..., :TERMS], y[:, :TERMS])
    for first in range(TERMS, y.shape[1], TERMS):
        total += torch.bmm(x[..., first : first + TERMS], y[:, first : first + TERMS])
    return total
