"""Steps in which every sequence takes one token, run from a recording of the model's operations.

The model is recorded once, on buffers of its own for as many rows as such a step is likely to have. After that a step
fills in tokens, positions and slots, and runs the recording for as many rows as it has. Where PyTorch computes a part
of it, which is done for all rows of a recording, there are recordings for 1, 2, 4 and so on rows. A model whose
operations depend on values is run as usual.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from octavo.executor.shape import CacheShape
from octavo.executor.step import SequenceStep
from octavo.ops import AttentionPlan, Kernels, NotRecordableError, Program, RecurrentPlan
from octavo.parts import Batch, CausalLM
from octavo.parts.batch import StateView

log = logging.getLogger("octavo")

MOST_ROWS = 64
"""Sequences in a recorded step. Beyond, a Python call for each operation is little beside the operation itself."""

T = TypeVar("T")
Views = Callable[[Sequence[AttentionPlan], RecurrentPlan | None], list[StateView]]


@dataclass
class _RecordedBatch(Batch):
    """A batch whose buffers stay. What is computed once a step is computed outside of the recording, and renewed."""

    kernels: Kernels | None = None
    renewals: list[tuple[Callable[[], Any], tuple[Tensor, ...]]] = field(default_factory=list)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        def kept() -> T:
            assert self.kernels is not None
            with self.kernels.outside_recording():
                value = make()
            self.renewals.append((make, _tensors(value)))
            return value

        return super().once(key, kept)

    def renew(self, rows: int) -> None:
        whole = self.positions, self.lengths
        self.positions, self.lengths = self.positions[:rows], self.lengths[:rows]
        for make, targets in self.renewals:
            for target, value in zip(targets, _tensors(make()), strict=True):
                target[:rows].copy_(value)
        self.positions, self.lengths = whole


def _tensors(value: Any) -> tuple[Tensor, ...]:
    found = value if isinstance(value, tuple) else (value,)
    assert all(isinstance(v, Tensor) for v in found), "what is computed once a step must be tensors by row"
    return found


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
        kernels: what it computes with.
        shape: of the caches.
        tables: the block table of each group.
        views: makes a batch's state views of plans.
    """

    def __init__(
        self, model: CausalLM, kernels: Kernels, shape: CacheShape, tables: Sequence[Tensor], views: Views
    ) -> None:
        self.model, self.kernels, self.shape, self._views = model, kernels, shape, views
        self.rows = min(MOST_ROWS, shape.max_sequences)
        self._tables = tables
        self._recorded: dict[int, tuple[_RecordedBatch, Program] | None] = {}
        self._tokens, self._positions, self._lengths = (torch.zeros(self.rows, dtype=torch.int64) for _ in range(3))
        self._slots = [torch.zeros(self.rows, dtype=torch.int64) for _ in tables]
        self._runs = [torch.zeros(self.rows, 4, dtype=torch.int64) for _ in tables]
        self._recurrent_runs = torch.zeros(self.rows, 3, dtype=torch.int64)

    def hidden(self, steps: Sequence[SequenceStep]) -> Tensor | None:
        """Hidden states `[sequences, width]`, valid until the next call; None where the step must be run as usual.

        The block tables hold the steps' new blocks already.
        """
        if len(steps) > self.rows or any(len(s.token_ids) != 1 or s.restarts or s.sampling is None for s in steps):
            return None
        found = self._for(self.rows)
        if found is not None and found[1].whole:
            found = self._for(min(self.rows, 1 << (len(steps) - 1).bit_length()))
        if found is None:
            return None
        batch, program = found
        self._fill(steps, batch)
        return program.run(len(steps))

    def _for(self, rows: int) -> tuple[_RecordedBatch, Program] | None:
        """A recording for as many rows, made when it is first asked for."""
        if rows not in self._recorded:
            batch = self._batch(rows)
            program = self.kernels.record(lambda: self.model(batch), rows)
            self._recorded[rows] = None if program is None else (batch, program)
        return self._recorded[rows]

    def _batch(self, rows: int) -> _RecordedBatch:
        plans = [
            AttentionPlan(
                runs=_BySequence(),
                block_table=table,
                block_size=self.shape.block_size,
                window=window,
                num_tokens=rows,
                slots=slots[:rows],
                run_table=runs[:rows],
            )
            for table, slots, runs, window in zip(
                self._tables, self._slots, self._runs, self.shape.windows, strict=True
            )
        ]
        alone: Any = _BySequence()
        recurrent = RecurrentPlan(alone, alone, alone, alone, table=self._recurrent_runs[:rows])
        return _RecordedBatch(
            tokens=self._tokens[:rows],
            positions=self._positions[:rows],
            lengths=self._lengths[:rows],
            num_tokens=rows,
            states=self._views(plans, recurrent if self.shape.recurrent else None),
            kernels=self.kernels,
        )

    def _fill(self, steps: Sequence[SequenceStep], batch: _RecordedBatch) -> None:
        count, block_size = len(steps), self.shape.block_size
        rows = np.array([s.row for s in steps])
        positions = np.array([s.start for s in steps])
        self._tokens.numpy()[:count] = [s.token_ids[0] for s in steps]
        self._positions.numpy()[:count] = positions
        self._lengths.numpy()[:count] = [s.length for s in steps]
        tables = zip(self._tables, self._slots, self._runs, strict=True)
        for group, (table, slots, runs) in enumerate(tuple(t.numpy() for t in group) for group in tables):
            slots[:count] = table[rows, positions // block_size] * block_size + positions % block_size
            last = positions
            if group == self.shape.encoder_group:  # each token comes after all of the encoder's
                last = np.array([len(s.encoder_tokens) - 1 for s in steps])
            runs[:count, 0], runs[:count, 1], runs[:count, 2], runs[:count, 3] = np.arange(count), 1, last, rows
        taken = self._recurrent_runs.numpy()
        taken[:count, 0], taken[:count, 1], taken[:count, 2] = np.arange(count), 1, rows
        batch.renew(count)
