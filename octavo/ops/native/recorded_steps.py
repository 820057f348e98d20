"""Steps in which every sequence takes one token, run from a recording of the model's operations.

The model is recorded once, on buffers of its own for as many rows as such a step is likely to have. After that a step
fills in tokens, positions and slots, and runs the recording for as many rows as it has. Where PyTorch computes a part
of it, which is done for all rows of a recording, there are recordings for 1, 2, 4 and so on rows. A model whose
operations depend on values is run as usual.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.ops.native.library import Library
from octavo.ops.native.recording import Program, record
from octavo.ops.plans import AttentionPlan, BlockTables, DecodeInputs, RecurrentPlan
from octavo.ops.recordable import BySequence, NotRecordableError

log = logging.getLogger("octavo")

MAX_ROWS = 64
"""Rows in a recorded step. Beyond, a Python call for each operation is little beside the operation itself."""


class RecordedSteps:
    """Runs decode steps from a recording, made when the first of them comes.

    Args:
        library: what computes.
        function: what is run.
        tables: the block tables that it reads.
        max_rows: rows that a step may have.
        adapters: whether sequences have adapters.
    """

    def __init__(
        self,
        library: Library,
        function: Callable[[DecodeInputs], tuple[Tensor, ...]],
        tables: BlockTables,
        max_rows: int,
        adapters: bool = False,
    ) -> None:
        self._library, self._function, self._tables = library, function, tables
        self.max_rows = self.kept_rows = min(MAX_ROWS, max_rows)
        self.programs: dict[int, Program | None] = {}
        """By their rows; None where a recording cannot be made."""
        rows = self.max_rows
        self._tokens, self._positions, self._lengths = (torch.zeros(rows, dtype=torch.int64) for _ in range(3))
        self._adapters = torch.full((rows,), -1, dtype=torch.int64) if adapters else None
        self._slot_mappings = [torch.zeros(rows, dtype=torch.int64) for _ in tables.tables]
        # Runs of one token each, which sees what comes before it.
        self._runs = [torch.zeros(rows, 6, dtype=torch.int64) for _ in tables.tables]
        self._recurrent_runs = torch.ones(rows, 3, dtype=torch.int64)
        for runs in (*self._runs, self._recurrent_runs):
            runs[:, 0], runs[:, 1] = torch.arange(rows), 1
        # The same memory: numpy's are quicker to fill.
        self._filled = [t.numpy() for t in (self._tokens, self._positions, self._lengths, self._recurrent_runs)]
        self._groups = [
            (table.numpy(), slots.numpy(), runs.numpy())
            for table, slots, runs in zip(tables.tables, self._slot_mappings, self._runs, strict=True)
        ]

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
        program, count = self._program(self.max_rows), len(tokens)
        if program is not None and program.torch_calls:
            program = self._program(min(self.max_rows, 1 << (count - 1).bit_length()))
        if program is None:
            return None
        self._fill(tokens, table_rows, starts, positions, lengths, encoder_lengths, first_keys)
        if self._adapters is not None:
            self._adapters.numpy()[:count] = adapters
        return program.run(count)

    def _program(self, rows: int) -> Program | None:
        """A recording for as many rows, made when it is first asked for."""
        if rows not in self.programs:
            inputs = self._inputs(rows)
            try:
                self.programs[rows] = record(self._library, lambda: self._function(inputs), rows)
            except NotRecordableError as error:
                log.info("decode steps are run operation by operation: %s", error)
                self.programs[rows] = None
        return self.programs[rows]

    def _inputs(self, rows: int) -> DecodeInputs:
        alone = BySequence()
        plans = [
            AttentionPlan(alone, table, self._tables.block_size, window, rows, slots[:rows], runs[:rows])
            for table, window, slots, runs in zip(
                self._tables.tables, self._tables.windows, self._slot_mappings, self._runs, strict=True
            )
        ]
        recurrent = RecurrentPlan(alone, self._recurrent_runs[:rows])
        adapters = None if self._adapters is None else self._adapters[:rows]
        tokens, positions, lengths = (t[:rows] for t in (self._tokens, self._positions, self._lengths))
        return DecodeInputs(tokens, positions, lengths, plans, recurrent, adapters)

    def _fill(
        self,
        tokens: Sequence[int],
        table_rows: Sequence[int],
        starts: Sequence[int],
        positions: Sequence[int],
        lengths: Sequence[int],
        encoder_lengths: Sequence[int],
        first_keys: Sequence[int],
    ) -> None:
        count = len(tokens)
        rows, before = np.array(table_rows), np.array(starts)
        all_tokens, all_positions, all_lengths, recurrent = self._filled
        all_tokens[:count], all_positions[:count], all_lengths[:count] = tokens, positions, lengths
        blocks, places = np.divmod(before, self._tables.block_size)
        for group, (table, slots, runs) in enumerate(self._groups):
            slots[:count] = table[rows, blocks] * self._tables.block_size + places
            runs[:count, 2] = before
            if group == self._tables.encoder_group:  # each token comes after all of the encoder's
                runs[:count, 2] = np.array(encoder_lengths) - 1
                runs[:count, 5] = first_keys
            runs[:count, 3] = rows
        recurrent[:count, 2] = rows
