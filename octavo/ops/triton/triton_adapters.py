"""Adapters: what TritonBackend has of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.ops.prepared import AdapterTable
from octavo.ops.recordable import is_recording
from octavo.ops.specs import LinearUpdate
from octavo.ops.torch import TorchBackend
from octavo.ops.triton.adapter_kernels import ENTRY, PART, change_kernel, inner_kernel
from octavo.ops.triton.grouping import aligned, grouped, most_blocks
from octavo.ops.triton.launching import cdiv, power_of_two, together
from octavo.ops.triton.product_tiles import FLOAT_TILE, ONE_INSTRUCTION, adapter_rows_for
from octavo.ops.triton.stored_weight import POINTERS

RANKS = 16
"""Inner values that a program multiplies at a time."""
SHARED = 8
"""Programs at most that share a block's inner values out."""
CHANGED = 64
"""Outputs of a program."""
MOST_RANKS = 4096
"""Of an adapter's matrices for one weight together: a recorded step has room for so many, whoever is put in later."""


class TritonUpdate:
    """A LinearUpdate on the device.

    Raises ValueError for one whose ranks are too many together.
    """

    def __init__(self, update: LinearUpdate, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        first_values, a = _joined([part.a for part in update.low_rank])
        self.ranks = 0 if a is None else len(a)
        if self.ranks > MOST_RANKS:
            raise ValueError(f"matrices of rank {self.ranks} together; up to {MOST_RANKS} are computed with")
        self._a = None if a is None else aligned(a.to(device, dtype))
        self._b = [aligned(part.b.to(device, dtype)) for part in update.low_rank]
        self._floats = [
            None if t is None else t.to(device, torch.float32).contiguous() for t in (update.magnitude, update.bias)
        ]
        places = zip(first_values, update.low_rank, self._b, strict=True)
        parts = [(part.first, *part.b.shape, first, b.data_ptr()) for first, part, b in places]
        self._parts = torch.tensor(parts or [(0,) * PART], dtype=torch.int64).to(device)
        magnitude, bias = (0 if t is None else t.data_ptr() for t in self._floats)
        a_address = 0 if self._a is None else self._a.data_ptr()
        self.entry = torch.tensor([a_address, self._parts.data_ptr(), len(parts), self.ranks, magnitude, bias])


class TritonAdapterTable:
    """Entries by slot and expert, on the device."""

    def __init__(self, slots: int, experts: int, device: torch.device) -> None:
        self._experts = experts
        self._entries = torch.zeros(slots * experts, ENTRY, dtype=torch.int64, device=device)
        self._updates: dict[tuple[int, int], TritonUpdate] = {}
        self._dtype: torch.dtype | None = None
        """Of the matrices, which kernels are compiled for."""

    def put(self, slot: int, update: object | None, expert: int = 0) -> None:
        """See octavo.ops.prepared.AdapterTable. Raises ValueError for matrices of another dtype than those before."""
        assert update is None or isinstance(update, TritonUpdate)
        number = slot * self._experts + expert
        if update is None:
            self._entries[number].zero_()
            self._updates.pop((slot, expert), None)
            return
        if self._dtype not in (None, update.dtype):
            raise ValueError(f"adapters of one weight in {self._dtype} and in {update.dtype}")
        self._dtype = update.dtype
        self._entries[number].copy_(update.entry)
        self._updates[slot, expert] = update

    def apply(self, x: Tensor, y: Tensor, slots: Tensor, chosen: Tensor | None = None) -> None:
        """See octavo.ops.prepared.AdapterTable."""
        is_recorded = is_recording()
        if not len(y) or not (self._updates or is_recorded):
            return
        self._dtype = self._dtype or x.dtype
        ranks = MOST_RANKS if is_recorded else max(update.ranks for update in self._updates.values())
        keys = slots
        if chosen is not None:
            keys = slots.unsqueeze(1) * self._experts + chosen
            keys = torch.where(slots.unsqueeze(1) < 0, -1, keys).flatten()
        groups, x = len(self._entries), together(x)
        order, starts = grouped(keys, groups)
        rows = adapter_rows_for(len(y), groups)
        blocks, dtype = most_blocks(len(y), groups, rows), POINTERS[self._dtype]
        inner = torch.empty(len(y), max(1, ranks), dtype=torch.float32, device=y.device)
        sizes: dict[str, Any] = {"DTYPE": dtype, "GROUPS": groups, "ROOM": power_of_two(groups)}
        sizes |= {"RANKS": RANKS, "ROWS": rows, **ONE_INSTRUCTION}
        if ranks:
            inner_kernel[(min(SHARED, cdiv(ranks, RANKS)), blocks)](
                x, x.stride(0), x.shape[1], len(y) // max(1, len(x)), self._entries, order, starts,
                inner, inner.stride(0), TILE=FLOAT_TILE[self._dtype], **sizes,
            )  # fmt: skip
        change_kernel[(cdiv(y.shape[1], CHANGED), blocks)](
            y, y.stride(0), y.shape[1], self._entries, order, starts, inner, inner.stride(0), OUTPUTS=CHANGED, **sizes
        )


def _joined(matrices: Sequence[Tensor]) -> tuple[list[int], Tensor | None]:
    """Matrices `[rank, inputs]` one after the other, each once, and where each begins."""
    begins, total, each = dict[int, int](), 0, list[Tensor]()
    for a in matrices:
        if id(a) not in begins:
            begins[id(a)] = total
            total += len(a)
            each.append(a)
    return [begins[id(a)] for a in matrices], torch.cat(each) if each else None


class TritonAdapters(TorchBackend):
    """Operations of adapters."""

    def adapter_table(self, slots: int, experts: int = 1) -> AdapterTable:  # type: ignore[override]
        return TritonAdapterTable(slots, experts, self.device)

    def pack_update(self, update: LinearUpdate, dtype: torch.dtype) -> TritonUpdate:  # type: ignore[override]
        return TritonUpdate(update, dtype, self.device)
