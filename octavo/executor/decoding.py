"""Steps in which every sequence takes one token, run from a recording of the model's operations.

The model is recorded once, on buffers of its own for as many rows as such a step is likely to have. After that a step
fills in tokens, positions and slots, and runs the recording for as many rows as it has. A model that computes with
more than the core's operations is run as usual.
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
from octavo.ops import AttentionPlan, Kernels, Program, RecurrentPlan
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
        self.model, self.kernels, self.shape = model, kernels, shape
        self.rows = min(MOST_ROWS, shape.max_sequences)
        self._tables = [table.numpy() for table in tables]
        self._program: Program | None = None
        self._tried = False
        self._tokens, self._positions, self._lengths = (torch.zeros(self.rows, dtype=torch.int64) for _ in range(3))
        plans = [
            AttentionPlan(
                runs=(),
                block_table=table,
                block_size=shape.block_size,
                window=window,
                num_tokens=self.rows,
                slots=torch.zeros(self.rows, dtype=torch.int64),
                run_table=torch.zeros(self.rows, 4, dtype=torch.int64),
            )
            for table, window in zip(tables, shape.windows, strict=True)
        ]
        nothing = torch.empty(0, dtype=torch.int64)
        self._run_rows = torch.zeros(self.rows, 3, dtype=torch.int64)
        recurrent = RecurrentPlan(nothing, nothing, nothing, [], table=self._run_rows)
        self._plans = [(p.slots.numpy(), p.run_table.numpy()) for p in plans]
        self._batch = _RecordedBatch(
            tokens=self._tokens,
            positions=self._positions,
            lengths=self._lengths,
            num_tokens=self.rows,
            states=views(plans, recurrent if shape.recurrent else None),
            kernels=kernels,
        )

    def hidden(self, steps: Sequence[SequenceStep]) -> Tensor | None:
        """Hidden states `[sequences, width]`, valid until the next call; None where the step must be run as usual.

        The block tables hold the steps' new blocks already.
        """
        if len(steps) > self.rows or any(len(s.token_ids) != 1 or s.restarts or s.sampling is None for s in steps):
            return None
        if not self._tried:
            self._tried = True
            self._program = self.kernels.record(lambda: self.model(self._batch), self.rows)
        if self._program is None:
            return None
        self._fill(steps)
        return self._program.run(len(steps))

    def _fill(self, steps: Sequence[SequenceStep]) -> None:
        count, block_size = len(steps), self.shape.block_size
        rows = np.array([s.row for s in steps])
        positions = np.array([s.start for s in steps])
        self._tokens.numpy()[:count] = [s.token_ids[0] for s in steps]
        self._positions.numpy()[:count] = positions
        self._lengths.numpy()[:count] = [s.length for s in steps]
        for group, (table, (slots, runs)) in enumerate(zip(self._tables, self._plans, strict=True)):
            slots[:count] = table[rows, positions // block_size] * block_size + positions % block_size
            last = positions
            if group == self.shape.encoder_group:  # each token comes after all of the encoder's
                last = np.array([len(s.encoder_tokens) - 1 for s in steps])
            runs[:count, 0], runs[:count, 1], runs[:count, 2], runs[:count, 3] = np.arange(count), 1, last, rows
        taken = self._run_rows.numpy()
        taken[:count, 0], taken[:count, 1], taken[:count, 2] = np.arange(count), 1, rows
        self._batch.renew(count)
