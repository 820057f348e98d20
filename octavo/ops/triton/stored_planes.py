"""Laying quantized weights out on the device (octavo.ops.triton.stored_layouts says how)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.ops.stored_rows import StoredRows
from octavo.ops.triton.launching import cdiv
from octavo.ops.triton.stored_blocks import READERS, Numbers
from octavo.ops.triton.stored_layouts import LAYOUTS, Factor, Layout, Small
from octavo.ops.weight_kinds import WeightKind

PACKED_AT_ONCE = 1 << 22
"""Weights that are unpacked at a time on their way: what they take of the device beside the result."""
ALIGNED = 16
"""Planes begin at a multiple of it, in bytes."""
FACTOR_TYPES = {Factor.F16: torch.float16, Factor.F32: torch.float32, Factor.E8M0: torch.uint8}
SMALL_TYPES = {
    Small.INT8: torch.int8,
    Small.UINT8: torch.uint8,
    Small.NIBBLES: torch.uint8,
    Small.F16: torch.float16,
}


@dataclass(frozen=True)
class Places:
    """Where a weight's planes begin, in bytes from its first, and how many bytes there are."""

    high: int
    factors: int
    smalls: int
    end: int


def places(layout: Layout, outputs: int, columns: int) -> Places:
    """Of a weight of so many outputs and padded columns."""
    low = outputs * columns * layout.low // 8
    high = outputs * columns * layout.high // 8
    factors = outputs * cdiv(columns, layout.factor_columns) * layout.factors * FACTOR_TYPES[layout.factor].itemsize
    smalls = 0
    if layout.small:
        smalls = outputs * cdiv(columns, layout.small_columns) * layout.smalls * SMALL_TYPES[layout.small].itemsize
    at = [0]
    for size in (low, high, factors, smalls):
        at.append(cdiv(at[-1] + size, ALIGNED) * ALIGNED)
    return Places(at[1], at[2], at[3], at[4])


def padded_columns(kind: WeightKind, width: int) -> int:
    """Columns of whole tiles, and of whole blocks as they are stored."""
    layout = LAYOUTS[kind]
    return cdiv(cdiv(width, layout.block) * layout.block, layout.tile) * layout.tile


def pack(parts: Sequence[StoredRows], device: torch.device) -> Tensor:
    """`[bytes]` uint8 on `device`: rows of one quantized kind, whose outputs lie one after the other.

    What is stored is copied to the device some rows at a time, and unpacked there.
    """
    kind, width, outputs = parts[0].kind, parts[0].width, sum(len(part.data) for part in parts)
    columns = padded_columns(kind, width)
    packed = torch.zeros(places(LAYOUTS[kind], outputs, columns).end, dtype=torch.uint8, device=device)
    planes = _Planes(LAYOUTS[kind], outputs, columns, packed)
    step, first = max(1, PACKED_AT_ONCE // columns), 0
    for part in parts:
        for rows in part.data.split(step):
            blocks = rows.to(device).view(len(rows), cdiv(width, LAYOUTS[kind].block), -1)
            planes.fill(first, READERS[kind](blocks))
            first += len(rows)
    return packed


class _Planes:
    """The planes of a weight, as views of its memory."""

    def __init__(self, layout: Layout, outputs: int, columns: int, packed: Tensor) -> None:
        self._layout, self._columns = layout, columns
        at, tiles = places(layout, outputs, columns), columns // layout.tile
        self._low = packed[: outputs * columns * layout.low // 8].view(tiles, layout.loads, outputs, layout.piece)
        size = outputs * columns * layout.high // 8
        self._high = packed[at.high : at.high + size].view(tiles, outputs, layout.piece) if size else None
        self._factors = self._numbers(
            packed[at.factors :], FACTOR_TYPES[layout.factor], layout.factor_columns, layout.factors, outputs
        )
        self._smalls = None
        if layout.small:
            self._smalls = self._numbers(
                packed[at.smalls :], SMALL_TYPES[layout.small], layout.small_columns, layout.smalls, outputs
            )

    def _numbers(self, room: Tensor, dtype: torch.dtype, each: int, count: int, outputs: int) -> Tensor:
        groups = cdiv(self._columns, each)
        return room[: groups * count * outputs * dtype.itemsize].view(dtype).view(groups, count, outputs)

    def fill(self, first: int, numbers: Numbers) -> None:
        """Put rows from `first` on into their places."""
        layout, rows = self._layout, len(numbers.codes)
        codes = torch.nn.functional.pad(numbers.codes, (0, self._columns - numbers.codes.shape[1]))
        by_piece = codes.view(rows, -1, layout.pieces, layout.piece)
        together = 8 // layout.low
        low = (by_piece & ((1 << layout.low) - 1)).unflatten(2, (together, layout.loads))
        self._low[:, :, first : first + rows] = _joined(low, layout.low).permute(1, 2, 0, 3)
        if self._high is not None:
            self._high[:, first : first + rows] = _joined(by_piece >> layout.low, layout.high).transpose(0, 1)
        for plane, values in ((self._factors, numbers.factors), (self._smalls, numbers.smalls)):
            if plane is not None and values is not None:
                plane[: values.shape[1], :, first : first + rows] = values.permute(1, 2, 0)


def _joined(codes: Tensor, bits: int) -> Tensor:
    """Codes `[rows, tiles, several, ...]` of so many bits in one byte, the first in the lowest."""
    joined = torch.zeros_like(codes[:, :, 0])
    for i in range(codes.shape[2]):
        joined |= codes[:, :, i] << bits * i
    return joined
