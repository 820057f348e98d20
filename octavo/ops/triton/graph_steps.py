"""Steps in which every sequence takes one token, as graphs: all launches of the model in one call.

A graph is of a fixed number of rows, and reads buffers that each step fills anew; it is made when a step of its size
first comes, and a step of fewer rows is padded. A row of padding has a run without tokens, so that it changes no state,
and its keys go to the cache's first block, which is nobody's. What a step needs crosses to the device in one copy that
nothing waits for; where its tokens go in the cache is worked out there, in the graph. The host waits for a step's
tokens before it fills the buffers again.

Ranks record the same steps at the same time, what they meet in too. Each first tries a step by itself, and then they
agree: a rank that found out in the middle that it cannot would leave the others waiting, and so would one that runs a
step operation by operation where another has a graph, whose rows are more.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from octavo.errors import RankError, shorten
from octavo.ops.plans import AttentionPlan, BlockTables, DecodeInputs, RecurrentPlan
from octavo.ops.recordable import BySequence, NotRecordableError, recording

log = logging.getLogger("octavo")

MAX_ROWS = 256
"""Rows in a recorded step. Beyond, launches are short beside what they launch."""
STEP = 32
"""Sizes from here on are multiples of it, those below powers of two: a product's tile has as many rows or more."""
RUN, STATE_RUN = 6, 3
"""Numbers of a run in a plan's table, of attention and of states."""

Function = Callable[[], tuple[Tensor, ...]]


class Graph(Protocol):
    """A recorded function."""

    def rehearse(self, function: Function) -> None:
        """Find out whether it can be recorded. Raises NotRecordableError."""
        ...

    def record(self, function: Function) -> tuple[Tensor, ...]:
        """Record it, and give its results: buffers that `replay` fills.

        Raises NotRecordableError where it cannot be.
        """
        ...

    def replay(self) -> None: ...


class CalledAgain:
    """In place of a graph where there is no GPU: the function runs again, on the same buffers."""

    def rehearse(self, function: Function) -> None:
        function()

    def record(self, function: Function) -> tuple[Tensor, ...]:
        self._function, self._results = function, function()
        return self._results

    def replay(self) -> None:
        for kept, new in zip(self._results, self._function(), strict=True):
            kept.copy_(new)


class DeviceGraph:
    """A CUDA graph; on AMD's GPUs, PyTorch has HIP's under the same names.

    Args:
        device: where it runs.
        pool: memory that graphs share, of which one runs at a time.
    """

    def __init__(self, device: torch.device, pool: Any) -> None:
        self._device, self._pool, self._graph = device, pool, torch.cuda.CUDAGraph()

    def rehearse(self, function: Function) -> None:
        now, aside = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        aside.wait_stream(now)
        with torch.cuda.stream(aside):
            function()  # compiles kernels, and copies to the device what is copied once
            self._must_not_wait(function)
        now.wait_stream(aside)

    def record(self, function: Function) -> tuple[Tensor, ...]:
        self.rehearse(function)  # ranks have met then, as they must have before a meeting is recorded
        try:
            # What other threads do (NCCL's looks at what is done, copies to and from the host) is not recorded.
            with torch.cuda.graph(self._graph, pool=self._pool, capture_error_mode="thread_local"):
                return function()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, RankError) as error:  # nothing runs here: no rank can be missing
            raise NotRecordableError(f"recording failed ({shorten(str(error))})") from error

    def replay(self) -> None:
        self._graph.replay()

    @staticmethod
    def _must_not_wait(function: Function) -> None:
        """Find what cannot be recorded before it spoils a recording."""
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            function()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise NotRecordableError("an operation waits for the device") from error
        finally:
            torch.cuda.set_sync_debug_mode(before)


def sizes_up_to(rows: int) -> list[int]:
    """Of graphs: padding is less than the half below STEP, and at most a STEP's rows beyond."""
    sizes = [1 << i for i in range(STEP.bit_length()) if 1 << i < min(STEP, rows)]
    return [*sizes, *range(STEP, rows, STEP), rows]


class Meeting(Protocol):
    """Ranks that record together."""

    def apart(self) -> AbstractContextManager[None]:
        """In here nobody is met."""
        ...

    def least(self, values: Sequence[int]) -> list[int]:
        """The smallest of all ranks' values at each index."""
        ...


