"""The core's operations row by row: norms, activations, sums. Each is what the reference says of it."""

import ctypes
import math

import torch
from torch import Tensor

from octavo.ops.native.description import Activation, DType
from octavo.ops.native.library import Library
from octavo.ops.native.packed_weight import DTYPES
from octavo.ops.specs import Gate
from octavo.ops.torch import TorchBackend

ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu": Activation.GELU,
    "quick_gelu": Activation.QUICK_GELU,
    "relu": Activation.RELU,
    "relu2": Activation.RELU_SQUARED,
    "sigmoid": Activation.SIGMOID,
    "tanh": Activation.TANH,
}


class NativeElementwise:
    """Operations on rows, of one of the compiled libraries.

    Args:
        library: what computes.
        reference: computes what it lacks.
    """

    def __init__(self, library: Library, reference: TorchBackend) -> None:
        self.library, self._reference = library, reference

    def table_rows(self, table: Tensor, ids: Tensor, first: int | None = None) -> Tensor:
        out = torch.empty(len(ids), table.shape[1], dtype=table.dtype)
        ids = ids.contiguous()
        self.library.core.table_rows(
            rows=len(ids),
            ids=ids.data_ptr(),
            first=first or 0,
            count=len(table),
            table=table.data_ptr(),
            row_bytes=table.shape[1] * table.element_size(),
            out=out.data_ptr(),
        )
        return out

    def _together(self, x: Tensor) -> Tensor:
        """The tensor with its rows one after the other."""
        if x.is_contiguous():
            return x
        if not len(x) or not x[0].is_contiguous():
            return x.contiguous()
        out = torch.empty(x.shape, dtype=x.dtype)
        self._copy_rows(x, out)
        return out

    def _copy_rows(self, x: Tensor, out: Tensor) -> None:
        """Copy rows, which each lie together, of `x` to `out`, alike in shape and dtype."""
        self.library.core.copy_rows(
            rows=len(x),
            x=x.data_ptr(),
            stride_bytes=x.stride(0) * x.element_size(),
            row_bytes=x[0].numel() * x.element_size(),
            out=out.data_ptr(),
            out_stride_bytes=out.stride(0) * out.element_size(),
        )

    def finite(self, x: Tensor) -> Tensor:
        x = self._together(x)
        rows, columns, dtype = rows_of(x)
        found = ctypes.c_float()
        self.library.core.non_finite(
            rows=rows, x=x.data_ptr(), out=ctypes.addressof(found), columns=columns, dtype=dtype
        )
        return torch.tensor(found.value == 0.0)

    def floats(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return x
        x = self._together(x)
        rows, columns, dtype = rows_of(x)
        out = torch.empty(x.shape)
        self.library.core.to_float32(rows=rows, x=x.data_ptr(), out=out.data_ptr(), columns=columns, dtype=dtype)
        return out

    def add(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        x, y = self._together(x), self._together(y)
        rows, columns, dtype = rows_of(x)
        out = torch.empty_like(x)
        self.library.core.add(
            rows=rows, x=x.data_ptr(), y=y.data_ptr(), out=out.data_ptr(), columns=columns, scale=scale, dtype=dtype
        )
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = self._together(x)
        rows, columns, dtype = rows_of(x)
        out, w = torch.empty_like(x), self._together(weight)
        self.library.core.rms_norm(
            rows=rows, x=x.data_ptr(), weight=w.data_ptr(), out=out.data_ptr(), columns=columns, eps=eps, dtype=dtype
        )
        return out

    def rms_norm_gated(self, x: Tensor, gate: Tensor, weight: Tensor, eps: float, activation: str) -> Tensor:
        if activation not in ACTIVATIONS:
            return self._reference.rms_norm_gated(x, gate, weight, eps, activation)
        x, weight = self._together(x), self._together(weight)
        out = torch.empty_like(x)
        self.library.core.rms_norm_gated(
            rows=len(x),
            x=x.data_ptr(),
            gate=gate.data_ptr(),
            gate_stride=gate.stride(0),
            weight=weight.data_ptr(),
            out=out.data_ptr(),
            heads=x.shape[1] // len(weight),
            columns=len(weight),
            eps=eps,
            activation=ACTIVATIONS[activation],
            dtype=DTYPES[x.dtype],
        )
        return out

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        x = self._together(x)
        rows, columns, dtype = rows_of(x)
        out = torch.empty_like(x)
        self.library.core.layer_norm(
            rows=rows,
            x=x.data_ptr(),
            weight=None if weight is None else weight.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            out=out.data_ptr(),
            columns=columns,
            eps=eps,
            dtype=dtype,
        )
        return out

    def activate(self, x: Tensor, activation: str) -> Tensor:
        if activation not in ACTIVATIONS:
            return self._reference.activate(x, activation)
        x = self._together(x)
        return self._activate(x, torch.empty_like(x), activation, gated=False)

    def scale(self, x: Tensor, factor: float) -> Tensor:
        x = self._together(x)
        rows, columns, dtype = rows_of(x)
        out = torch.empty_like(x)
        self.library.core.scale(
            rows=rows, x=x.data_ptr(), out=out.data_ptr(), columns=columns, factor=factor, dtype=dtype
        )
        return out

    def scale_rows(self, x: Tensor, factors: Tensor) -> Tensor:
        x, factors = self._together(x), factors.contiguous()
        out = torch.empty(x.shape, dtype=x.dtype)
        self.library.core.scale_rows(
            rows=len(x),
            x=x.data_ptr(),
            factors=factors.data_ptr(),
            out=out.data_ptr(),
            columns=x[0].numel() if len(x) else 0,
            dtype=DTYPES[x.dtype],
        )
        return out

    def position_factors(self, positions: Tensor, beta: float, period: float, offset: int) -> Tensor:
        positions = positions.contiguous()
        out = torch.empty(len(positions))
        self.library.core.position_factors(
            rows=len(positions),
            positions=positions.data_ptr(),
            beta=beta,
            period=period,
            offset=offset,
            out=out.data_ptr(),
        )
        return out

    def multiply(self, x: Tensor, y: Tensor, activation: str | None = None) -> Tensor:
        if activation is not None and activation not in ACTIVATIONS:
            return self._reference.multiply(x, y, activation)
        rows, columns = x.shape
        out = torch.empty(x.shape, dtype=x.dtype)
        self.library.core.multiply(
            rows=rows,
            x=x.data_ptr(),
            x_stride=x.stride(0),
            y=y.data_ptr(),
            y_stride=y.stride(0),
            out=out.data_ptr(),
            columns=columns,
            activation=Activation.NONE if activation is None else ACTIVATIONS[activation],
            dtype=DTYPES[x.dtype],
        )
        return out

    def side_by_side(self, x: Tensor, y: Tensor) -> Tensor:
        out = torch.empty(len(x), x.shape[1] + y.shape[1], dtype=x.dtype)
        if len(x):
            self._copy_rows(x, out[:, : x.shape[1]])
            self._copy_rows(y, out[:, x.shape[1] :])
        return out

    def scale_columns(self, x: Tensor, factors: Tensor) -> Tensor:
        out = torch.empty(x.shape, dtype=x.dtype)
        self.library.core.scale_columns(
            rows=x.shape[0],
            x=x.data_ptr(),
            x_stride=x.stride(0),
            factors=factors.data_ptr(),
            out=out.data_ptr(),
            columns=x.shape[1],
            dtype=DTYPES[x.dtype],
        )
        return out

    def xielu(self, x: Tensor, shape: Tensor) -> Tensor:
        x = self._together(x)
        rows, columns, dtype = rows_of(x)
        out = torch.empty_like(x)
        self.library.core.xielu(
            rows=rows, x=x.data_ptr(), shape=shape.data_ptr(), out=out.data_ptr(), columns=columns, dtype=dtype
        )
        return out

    def add_gated(self, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        x, y, gate = self._together(x), self._together(y), self._together(gate)
        rows, columns, dtype = rows_of(x)
        out = torch.empty_like(x)
        self.library.core.add_gated(
            rows=rows,
            x=x.data_ptr(),
            y=y.data_ptr(),
            gate=gate.data_ptr(),
            out=out.data_ptr(),
            columns=columns,
            dtype=dtype,
        )
        return out

    def gated(self, gate_up: Tensor, gate: Gate) -> Tensor:
        if gate.activation is not None and gate.activation not in ACTIVATIONS:
            return self._reference.gated(gate_up, gate)
        gate_up = self._together(gate_up)
        out = torch.empty(gate_up.shape[0], gate_up.shape[1] // 2, dtype=gate_up.dtype)
        if gate.activation is not None and gate.is_plain:
            return self._activate(gate_up, out, gate.activation, gated=True)
        rows, columns, dtype = rows_of(out)
        self.library.core.gate(
            rows=rows,
            x=gate_up.data_ptr(),
            out=out.data_ptr(),
            columns=columns,
            activation=Activation.NONE if gate.activation is None else ACTIVATIONS[gate.activation],
            threshold=-math.inf if gate.threshold is None else gate.threshold,
            limit=math.inf if gate.limit is None else gate.limit,
            up_offset=gate.up_offset,
            dtype=dtype,
        )
        return out

    def _activate(self, x: Tensor, out: Tensor, activation: str, gated: bool) -> Tensor:
        rows, columns, dtype = rows_of(out)
        self.library.core.activate(
            rows=rows,
            x=x.data_ptr(),
            out=out.data_ptr(),
            columns=columns,
            activation=ACTIVATIONS[activation],
            gated=gated,
            dtype=dtype,
        )
        return out


def rows_of(x: Tensor) -> tuple[int, int, DType]:
    """How many rows a tensor has by its last dimension, how many columns, and of what."""
    columns = x.shape[-1]
    return x.numel() // columns, columns, DTYPES[x.dtype]
