"""Adapters: what is added to a weight's results, for the rows that have one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.ops.specs import LinearUpdate
from octavo.ops.torch.products import TorchLinear


class TorchUpdate:
    """A LinearUpdate, its matrices ready to be multiplied with."""

    def __init__(self, update: LinearUpdate, dtype: torch.dtype) -> None:
        self._pairs = [
            (part.first, len(part.b), TorchLinear(part.a.to(dtype)), TorchLinear(part.b.to(dtype)))
            for part in update.low_rank
        ]
        self._magnitude, self._bias, self._dtype = update.magnitude, update.bias, dtype

    def changed(self, x: Tensor, y: Tensor) -> Tensor:
        """What becomes of results `y` `[rows, outputs]` of `x` `[rows, inputs]`; it is computed in float32."""
        total, x = y.float(), x.to(self._dtype)
        if self._magnitude is not None:
            total = total * self._magnitude
        if self._bias is not None:
            total = total + self._bias
        for first, count, a, b in self._pairs:
            total[:, first : first + count] += b(a(x)).float()
        return total.to(y.dtype)


class TorchAdapterTable:
    """The reference: rows are grouped by adapter (and expert)."""

    def __init__(self, slots: int, experts: int) -> None:
        self._updates: list[list[TorchUpdate | None]] = [[None] * experts for _ in range(slots)]

    def put(self, slot: int, update: object | None, expert: int = 0) -> None:
        assert update is None or isinstance(update, TorchUpdate)
        self._updates[slot][expert] = update

    def apply(self, x: Tensor, y: Tensor, slots: Tensor, chosen: Tensor | None = None) -> None:
        choices = 1 if chosen is None else chosen.shape[1]
        experts: Sequence[int] = [0] * len(y) if chosen is None else chosen.flatten().tolist()
        groups: dict[tuple[int, int], list[int]] = {}
        for row, (slot, expert) in enumerate(zip(slots.repeat_interleave(choices).tolist(), experts, strict=True)):
            if slot >= 0 and self._updates[slot][expert] is not None:
                groups.setdefault((slot, expert), []).append(row)
        shared = len(y) // max(1, len(x))  # results that have a row of x in common
        for (slot, expert), rows in groups.items():
            update, places = self._updates[slot][expert], torch.tensor(rows, device=y.device)
            assert update is not None
            y[places] = update.changed(x[places // shared], y[places])
