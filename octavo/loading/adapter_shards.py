"""Adapters of ranks: of what an adapter says of a whole weight, what a rank's part of the weight computes with."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.loading.model import LoadedModel, Slot
from octavo.loading.weight_loader import WeightLoader
from octavo.ops import LowRank, PackedLinear
from octavo.parts.linear_layer import magnitude_of
from octavo.parts.weight_adapter import WeightAdapter
from octavo.parts.weight_slots import Ranges, Shard, WeightSlot

COLUMNS_AT_ONCE = 256
"""Of a token table, that are read to know their lengths."""


def share_of_rank(adapter: WeightAdapter, slot: Slot, is_table: bool, is_first: bool, is_last: bool) -> WeightAdapter:
    """What a rank takes of `adapter`, by the shard of the weight's slot.

    Args:
        adapter: of the whole weight; where its rows' lengths are needed, with the magnitude.
        slot: the weight's.
        is_table: whether it is a token table, whose rows are not outputs.
        is_first: whether the rank is the first, which has the bias of results that are summed.
        is_last: whether it is the last, which has what a head or a table has more tokens than the model.
    """
    shard = slot.shard
    if shard is None:
        return adapter
    weight, rows = adapter.weight, shard.rows
    if rows is not None and is_last and weight is not None and len(weight) > slot.shape[0]:
        rows = (*rows, (slot.shape[0], len(weight)))

    def of_outputs(values: Tensor | None) -> Tensor | None:
        if values is None or is_table or rows is None:
            return values
        return Shard(rows=rows).of(values)

    has_bias = rows is not None or is_first
    return WeightAdapter(
        low_rank=[own for part in adapter.low_rank if (own := _low_rank(part, rows, shard.columns)) is not None],
        lengths=of_outputs(adapter.lengths),
        magnitude=of_outputs(adapter.magnitude),
        bias=of_outputs(adapter.bias) if has_bias else None,
        added_bias=of_outputs(adapter.added_bias) if has_bias else None,
        weight=None if weight is None else Shard(rows, shard.columns).of(weight),
        tokens=adapter.tokens,
        more_rows=0 if weight is None else len(weight) - slot.shape[0],
    )


def _low_rank(part: LowRank, rows: Ranges | None, columns: Ranges | None) -> LowRank | None:
    """What is left of matrices where rows and columns of the weight are taken. Rows that follow each other still do."""
    a = part.a if columns is None else Shard(columns=columns).of(part.a)
    if rows is None:
        return replace(part, a=a)
    taken, first, at = list[Tensor](), 0, 0
    for begin, end in rows:
        low, high = max(begin, part.first), min(end, part.first + len(part.b))
        if low < high:
            first = first if taken else at + low - begin
            taken.append(part.b[low - part.first : high - part.first])
        at += end - begin
    return LowRank(first, a, torch.cat(taken)) if taken else None


def with_magnitudes(weights: Mapping[str, WeightAdapter], loaded: LoadedModel) -> dict[str, WeightAdapter]:
    """`weights`, with magnitudes in place of lengths (DoRA's) that need more of a weight than this rank has.

    The whole weight is read for it, as one rank alone would hold it, and is given up again.
    """
    needed = {path: each for path, each in weights.items() if _needs_whole(path, each, loaded)}
    if not needed:
        return dict(weights)
    takes = _Magnitudes(needed, loaded)
    if takes.weight_slots_in(loaded.precision.activations):
        names = loaded.weights.names(loaded.model.names)
        loader = WeightLoader(takes, names, loaded.precision, loaded.backend)
        loader.load(loaded.weights.weights(names), "the checkpoint")
        loaded.weights.drop_pages()
    return {
        path: replace(each, lengths=None, magnitude=takes.found[path]) if path in needed else each
        for path, each in weights.items()
    }


def _needs_whole(path: str, adapter: WeightAdapter, loaded: LoadedModel) -> bool:
    shard = loaded.places[f"{path}.weight"].shard
    return adapter.lengths is not None and shard is not None and (shard.columns is not None or path == loaded.table)


@dataclass
class _Magnitudes:
    """Takes whole weights of a checkpoint, and keeps what adapters make of the lengths of their rows or columns."""

    adapters: Mapping[str, WeightAdapter]
    loaded: LoadedModel

    def __post_init__(self) -> None:
        self.found: dict[str, Tensor] = {}
        table = self.adapters.get(self.loaded.table)
        if table is not None and table.weight is not None:  # which is in the place of the checkpoint's
            self.found[self.loaded.table] = self._of_columns(table.weight, table)

    def weight_slots_in(self, dtype: torch.dtype, round_media: bool = False) -> dict[str, WeightSlot]:
        slots = dict[str, WeightSlot]()
        for path in self._stacked():
            if path in self.found:
                continue
            slot = self.loaded.places[f"{path}.weight"]
            slots[f"{path}.weight"] = WeightSlot(slot.shape, slot.role, self._taker(path), slot.segments)
        return slots

    def does_without(self, path: str) -> bool:
        return True

    def _stacked(self) -> Iterator[str]:
        """The paths, and those of experts that may lie in one tensor with them."""
        layers = {path.partition(".experts.")[0] for path in self.adapters if ".experts." in path}
        ends = {path.rpartition(".")[2] for path in self.adapters if ".experts." in path}
        for name in self.loaded.places:
            path, _, leaf = name.rpartition(".")
            is_beside = path.partition(".experts.")[0] in layers and path.rpartition(".")[2] in ends
            if leaf == "weight" and (path in self.adapters or (".experts." in path and is_beside)):
                yield path

    def _taker(self, path: str) -> Callable[[Tensor | PackedLinear], None]:
        def take(weight: Tensor | PackedLinear) -> None:
            if (adapter := self.adapters.get(path)) is None:
                return
            if path == self.loaded.table:
                self.found[path] = self._of_columns(weight, adapter)
            else:
                assert not isinstance(weight, Tensor)
                self.found[path] = magnitude_of(weight, self.loaded.places[f"{path}.weight"].shape[0], adapter)

        return take

    def _of_columns(self, table: Tensor | PackedLinear, adapter: WeightAdapter) -> Tensor:
        """[embedding_dim] lengths over those of the changed table's columns."""
        assert adapter.lengths is not None
        rows = self.loaded.places[f"{self.loaded.table}.weight"].shape[0]
        if not isinstance(table, Tensor):
            table = table.rows(torch.arange(rows), torch.float32)
        norms = []
        for first in range(0, table.shape[1], COLUMNS_AT_ONCE):
            columns = table[:, first : first + COLUMNS_AT_ONCE].float().cpu()
            for part in adapter.low_rank:
                columns = columns + part.b @ part.a[:, first : first + COLUMNS_AT_ONCE]
            norms.append(columns.norm(dim=0))
        return adapter.lengths / torch.cat(norms)
