"""Ranks of the compiled core."""

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.ops.native.native_attention import NativeAttention
from octavo.ops.native.recording import NotRecordableError
from octavo.rank_place import RankLink, RankPlace


class NativeRanks(NativeAttention):
    """The operations of octavo.ops.rank_operations.Ranks, by way of the reference."""

    @property
    def place(self) -> RankPlace:
        return self._reference.place

    def join(self, place: RankPlace, link: RankLink) -> None:
        self._reference.join(place, link)

    def leave(self) -> None:
        self._reference.leave()

    def all_reduce(self, x: Tensor) -> Tensor:
        self._must_not_record()
        return self._reference.all_reduce(x)

    def all_gather(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        self._must_not_record()
        return self._reference.all_gather(x, widths)

    def send(self, x: Tensor) -> None:
        self._must_not_record()
        self._reference.send(x)

    def receive(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        self._must_not_record()
        return self._reference.receive(rows, width, dtype)

    def least(self, values: Sequence[int]) -> list[int]:
        return self._reference.least(values)

    def _must_not_record(self) -> None:
        if self.place.size > 1 and self.library.is_recording:
            raise NotRecordableError("ranks meet by torch.distributed")
