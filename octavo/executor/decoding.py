"""Steps in which every sequence takes one token, run from a recording of the model's operations.

The model is recorded once, on buffers of its own for as many rows as such a step is likely to have. After that a step
fills in tokens, positions and slots, and runs the recording for as many rows as it has. Where PyTorch computes a part
of it, which is done for all rows of a recording, there are recordings for 1, 2, 4 and so on rows. A model whose
operations depend on values is run as usual.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.executor.shape import CacheShape
from octavo.executor.step import SequenceStep
from octavo.ops import AttentionPlan, Backend, NotRecordableError, Program, RecurrentPlan
from octavo.parts import Batch, CausalLM
from octavo.parts.batch import StateView

log = logging.getLogger("octavo")

MOST_ROWS = 64
"""Sequences in a recorded step. Beyond, a Python call for each operation is little beside the operation itself."""

Views = Callable[[Sequence[AttentionPlan], RecurrentPlan | None], list[StateView]]


class _BySequence(Sequence[Any]):
    """In place of what a plan says of single sequences, which a recording must not depend on."""

    def __len__(self) -> int:
        raise NotRecordableError("it treats each sequence by itself")

    def __getitem__(self, index: Any) -> Any:
        return len(self)


class RecordedSteps:
    """Runs decode steps from a recording, made when the first of them comes.

    Args:
        model: what is run.
        backend: what it computes with.
        shape: of the caches.
        tables: the block table of each group.
        views: makes a batch's state views of plans.
    """

    def __init__(
        self, model: CausalLM, backend: Backend, shape: CacheShape, tables: Sequence[Tensor], views: Views
    ) -> None:
        self.model, self.backend, self.shape, self._views = model, backend, shape, views
        self.rows = min(MOST_ROWS, shape.max_sequences)
        self._tables = tables
        self._recorded: dict[int, tuple[Batch, Program] | None] = {}
        self._tokens, self._positions, self._lengths = (torch.zeros(self.rows, dtype=torch.int64) for _ in range(3))
        self._slot_mappings = [torch.zeros(self.rows, dtype=torch.int64) for _ in tables]
        # Runs of one token each.
        self._runs = [torch.ones(self.rows, 4, dtype=torch.int64) for _ in tables]
        self._recurrent_runs = torch.ones(self.rows, 3, dtype=torch.int64)
        for runs in (*self._runs, self._recurrent_runs):
            runs[:, 0] = torch.arange(self.rows)
        # The same memory: numpy's are quicker to fill.
        self._filled = [t.numpy() for t in (self._tokens, self._positions, self._lengths, self._recurrent_runs)]
        self._groups = [
            (table.numpy(), slots.numpy(), runs.numpy())
            for table, slots, runs in zip(tables, self._slot_mappings, self._runs, strict=True)
        ]

    def run(self, steps: Sequence[SequenceStep]) -> tuple[Batch, Tensor, Tensor] | None:
        """The batch, hidden states `[sequences, hidden_size]` and what the head makes of them, `[sequences, vocab]`.

        All are valid until the next call. None where the step must be run as usual. The block tables hold the steps'
        new blocks already.
        """
        if len(steps) > self.rows or any(len(s.token_ids) != 1 or s.is_new or not s.num_samples for s in steps):
            return None
        found = self._for(self.rows)
        if found is not None and found[1].fixed_rows:
            found = self._for(min(self.rows, 1 << (len(steps) - 1).bit_length()))
        if found is None:
            return None
        self._fill(steps)
        hidden, projected = found[1].run(len(steps))
        return found[0], hidden, projected

    def _for(self, rows: int) -> tuple[Batch, Program] | None:
        """A recording for as many rows, made when it is first asked for."""
        if rows not in self._recorded:
            batch = self._batch(rows)

            def step() -> tuple[Tensor, Tensor]:
                hidden = self.model(batch)
                return hidden, self.model.project(hidden, batch)

            program = self.backend.record(step, rows)
            self._recorded[rows] = None if program is None else (batch, program)
        return self._recorded[rows]

    def _batch(self, rows: int) -> Batch:
        plans = [
            AttentionPlan(
                runs=_BySequence(),
                block_table=table,
                block_size=self.shape.block_size,
                window=window,
                num_tokens=rows,
                slot_mapping=slots[:rows],
                run_table=runs[:rows],
            )
            for table, slots, runs, window in zip(
                self._tables, self._slot_mappings, self._runs, self.shape.windows, strict=True
            )
        ]
        alone: Any = _BySequence()
        recurrent = RecurrentPlan(alone, alone, alone, alone, table=self._recurrent_runs[:rows])
        return Batch(
            tokens=self._tokens[:rows],
            positions=self._positions[:rows],
            lengths=self._lengths[:rows],
            num_tokens=rows,
            states=self._views(plans, recurrent if self.shape.recurrent else None),
        )

    def _fill(self, steps: Sequence[SequenceStep]) -> None:
        count, block_size = len(steps), self.shape.block_size
        rows = np.array([s.row for s in steps])
        positions = np.array([s.start for s in steps])
        tokens, all_positions, lengths, recurrent = self._filled
        tokens[:count] = [s.token_ids[0] for s in steps]
        all_positions[:count] = positions
        lengths[:count] = [s.length for s in steps]
        blocks, places = np.divmod(positions, block_size)
        for group, (table, slots, runs) in enumerate(self._groups):
            slots[:count] = table[rows, blocks] * block_size + places
            runs[:count, 2] = positions
            if group == self.shape.encoder_group:  # each token comes after all of the encoder's
                runs[:count, 2] = [s.num_encoder_tokens - 1 for s in steps]
            runs[:count, 3] = rows
        recurrent[:count, 2] = rows
