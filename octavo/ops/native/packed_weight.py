"""Packed weights: what the core's products read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.ops.host_memory import Arena
from octavo.ops.native.library import Library
from octavo.ops.stored_rows import StoredRows

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The core's numbers of what memory holds."""
PANEL = 16
"""Outputs of a weight that are packed together."""


@dataclass(frozen=True)
class PackedWeight:
    """A weight `[outputs, width]` laid out in panels."""

    library: Library
    kind: int
    outputs: int
    width: int
    data: Tensor
    """[bytes] uint8"""

    def multiply(
        self, x: Tensor, out: Tensor, first: int, bias: Tensor | None, gate: int = -1, fine: bool = False
    ) -> None:
        """Fill columns `first` on of `out` with `y = x @ weight.T + bias`; rows of `x` may lie apart.

        With the number of an activation as `gate`: with `activation(y[:, :half]) * y[:, half:]`. `fine` where rows are
        rounded to 16 bits instead of 8.
        """
        if x.stride(1) != 1:
            x = x.contiguous()
        self.library.run(
            "linear",
            x.shape[0],
            x.data_ptr(),
            TYPES[x.dtype],
            x.stride(0),
            self.width,
            self.kind,
            self.data.data_ptr(),
            self.outputs,
            None if bias is None else bias.data_ptr() + 4 * first,
            out.data_ptr() + first * out.element_size(),
            TYPES[out.dtype],
            out.stride(0),
            gate,
            fine,
        )

    def rows(self, ids: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
        """Rows `ids` `[count]` of the weight, times `scale`: `[count, width]`."""
        ids = ids.contiguous()
        out = torch.empty(len(ids), self.width, dtype=dtype)
        self.library.run(
            "weight_rows",
            len(ids),
            ids.data_ptr(),
            self.kind,
            self.data.data_ptr(),
            self.width,
            out.data_ptr(),
            TYPES[dtype],
            scale,
        )
        return out


def pack(library: Library, parts: Sequence[StoredRows], arena: Arena) -> PackedWeight:
    """Lay rows of one kind out for computing, in memory of `arena`. Their own may be given up afterwards."""
    kind, width, outputs = parts[0].kind, parts[0].width, sum(len(part.data) for part in parts)
    packed = arena.bytes(library.packed_bytes(kind, outputs, width))
    if any(len(part.data) % PANEL for part in parts[:-1]):  # a panel has outputs of two
        parts = [StoredRows(kind, width, torch.cat([part.data for part in parts]))]
    first = 0
    for part in parts:
        rows, data = len(part.data), part.data.contiguous()
        address = packed.data_ptr() + library.packed_bytes(kind, first, width)
        library.run("pack", rows, data.data_ptr(), width, kind, address)
        first += rows
    return PackedWeight(library, kind, outputs, width, packed)


def quantize(library: Library, weight: Tensor, kind: int) -> StoredRows:
    """Round a weight `[outputs, width]` to the nearest values of a `kind`: Q8_0 or Q4_1."""
    weight = weight.contiguous()
    rows, width = weight.shape
    out = torch.empty(rows, library.row_bytes(kind, width), dtype=torch.uint8)
    library.run("quantize", rows, weight.data_ptr(), TYPES[weight.dtype], width, kind, out.data_ptr())
    return StoredRows(kind, width, out)
