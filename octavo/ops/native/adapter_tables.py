"""Adapters in the core: what they make of a weight's results, as its operation `adapt` reads it.

A table of a weight's adapters is memory that the operation reads each time that it runs, so that a recorded step
computes with what was put there since.
"""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from octavo.ops.host_memory import Arena
from octavo.ops.native.binding import fields_of, layout
from octavo.ops.native.description import ADAPTER_GROUP, PANEL, Adapter, AdapterPart
from octavo.ops.native.library import Library
from octavo.ops.native.packed_weight import DTYPES, PackedWeight, pack
from octavo.ops.specs import LinearUpdate, LowRank
from octavo.ops.stored_rows import FLOATS, of_floats

_ADAPTER, _PART = layout(fields_of(Adapter)), layout(fields_of(AdapterPart))


class NativeUpdate:
    """A LinearUpdate as the core reads it.

    Args:
        library: lays its matrices out.
        update: what the adapter makes of the results.
        dtype: of the matrices.
        arena: where they are kept.
    """

    def __init__(self, library: Library, update: LinearUpdate, dtype: torch.dtype, arena: Arena) -> None:
        first_values, a = _joined([part.a for part in update.low_rank])
        self._a = None if a is None else _pack_a(library, a.to(dtype), arena)
        self._b = [_pack_b(library, part, dtype, arena) for part in update.low_rank]
        self._floats = [None if t is None else t.float().contiguous() for t in (update.magnitude, update.bias)]
        places = zip(first_values, update.low_rank, self._b, strict=True)
        parts = [
            _PART.pack(first, part.b.shape[1], part.first // PANEL, -(-b.outputs // PANEL), b.data.data_ptr())
            for first, part, b in places
        ]
        self._parts = ctypes.create_string_buffer(b"".join(parts))
        self._adapter = ctypes.create_string_buffer(
            _ADAPTER.pack(
                0 if self._a is None else self._a.data.data_ptr(),
                0 if self._a is None else -(-self._a.outputs // PANEL),
                FLOATS[dtype],
                len(parts),
                ctypes.addressof(self._parts),
                *(0 if t is None else t.data_ptr() for t in self._floats),
            )
        )
        self.address = ctypes.addressof(self._adapter)


class NativeAdapterTable:
    """Addresses of adapters by slot and expert."""

    def __init__(self, library: Library, slots: int, experts: int) -> None:
        self._library, self._slots, self._experts = library, slots, experts
        self._addresses = np.zeros((slots, experts), dtype=np.int64)
        self._updates: dict[tuple[int, int], NativeUpdate] = {}

    def put(self, slot: int, update: object | None, expert: int = 0) -> None:
        """See octavo.ops.prepared.AdapterTable."""
        assert update is None or isinstance(update, NativeUpdate)
        self._addresses[slot, expert] = 0 if update is None else update.address
        self._updates.pop((slot, expert), None)
        if update is not None:
            self._updates[slot, expert] = update

    def apply(self, x: Tensor, y: Tensor, slots: Tensor, chosen: Tensor | None = None) -> None:
        """See octavo.ops.prepared.AdapterTable."""
        assert y.stride(1) == 1, "results of a product lie side by side"
        if x.stride(1) != 1:
            x = x.contiguous()
        slots, chosen = slots.contiguous(), None if chosen is None else chosen.contiguous()
        self._library.core.adapt(
            rows=len(slots),
            slots=slots.data_ptr(),
            table=self._addresses.ctypes.data,
            num_slots=self._slots,
            choices=1 if chosen is None else chosen.shape[1],
            experts=None if chosen is None else chosen.data_ptr(),
            num_experts=self._experts,
            x=x.data_ptr(),
            x_dtype=DTYPES[x.dtype],
            x_stride=x.stride(0),
            shared=max(1, len(y) // max(1, len(x))),
            inputs=x.shape[1],
            y=y.data_ptr(),
            y_dtype=DTYPES[y.dtype],
            y_stride=y.stride(0),
            outputs=y.shape[1],
        )


def _joined(matrices: Sequence[Tensor]) -> tuple[list[int], Tensor | None]:
    """Matrices `[rank, inputs]` one after the other, each once, and where each begins."""
    begins: dict[int, int] = {}
    total, each = 0, list[Tensor]()
    for a in matrices:
        if id(a) not in begins:
            begins[id(a)] = total
            total += len(a)
            each.append(a)
    return [begins[id(a)] for a in matrices], torch.cat(each) if each else None


def _pack_a(library: Library, a: Tensor, arena: Arena) -> PackedWeight:
    """`[values, inputs]`, with columns in whole groups."""
    return pack(library, [of_floats(functional.pad(a, (0, -a.shape[1] % ADAPTER_GROUP)))], arena)


def _pack_b(library: Library, part: LowRank, dtype: torch.dtype, arena: Arena) -> PackedWeight:
    """`[outputs, rank]`, from the beginning of a panel of the results on."""
    return pack(library, [of_floats(functional.pad(part.b.to(dtype), (0, 0, part.first % PANEL, 0)))], arena)
