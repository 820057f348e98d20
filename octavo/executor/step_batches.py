"""A step's batches: the engine's integers as tensors, and where each part's state is."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.executor.caches import Caches
from octavo.executor.feature_rows import FeatureRows
from octavo.executor.sequences import SequenceState
from octavo.executor.shape import CacheShape
from octavo.executor.step import SequenceStep
from octavo.executor.step_runs import cross_runs, cut_at_spans, encoded, positions_of
from octavo.ops import AttentionPlan, Backend, RecurrentPlan, SequenceRun, sent
from octavo.parts import Batch, EncoderBatch, PagedView, RecurrentView
from octavo.parts.batch import StateView


class StepBatches:
    """Makes batches.

    Args:
        backend: where tensors are.
        caches: the model's.
        tables: block tables, one for each group.
        shape: of the caches.
        feature_rows: what towers have made.
    """

    def __init__(
        self, backend: Backend, caches: Caches, tables: Sequence[Tensor], shape: CacheShape, feature_rows: FeatureRows
    ) -> None:
        self._backend, self._caches, self._tables, self._shape = backend, caches, tables, shape
        self._feature_rows = feature_rows

    def decoder_batch(
        self,
        steps: Sequence[SequenceStep],
        states: Sequence[SequenceState],
        slots: list[int] | None,
        first_key: int = 0,
    ) -> Batch:
        """The tokens of a step's sequences, one after the other.

        Args:
            slots: those of their adapters.
            first_key: the first place of a sequence that its tokens see anything of.
        """
        tokens: list[int] = []
        runs = []
        for step in steps:
            runs.append(SequenceRun(len(tokens), len(step.token_ids), step.start, step.row, first_key=first_key))
            tokens += step.token_ids
        count = len(tokens)
        counts = [r.num_tokens for r in runs]
        positions = positions_of(steps, states)
        lengths = np.repeat(np.array([s.length for s in steps], dtype=np.int64), counts)
        padding = max(0, self._backend.min_rows - count)
        features = self._feature_rows.place(steps, states)
        ids = sent(tokens + [0] * padding, torch.int64, self._backend.device)
        if features is not None and not features.are_added:
            ids[features.index] = 0  # placeholders need not be in the token table
        return Batch(
            tokens=ids,
            positions=torch.from_numpy(np.pad(positions, ((0, 0), (0, padding)))).squeeze(0).to(self._backend.device),
            lengths=torch.from_numpy(np.pad(lengths, (0, padding))).to(self._backend.device),
            num_tokens=count,
            states=self.views(
                self._attention_plans(states, runs, count),
                self._backend.plan_recurrent(runs) if self._shape.recurrent else None,
            ),
            features=features,
            crosses=self._crosses(states, runs, padding),
            adapters=None if slots is None else self._by_row(slots, counts, padding),
            runs=[(r.first_row, r.num_tokens) for r in runs],
            token_types=self._token_types(steps, states, padding),
        )

    def _token_types(
        self, steps: Sequence[SequenceStep], states: Sequence[SequenceState], padding: int
    ) -> Tensor | None:
        """Which of a pair of texts each token of a step is of; None where all are of the first."""
        if not any(state.start.token_types for state in states):
            return None
        types = list[int]()
        for step, state in zip(steps, states, strict=True):
            count, own = len(step.token_ids), state.start.token_types
            types += own[step.start : step.start + count] if own else [0] * count
        return torch.tensor(types + [0] * padding, device=self._backend.device)

    def _by_row(self, slots: Sequence[int], counts: Sequence[int], padding: int) -> Tensor:
        """The slots of sequences' adapters, for each of their tokens."""
        by_row = np.repeat(np.array(slots, dtype=np.int64), counts)
        return torch.from_numpy(np.pad(by_row, (0, padding), constant_values=-1)).to(self._backend.device)

    def _crosses(self, states: Sequence[SequenceState], runs: Sequence[SequenceRun], padding: int) -> Tensor | None:
        """Which rows of a step see anything in cross-attention; None where all do, or there is none."""
        if self._shape.encoder_group is None:
            return None
        _, crosses = cross_runs(runs, states)
        return None if all(crosses) else torch.tensor(crosses + [False] * padding, device=self._backend.device)

    def encoder_batch(
        self, steps: Sequence[SequenceStep], states: Sequence[SequenceState], slot: int | None
    ) -> EncoderBatch:
        """What the encoder reads for sequences that start, one after the other."""
        tokens, positions, runs = list[int](), list[int](), list[SequenceRun]()
        for step, state in zip(steps, states, strict=True):
            for feature in encoded(step, state):
                assert isinstance(feature.data, list)
                runs.append(SequenceRun(len(tokens), feature.length, 0, step.row))
                tokens += feature.data
                positions += range(feature.length)
        padding = [0] * max(0, self._backend.min_rows - len(tokens))
        group = self._shape.encoder_group
        assert group is not None
        plan = self._backend.plan_attention(runs, self._tables[group], self._shape.block_size, None, len(tokens))
        return EncoderBatch(
            tokens=sent(tokens + padding, torch.int64, self._backend.device),
            positions=sent(positions + padding, torch.int64, self._backend.device),
            runs=[(r.first_row, r.num_tokens) for r in runs],
            cross_kv=self.views([plan] * len(self._shape.windows), None),
            adapter=slot,
        )

    def _attention_plans(
        self, states: Sequence[SequenceState], runs: Sequence[SequenceRun], count: int
    ) -> list[AttentionPlan]:
        """A plan for each group of block tables."""
        plans = []
        for group, (table, window) in enumerate(zip(self._tables, self._shape.windows, strict=True)):
            is_cross = group == self._shape.encoder_group
            seen = cross_runs(runs, states)[0] if is_cross else cut_at_spans(runs, states)
            plans.append(self._backend.plan_attention(seen, table, self._shape.block_size, window, count))
        return plans

    def views(self, plans: Sequence[AttentionPlan], recurrent: RecurrentPlan | None) -> list[StateView]:
        """What each part that declared a state has of it, with a plan for each group."""
        views, caches = list[StateView](), self._caches
        for cache, tensors, group in zip(caches.paged, caches.recurrent, caches.group_of, strict=True):
            if cache is not None:
                views.append(PagedView(cache, plans[group]))
            elif tensors is not None and recurrent is not None:
                views.append(RecurrentView(tensors, recurrent))
        return views