class GraphSteps:
    """Runs decode steps from graphs.

    Args:
        make_graph: gives an empty one.
        device: where tensors are.
        function: what is run.
        tables: the block tables that it reads.
        max_rows: rows that a step may have.
        adapters: whether sequences have adapters.
        ranks: those that run the same steps; None for this process alone.
    """

    def __init__(
        self,
        make_graph: Callable[[], Graph],
        device: torch.device,
        function: Callable[[DecodeInputs], tuple[Tensor, ...]],
        tables: BlockTables,
        max_rows: int,
        adapters: bool = False,
        ranks: Meeting | None = None,
    ) -> None:
        self._make_graph, self._function, self._tables = make_graph, function, tables
        self.max_rows = min(MAX_ROWS, max_rows)
        self._sizes, self._is_recordable, self._ranks = sizes_up_to(self.max_rows), True, ranks
        self.kept_rows = sum(self._sizes)
        self.graphs: dict[int, tuple[Graph, tuple[Tensor, ...]]] = {}
        """By their rows, with their results."""
        rows, groups = self.max_rows, len(tables.tables)
        widths = [1] * 6 + [STATE_RUN] + [RUN] * groups
        host = torch.zeros(rows * sum(widths), dtype=torch.int64, pin_memory=device.type != "cpu")
        self._host, self._device = host, host if device.type == "cpu" else host.to(device)
        # The same memory: numpy's are quicker to fill.
        filled = [part.view(rows, -1).numpy() for part in host.split([rows * width for width in widths])]
        read = [part.view(rows, -1) for part in self._device.split([rows * width for width in widths])]
        self._fields, self._state_runs, self._runs = [f[:, 0] for f in filled[:6]], filled[6], filled[7:]
        self._own_fields, self._own_state_runs, self._own_runs = [r[:, 0] for r in read[:6]], read[6], read[7:]
        self._slot_mappings = [torch.zeros(rows, dtype=torch.int64, device=device) for _ in tables.tables]
        self._has_adapters = adapters
        for runs in (self._state_runs, *self._runs):
            runs[:, 0] = np.arange(rows)
        self._fields[3][:] = -1

    def run(
        self,
        tokens: Sequence[int],
        table_rows: Sequence[int],
        starts: Sequence[int],
        positions: Sequence[int],
        lengths: Sequence[int],
        encoder_lengths: Sequence[int],
        first_keys: Sequence[int],
        adapters: Sequence[int] = (),
    ) -> tuple[Tensor, ...] | None:
        """See octavo.ops.prepared.RecordedDecode."""
        count = len(tokens)
        size = next(s for s in self._sizes if s >= count)
        if not self._is_recordable:
            return None
        if size not in self.graphs:
            self._fill(0, size, [()] * 6, (), ())  # it is tried on padding, which changes nothing
            if not self._record(size):
                return None
        fields = tokens, positions, lengths, adapters or [-1] * count, starts, table_rows
        self._fill(count, size, fields, encoder_lengths, first_keys)
        graph, results = self.graphs[size]
        graph.replay()
        return results

    def _record(self, size: int) -> bool:
        """A graph of so many rows, if there can be one."""
        inputs = self._inputs(size)

        def step() -> tuple[Tensor, ...]:
            self._place(size)
            return self._function(inputs)

        def rehearse(ranks: Meeting) -> None:
            with ranks.apart():
                graph.rehearse(step)

        def record() -> None:
            self.graphs[size] = graph, graph.record(step)

        graph, ranks = self._make_graph(), self._ranks
        with recording():
            if ranks is None or self._all_can(lambda: rehearse(ranks)):
                self._all_can(record)
        return self._is_recordable

    def _all_can(self, act: Callable[[], None]) -> bool:
        """Do it, if that can be done on all ranks; else nothing will be recorded any more."""
        problem: NotRecordableError | None = None
        try:
            act()
        except NotRecordableError as error:
            problem = error
        if self._ranks is not None and self._ranks.least([problem is None]) == [0]:
            problem = problem or NotRecordableError("another rank cannot record them")
        if problem is not None:
            log.info("decode steps are run operation by operation: %s", problem)
            self.forget()
            self._is_recordable = False
        return problem is None

    def forget(self) -> None:
        """Give the graphs back. They are made anew when they are needed."""
        self.graphs.clear()

    def _place(self, size: int) -> None:
        """Which slots of the cache the rows' keys go to; padding's are of block 0."""
        starts, rows = self._own_fields[4][:size], self._own_fields[5][:size]
        block, place = starts // self._tables.block_size, starts % self._tables.block_size
        for table, slots, runs in zip(self._tables.tables, self._slot_mappings, self._own_runs, strict=True):
            # An encoder's table may have fewer columns than a sequence has blocks: it is written by another operation.
            own = table[rows, block.clamp(max=table.shape[1] - 1)] * self._tables.block_size + place
            slots[:size] = own * runs[:size, 1]

    def _inputs(self, size: int) -> DecodeInputs:
        alone = BySequence()
        plans = [
            AttentionPlan(alone, table, self._tables.block_size, window, size, slots[:size], runs[:size])
            for table, window, slots, runs in zip(
                self._tables.tables, self._tables.windows, self._slot_mappings, self._own_runs, strict=True
            )
        ]
        recurrent = RecurrentPlan(alone, self._own_state_runs[:size])
        tokens, positions, lengths, adapters = (field[:size] for field in self._own_fields[:4])
        return DecodeInputs(tokens, positions, lengths, plans, recurrent, adapters if self._has_adapters else None)

    def _fill(
        self,
        count: int,
        size: int,
        fields: Sequence[Sequence[int]],
        encoder_lengths: Sequence[int],
        first_keys: Sequence[int],
    ) -> None:
        """Write a step's values to the device: `count` rows, and padding up to `size`."""
        for column, values, padding in zip(self._fields, fields, (0, 0, 1, -1, 0, 0), strict=True):
            column[:count], column[count:size] = values, padding
        starts, rows = fields[4], fields[5]
        for group, runs in enumerate(self._runs):
            runs[:count, 1], runs[count:size, 1] = 1, 0
            runs[:count, 2], runs[:count, 3] = starts, rows
            if group == self._tables.encoder_group:  # each token comes after all of the encoder's
                runs[:count, 2] = np.array(encoder_lengths, dtype=np.int64) - 1
                runs[:count, 5] = first_keys
            runs[count:size, 2:] = 0
        self._state_runs[:count, 1], self._state_runs[count:size, 1] = 1, 0
        self._state_runs[:count, 2], self._state_runs[count:size, 2] = rows, 0
        if self._device is not self._host:
            self._device.copy_(self._host, non_blocking=True)
