"""Ranks of the compiled core: through the memory that those of one machine share, else as the reference has them."""

import ctypes
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.errors import RankError
from octavo.ops.native.library import Tiles
from octavo.ops.native.native_pooled import NativePooled
from octavo.ops.native.packed_weight import DTYPES
from octavo.ops.native.threads import processors
from octavo.ops.recordable import NotRecordableError
from octavo.ops.torch import TorchBackend
from octavo.rank_memory import LOADING_PATIENCE, RankFailure, RankOperation
from octavo.rank_place import RankLink, RankPlace

_REASONS = {
    RankFailure.GONE: "is gone",
    RankFailure.OUT_OF_STEP: "came with another operation or another size",
    RankFailure.ABORTED: "is missing, as another rank or the engine has found",
}


class NativeRanks(NativePooled):
    """The operations of octavo.ops.rank_operations.Ranks."""

    _place = RankPlace()
    _group = 0
    """What the core knows the ranks by; 0 where they do not share memory."""
    _timeout = 0.0

    @property
    def place(self) -> RankPlace:
        return self._place

    def join(self, place: RankPlace, link: RankLink) -> None:
        if place.size > 1 and link.memory is not None:
            self._join_memory(place, link.memory, link.timeout)
        else:
            self._reference.join(place, link)
        self._place = place

    def _join_memory(self, place: RankPlace, memory: int, timeout: float) -> None:
        self._timeout, self._status = timeout, (ctypes.c_int64 * 3)()
        self._row_bytes: dict[tuple[int, ...], Tensor] = {}  # recorded steps have their addresses
        self._group = self.library.core.join_ranks(
            memory=memory,
            rank=place.rank,
            size=place.size,
            tensor_size=place.tensor_size,
            processors=processors(),
            timeout=timeout,
            status=ctypes.addressof(self._status),
        )
        if not self._group:
            os.close(memory)
            if self._status[0]:
                raise self._failure(place)
            raise ValueError(f"RankLink.memory={memory} is no memory for {place.size} ranks (octavo.rank_memory)")
        self.library.failure = lambda: self._failure(place)

    def agree(self) -> None:
        """By tiles, sums have other bits than by vectors, and each rank has timed them by itself."""
        tiles = self.library.tiles
        bf16, attention = self.least([int(tiles.bf16), int(tiles.attention)])
        self.library.set_tiles(Tiles(tiles.codes, bool(bf16), bool(attention)))

    def leave(self) -> None:
        if self._group:
            self.library.core.leave_ranks(ranks=self._group)
            self._group, self.library.failure = 0, None
        else:
            self._reference.leave()
        self._place = RankPlace()

    def all_reduce(self, x: Tensor) -> Tensor:
        if self._place.tensor_size == 1:
            return x
        if not self._group:
            return self._by_reference().all_reduce(x)
        x = self._together(x)
        rows, columns = x.shape
        self.library.core.all_reduce(
            rows=rows, ranks=self._group, x=x.data_ptr(), columns=columns, dtype=DTYPES[x.dtype]
        )
        self._check()
        return x

    def all_gather(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        if self._place.tensor_size == 1:
            return x
        if not self._group:
            return self._by_reference().all_gather(x, widths)
        if len(widths) != self._place.tensor_size or x.shape[1] != widths[self._place.tensor_rank]:
            raise ValueError(f"x is {list(x.shape)}, but the widths of the tensor ranks are {list(widths)}")
        x = self._together(x)
        out = torch.empty(x.shape[0], sum(widths), dtype=x.dtype)
        sizes = tuple(width * x.element_size() for width in widths)
        if sizes not in self._row_bytes:
            self._row_bytes[sizes] = torch.frombuffer((ctypes.c_int64 * len(sizes))(*sizes), dtype=torch.int64)
        self.library.core.all_gather(
            rows=x.shape[0],
            ranks=self._group,
            x=x.data_ptr(),
            row_bytes=self._row_bytes[sizes].data_ptr(),
            out=out.data_ptr(),
        )
        self._check()
        return out

    def send(self, x: Tensor) -> None:
        if not self._group or self._place.is_last_stage:
            return self._by_reference().send(x)
        x = self._together(x)
        row_bytes = x.shape[1] * x.element_size()
        self.library.core.send(rows=x.shape[0], ranks=self._group, x=x.data_ptr(), row_bytes=row_bytes)
        return self._check()

    def receive(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        if not self._group or self._place.is_first_stage:
            return self._by_reference().receive(rows, width, dtype)
        out = torch.empty(rows, width, dtype=dtype)
        row_bytes = width * out.element_size()
        self.library.core.receive(rows=rows, ranks=self._group, out=out.data_ptr(), row_bytes=row_bytes)
        self._check()
        return out

    def await_ranks(self) -> None:
        """Ranks have met when what they meet in returns."""

    def least(self, values: Sequence[int]) -> list[int]:
        if not self._group:
            return self._reference.least(values)
        numbers = (ctypes.c_int64 * len(values))(*values)
        self.library.core.least(ranks=self._group, values=ctypes.addressof(numbers), count=len(values))
        self._check()
        return list(numbers)

    def _by_reference(self) -> TorchBackend:
        if self.library.is_recording:
            raise NotRecordableError("ranks meet by torch.distributed")
        return self._reference

    def _check(self) -> None:
        """Raises what an operation has not been able to do."""
        if self._status[0]:
            raise self._failure(self._place)

    def _failure(self, place: RankPlace) -> RankError:
        failure, operation, missing = RankFailure(self._status[0]), RankOperation(self._status[1]), self._status[2]
        who = "a rank" if missing < 0 else "this rank" if missing == place.rank else f"rank {missing}"
        in_step = operation not in (RankOperation.JOIN, RankOperation.LEAST)
        patience = self._timeout * (1 if in_step else LOADING_PATIENCE)
        reason = _REASONS.get(failure, f"did not come within {patience:g} s")
        message = f"{operation.name.lower()} on rank {place.rank} of {place.size}: {who} {reason}."
        return RankError(message, None if missing < 0 else missing)
