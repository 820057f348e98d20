"""Packed weights: what the core's products read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.ops.grids import codes_of_points
from octavo.ops.host_memory import Arena
from octavo.ops.native.description import PANEL, Activation, DType
from octavo.ops.native.library import Library
from octavo.ops.stored_rows import StoredRows
from octavo.ops.weight_kinds import WeightKind

DTYPES = {torch.float32: DType.F32, torch.bfloat16: DType.BF16, torch.float16: DType.F16}


@dataclass(frozen=True)
class PackedWeight:
    """A weight `[outputs, width]` laid out in panels."""

    library: Library
    kind: WeightKind
    outputs: int
    width: int
    data: Tensor
    """[bytes] uint8"""
    order: Tensor | None = None
    """[width] int32: the columns of rows that its own are multiplied with, where these are not in order."""
    on_disk: bool = False
    """As of PackedRows."""

    @property
    def order_address(self) -> int | None:
        """Of the order, for the core."""
        return None if self.order is None else self.order.data_ptr()

    def rows_from(self, first: int, count: int) -> "PackedWeight":
        """`count` of the outputs, whole panels, from the first of a panel on; in the same memory."""
        begin, size = (
            self.library.core.packed_bytes(kind=self.kind, rows=n, inputs=self.width) for n in (first, count)
        )
        return replace(self, outputs=count, data=self.data[begin : begin + size])

    def placed(self, arena: Arena, parts: int) -> "PackedWeight":
        """The same in memory of `arena` that lies, part by part, beside the threads that read it."""
        data = arena.bytes(self.data.nbytes)
        self.library.core.place(source=self.data.data_ptr(), target=data.data_ptr(), size=self.data.nbytes, parts=parts)
        return replace(self, data=data)

    def multiply(
        self,
        x: Tensor,
        out: Tensor,
        first: int,
        bias: Tensor | None,
        gate: Activation = Activation.NONE,
        fine: bool = False,
    ) -> None:
        """Fill columns `first` on of `out` with `y = x @ weight.T + bias`; rows of `x` may lie apart.

        With a `gate`: with `gate(y[:, :half]) * y[:, half:]`. `fine` where rows are rounded to 16 bits instead of 8.
        """
        if x.stride(1) != 1:
            x = x.contiguous()
        self.library.core.linear(
            rows=x.shape[0],
            x=x.data_ptr(),
            x_dtype=DTYPES[x.dtype],
            x_stride=x.stride(0),
            inputs=self.width,
            kind=self.kind,
            weight=self.data.data_ptr(),
            order=self.order_address,
            outputs=self.outputs,
            bias=None if bias is None else bias.data_ptr() + first * bias.element_size(),
            out=out.data_ptr() + first * out.element_size(),
            out_dtype=DTYPES[out.dtype],
            out_stride=out.stride(0),
            activation=gate,
            fine=fine,
        )

    def rows(self, ids: Tensor, dtype: torch.dtype, scale: float, first: int) -> Tensor:
        """Rows of the weight, times `scale`: `[count, width]`. Ids count from `first` on; of no row they give zeros."""
        ids = ids.contiguous()
        out = torch.empty(len(ids), self.width, dtype=dtype)
        self.library.core.weight_rows(
            rows=len(ids),
            ids=ids.data_ptr(),
            first=first,
            count=self.outputs,
            kind=self.kind,
            weight=self.data.data_ptr(),
            order=self.order_address,
            inputs=self.width,
            out=out.data_ptr(),
            out_dtype=DTYPES[dtype],
            scale=scale,
        )
        return out


def pack(library: Library, parts: Sequence[StoredRows], arena: Arena) -> PackedWeight:
    """Lay rows of one kind and order out for computing, in memory of `arena`. Their own may be given up afterwards."""
    kind, inputs, outputs = parts[0].kind, parts[0].width, sum(len(part.data) for part in parts)
    packed = arena.bytes(library.core.packed_bytes(kind=kind, rows=outputs, inputs=inputs))
    if any(len(part.data) % PANEL for part in parts[:-1]):  # a panel has outputs of two
        parts = [replace(parts[0], data=torch.cat([part.data for part in parts]))]
    grid, first = codes_of_points(kind), 0
    for part in parts:
        rows, data = len(part.data), part.data.contiguous()
        address = packed.data_ptr() + library.core.packed_bytes(kind=kind, rows=first, inputs=inputs)
        library.core.pack(
            rows=rows,
            source=data.data_ptr(),
            inputs=inputs,
            kind=kind,
            grid=None if grid is None else grid.data_ptr(),
            packed=address,
        )
        first += rows
    order = parts[0].order
    return PackedWeight(library, kind, outputs, inputs, packed, None if order is None else order.int().contiguous())


def quantize(library: Library, weight: Tensor, kind: WeightKind) -> StoredRows:
    """Round a weight `[outputs, width]` to the nearest values of a `kind`: Q8_0 or Q4_1."""
    assert kind in (WeightKind.Q8_0, WeightKind.Q4_1), f"nothing rounds to {kind.name}"
    weight = weight.contiguous()
    rows, width = weight.shape
    out = torch.empty(rows, library.core.row_bytes(kind=kind, inputs=width), dtype=torch.uint8)
    library.core.quantize(
        rows=rows,
        source=weight.data_ptr(),
        source_dtype=DTYPES[weight.dtype],
        inputs=width,
        kind=kind,
        out=out.data_ptr(),
    )
    return StoredRows(kind, width, out)
