"""Ranks that meet through torch.distributed: gloo on CPUs, NCCL on GPUs.

What one rank sends another has a tag made of the operation and its sizes, so that ranks that are out of step wait for
each other in vain, and do not take one thing for another. NCCL has no tags.

On a GPU the device waits, and the host goes on launching: so a step can be recorded, collectives and all. That another
rank does not come is seen where the host waits for the step (`await_ranks`); NCCL itself ends a process that waits in
vain outside of recorded steps.
"""

import os
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from octavo.errors import RankError, shorten
from octavo.rank_memory import LOADING_PATIENCE
from octavo.rank_place import RankLink, RankPlace

UNRECEIVED = 16
"""Tensors that may be on their way to the next stage."""
LARGE_SUM = 1 << 18
"""Bytes that more than two ranks rather sum up in parts: they send less, but twice."""
BETWEEN_LOOKS = 20e-6
"""Seconds between looks at whether a GPU is done."""


class DistributedRanks:
    """The operations of octavo.ops.rank_operations.Ranks.

    Args:
        device: where tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.place, self._timeout = RankPlace(), 0.0
        self._distributed: Any = None  # the module, which takes a second to import
        self._tensor_group: Any = None
        self._sent: deque[tuple[Any, Tensor]] = deque()
        self._is_apart = False

    def join(self, place: RankPlace, link: RankLink) -> None:
        if place.size == 1:
            self.place = place
            return
        if link.address is None:
            raise ValueError(f"{place.size} ranks need RankLink.address to meet by torch.distributed")
        import torch.distributed as distributed

        if link.address.startswith("file:"):  # one machine, whose name need not have an address
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self._distributed, self._timeout = distributed, link.timeout * LOADING_PATIENCE
        with self._named("join", None, place):
            distributed.init_process_group(
                "gloo" if self.device.type == "cpu" else "cpu:gloo,cuda:nccl",
                init_method=link.address,
                rank=place.rank,
                world_size=place.size,
                timeout=timedelta(seconds=self._timeout),
            )
            if self.device.type != "cpu":
                for stage in range(place.num_stages):
                    first = stage * place.tensor_size
                    members = list(range(first, first + place.tensor_size))
                    group = distributed.new_group(members, timeout=timedelta(seconds=self._timeout))
                    self._tensor_group = group if stage == place.stage else self._tensor_group
        self.place, self._timeout = place, link.timeout

    def agree(self) -> None:
        self.least([0, 0])  # the least of what any backend may offer

    def leave(self) -> None:
        if self._distributed is not None:
            self._sent.clear()
            with suppress(RuntimeError):  # of a group whose ranks are gone
                self._distributed.destroy_process_group()
        self._distributed, self._tensor_group, self.place = None, None, RankPlace()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """In here nobody is met: a step can be tried, whose values are of no account, before all do it together."""
        self._is_apart = True
        try:
            yield
        finally:
            self._is_apart = False

    def await_ranks(self) -> None:
        if self.device.type == "cpu" or self.place.size == 1:
            return
        cuda: Any = torch.cuda  # whose events have no types
        event = cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        until = time.monotonic() + self._timeout
        while not event.query():
            if time.monotonic() > until:
                place = f"rank {self.place.rank} of {self.place.size}"
                raise RankError(f"a step on {place}: a rank is gone, or did not come within {self._timeout:g} s.")
            time.sleep(BETWEEN_LOOKS)

    def all_reduce(self, x: Tensor) -> Tensor:
        if self.place.tensor_size == 1 or self._is_apart:
            return x
        size, count = self.place.tensor_size, x.numel()
        if self._tensor_group is None and size > 2 and count * x.element_size() > LARGE_SUM:
            parts = x.reshape(1, count).tensor_split(size, dim=1)
            own = _sum(self._exchanged("all_reduce", parts, self._tensor_ranks))
            widths = [part.shape[1] for part in parts]
            return torch.cat(self._gathered("all_reduce", own, widths), dim=1).view(x.shape)
        return _sum(self._gathered("all_reduce", x, [x.shape[1]] * size))

    def all_gather(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        if self.place.tensor_size == 1:
            return x
        if len(widths) != self.place.tensor_size or x.shape[1] != widths[self.place.tensor_rank]:
            raise ValueError(f"x is {list(x.shape)}, but the widths of the tensor ranks are {list(widths)}")
        if self._is_apart:
            return x.new_zeros(x.shape[0], sum(widths))
        return torch.cat(self._gathered("all_gather", x, widths), dim=1)

    def send(self, x: Tensor) -> None:
        peer = self.place.rank + self.place.tensor_size
        if peer >= self.place.size:
            raise ValueError("the last stage has nowhere to send to")
        if self._is_apart:
            return
        if x.device.type != "cpu":  # the device goes on when it is taken; a stage has no more steps than stages follow
            with self._named("send", peer):
                self._wait(self._send(x.contiguous(), peer, _tag("send", x)), x)
            return
        kept = x.detach().clone(memory_format=torch.contiguous_format)
        with self._named("send", peer):
            if len(self._sent) == UNRECEIVED:
                self._wait(*self._sent.popleft())
            self._sent.append((self._send(kept, peer, _tag("send", kept)), kept))

    def receive(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        peer = self.place.rank - self.place.tensor_size
        if peer < 0:
            raise ValueError("the first stage has nowhere to receive from")
        if self._is_apart:
            return torch.zeros(rows, width, dtype=dtype, device=self.device)
        x = torch.empty(rows, width, dtype=dtype, device=self.device)
        with self._named("receive", peer):
            self._wait(self._receive(x, peer, _tag("send", x)), x)
        return x

    def least(self, values: Sequence[int]) -> list[int]:
        if self.place.size == 1:
            return list(values)
        own, ranks = torch.tensor([list(values)], dtype=torch.int64), range(self.place.size)
        timeout, self._timeout = self._timeout, self._timeout * LOADING_PATIENCE
        try:
            everyone = self._exchanged("least", [own] * len(ranks), ranks)
        finally:
            self._timeout = timeout
        return [int(value) for value in torch.cat(everyone).amin(dim=0)]

    def _gathered(self, operation: str, x: Tensor, widths: Sequence[int]) -> list[Tensor]:
        """The tensor ranks' rows, in their order."""
        if self._tensor_group is None:
            results = [x.new_empty(x.shape[0], width) for width in widths]
            return self._exchanged(operation, [x] * len(widths), self._tensor_ranks, results)
        most = max(widths)
        results = [x.new_empty(x.shape[0], most) for _ in widths]  # one collective, which takes equal sizes
        x = torch.nn.functional.pad(x, (0, most - x.shape[1])).contiguous()
        with self._named(operation, None):
            self._wait(self._distributed.all_gather(results, x, group=self._tensor_group, async_op=True), x)
        return [rows[:, :width] for rows, width in zip(results, widths, strict=True)]

    @property
    def _tensor_ranks(self) -> range:
        first = self.place.stage * self.place.tensor_size
        return range(first, first + self.place.tensor_size)

    def _exchanged(
        self, operation: str, sends: Sequence[Tensor], ranks: range, results: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """What each of `ranks`, this one among them, has for this one, whose `sends` are for each of them.

        `results` are where it goes; by default they are as large as what this one has for itself.
        """
        own = ranks.index(self.place.rank)
        sends = [x.contiguous() for x in sends]
        results = [torch.empty_like(sends[own]) for _ in ranks] if results is None else list(results)
        results[own] = sends[own]
        received, sent = dict[int, Any](), dict[int, Any]()
        with self._named(operation, None):
            for i, rank in enumerate(ranks):
                if i != own and results[i].numel():
                    received[rank] = self._receive(results[i], rank, _tag(operation, results[i]))
            for i, rank in enumerate(ranks):
                if i != own and sends[i].numel():
                    sent[rank] = self._send(sends[i], rank, _tag(operation, sends[i]))
        for works in (received, sent):
            for rank, work in works.items():
                with self._named(operation, rank):
                    self._wait(work, sends[own])
        return results

    def _send(self, x: Tensor, rank: int, tag: int) -> Any:
        return self._distributed.isend(x.view(torch.uint8), rank, tag=tag)

    def _receive(self, x: Tensor, rank: int, tag: int) -> Any:
        return self._distributed.irecv(x.view(torch.uint8), rank, tag=tag)

    def _wait(self, work: Any, x: Tensor) -> None:
        """Wait for what is done with `x`, where it is."""
        if x.device.type == "cpu":
            work.wait(timedelta(seconds=self._timeout))
        else:
            work.wait()  # with a limit the host would wait, at each collective

    @contextmanager
    def _named(self, operation: str, missing: int | None, place: RankPlace | None = None) -> Iterator[None]:
        """Its errors say which rank of which operation is missing, where that is known."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            place = place or self.place
            who = "a rank" if missing is None else f"rank {missing}"
            raise RankError(
                f"{operation} on rank {place.rank} of {place.size}: {who} is gone, did not come within "
                f"{self._timeout:g} s, or came with another operation or size ({shorten(error)}).",
                missing,
            ) from error


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """In their order, in float32, rounded once."""
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    return total.to(parts[0].dtype)


def _tag(operation: str, x: Tensor) -> int:
    return zlib.crc32(f"{operation} {list(x.shape)} {x.dtype}".encode()) & 0x3FFFFFFF
