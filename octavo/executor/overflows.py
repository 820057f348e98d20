"""Sequences whose values are not finite: they end alone, and leave nothing in the caches."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from octavo.executor.caches import Caches
from octavo.executor.sequences import SequenceState
from octavo.executor.shape import CacheShape
from octavo.executor.step import SequenceResult, SequenceStep
from octavo.ops import Backend
from octavo.parts import Batch, PagedView

NOT_FINITE_HERE = "the model computed values that are not finite; try dtype='float32', or check the checkpoint"


class Overflows:
    """Finds them, and takes what they wrote out of the caches.

    A value that is not finite would reach the others: zero weight times infinity is not a number.

    Args:
        backend: what computes.
        caches: what sequences remember.
        tables: the block tables, by group.
        shape: of the caches.
        reads_again: whether the last token of a cached beginning is computed again.
    """

    def __init__(
        self, backend: Backend, caches: Caches, tables: Sequence[Tensor], shape: CacheShape, reads_again: bool
    ) -> None:
        self._backend, self._caches, self._tables, self._shape = backend, caches, tables, shape
        self._reads_again = reads_again

    def of_step(
        self,
        hidden: Tensor,
        batch: Callable[[], Batch],
        steps: Sequence[SequenceStep],
        states: Sequence[SequenceState],
        results: Sequence[SequenceResult],
    ) -> Callable[[], None]:
        """What fails them in `results`. The first call waits for the device, where tokens can be waited for with it.

        Args:
            hidden: [rows, hidden_size] of the step.
            batch: makes the step's batch, if it is needed.
            steps: the sequences.
            states: theirs.
            results: theirs.
        """
        left = [self._backend.finite(hidden)]

        def check() -> None:
            if left:
                self._backend.await_ranks()
                if not left.pop():
                    self._fail(hidden, batch(), steps, states, results)

        return check

    def _fail(
        self,
        hidden: Tensor,
        batch: Batch,
        steps: Sequence[SequenceStep],
        states: Sequence[SequenceState],
        results: Sequence[SequenceResult],
    ) -> None:
        """Fail the sequences whose values overflowed, and take what they wrote out of the caches.

        Where only drafts overflowed, that is no failure: the sequence itself would never have come there.
        """
        sound = torch.isfinite(hidden).all(-1)
        first = 0
        for step, state, result in zip(steps, states, results, strict=True):
            rows = slice(first, first + len(step.token_ids))
            first = rows.stop
            if bool(sound[rows].all()):
                continue
            result.non_finite = True
            own = slice(rows.start, rows.stop - step.num_drafts)
            result.draft_overflowed = bool(step.num_drafts and sound[own].all())
            if not result.draft_overflowed:
                result.error = NOT_FINITE_HERE
                if state.sampling is not None:
                    state.sampling.late_logits = None
            for view, group in zip(batch.states, self._caches.group_of, strict=True):
                if isinstance(view, PagedView) and group != self._shape.encoder_group:
                    # Whole blocks, however a block is laid out: none that is still to be filled is shared. The block
                    # of a token that is there already, and computed again for what a head reads of it, is.
                    again = self._reads_again and step.is_new and step.start > 0
                    blocks = view.plan.slot_mapping[rows.start + again : rows.stop] // self._shape.block_size
                    view.cache.clear(blocks)
            self._forget_encoder(step, batch)
            self.zero(step.row)

    def _forget_encoder(self, step: SequenceStep, batch: Batch) -> None:
        """Take what the encoder wrote for a sequence out of the caches."""
        group = self._shape.encoder_group
        if group is None:
            return
        blocks = self._tables[group][step.row, : -(-step.num_cross_rows // self._shape.block_size)]
        for view, view_group in zip(batch.states, self._caches.group_of, strict=True):
            if view_group == group and isinstance(view, PagedView):
                view.cache.clear(blocks)

    def zero(self, row: int) -> None:
        """Clear the states of fixed size of a row."""
        for tensors in self._caches.recurrent:
            for tensor in (tensors or {}).values():
                tensor[row].zero_()
