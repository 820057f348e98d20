"""Guesses by a head that reads the model's hidden rows, and whose keys lie in the model's own blocks.

The row of the token at a place is made of its embedding and of the hidden row of the token before it. So its keys
depend on no later token: whoever finds a block in the prefix cache finds the head's keys in it too, and needs for its
first row only the hidden row before, for which the engine has the last token of the prefix computed again. The first
token of all has none, and nobody sees its place.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from octavo.executor.draft_sampling import draft_sampling
from octavo.executor.guessing_ranks import GuessingRanks
from octavo.executor.runner import ModelRunner
from octavo.executor.sampling_state import SamplingState
from octavo.executor.sequences import SequenceState
from octavo.executor.step import SequenceResult, SequenceStep
from octavo.loading.model import LoadedModel
from octavo.parts import AxialRotaryEmbedding, Batch, PagedView
from octavo.parts.draft_head import DraftHead

FIRST_KEY = 1
"""The first place that has a key of the head."""


@dataclass(eq=False, slots=True)
class _Reading:
    """How far the head has come with a sequence."""

    done: int
    """The first place whose token it has not read."""
    row: int
    """In the block tables."""
    sampling: SamplingState | None
    """On the rank that chooses."""
    before: Tensor | None = None
    """The hidden row `[1, hidden_size]` of the token before that place; None where a step to come gives it."""
    made: tuple[Tensor, Tensor] | None = None
    """What the head made of the sequence's last token, where guesses are wanted: `[1, hidden_size]` each."""


def is_wanted(step: SequenceStep, result: SequenceResult) -> bool:
    """Whether guesses are wanted at what follows the tokens that a step has chosen for a sequence."""
    return bool(step.next_drafts and result.token_ids) and result.error is None and not result.ended


def rows_without_adapters(rows: Tensor) -> Batch:
    """What a product needs to know of `rows`, which no adapter changes."""
    empty = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    return Batch(empty, empty, empty, len(rows), [])


class HeadDrafter:
    """A Drafter with a DraftHead, on all ranks of the last stage. It reads all that the model does.

    Args:
        loaded: the model, which has the head.
        runner: computes its steps.
    """

    def __init__(self, loaded: LoadedModel, runner: ModelRunner) -> None:
        head = loaded.model.draft_head
        assert head is not None
        self._head: DraftHead = head
        self._model, self._backend, self._batches = loaded.model, loaded.backend, runner.batches
        self._most = max(loaded.info.num_embeddings or 0, loaded.info.vocab_size) - 1
        self._states = [cast(int, m.state_index) for m in head.modules() if hasattr(m, "state_index")]
        self._ranks = GuessingRanks(loaded.backend)
        self._has_axes = any(isinstance(module, AxialRotaryEmbedding) for module in head.modules())
        self._readings: dict[int, _Reading] = {}

    def read(
        self,
        steps: Sequence[SequenceStep],
        states: Sequence[SequenceState],
        results: Sequence[SequenceResult],
        hidden: Tensor,
    ) -> None:
        """See HiddenDrafter."""
        with torch.inference_mode(), self._backend.computing():
            hidden = self._head.combined(hidden, rows_without_adapters(hidden))
            fills, owners, rows, first = list[SequenceStep](), list[SequenceState](), list[Tensor](), 0
            for step, state, result in zip(steps, states, results, strict=True):
                own = hidden[first : first + len(step.token_ids)]
                first += len(own)
                fill = self._fill(step, state, result, own)
                if fill is not None:
                    fills.append(fill[0])
                    owners.append(state)
                    rows.append(fill[1])
            if fills:
                self._run(fills, owners, torch.cat(rows))

    def _fill(
        self, step: SequenceStep, state: SequenceState, result: SequenceResult, hidden: Tensor
    ) -> tuple[SequenceStep, Tensor] | None:
        """The tokens of a sequence that the head can read after a step, with the hidden rows before them."""
        if result.non_finite:
            self.end([step.seq_id])
            return None
        if step.is_new:
            sampling = None if state.sampling is None else draft_sampling(state)
            self._readings[step.seq_id] = _Reading(step.start + FIRST_KEY, step.row, sampling)
        if (reading := self._readings.get(step.seq_id)) is None:
            return None
        known = step.token_ids[: len(step.token_ids) - step.num_drafts] + result.token_ids
        right = len(result.token_ids) - 1 if step.num_drafts and result.token_ids else 0
        end, wanted = step.start + len(step.token_ids) - step.num_drafts + right, is_wanted(step, result)
        stop = end + wanted  # with the token that was just chosen, whose hidden row is the next step's
        begin, at = reading.done, reading.done - 1 - step.start
        rows = hidden[max(0, at) : stop - 1 - step.start]
        if at < 0:
            if at < -1 or reading.before is None:  # a step has failed that it should have read
                self.end([step.seq_id])
                return None
            rows = torch.cat([reading.before, rows])
        reading.done, reading.made = stop, None
        reading.before = None if wanted else hidden[end - 1 - step.start : end - step.start].clone()
        if stop <= begin:
            return None
        # An adapter's own tokens are read as others.
        tokens = [min(token, self._most) for token in known[begin - step.start : stop - step.start]]
        return SequenceStep(step.seq_id, step.row, tokens, begin, step.length, [], next_drafts=int(wanted)), rows

    def _run(self, fills: Sequence[SequenceStep], states: Sequence[SequenceState], hidden: Tensor) -> Batch:
        """Have the head read tokens, and keep what it makes of the last one of those that want guesses."""
        batch = self._batches.decoder_batch(fills, states, None, FIRST_KEY)
        if batch.positions.dim() > 1 and not self._has_axes:  # a head of text alone, beside a model of pictures
            batch = replace(batch, positions=batch.positions[0])
        padding = batch.tokens.shape[0] - hidden.shape[0]
        if padding:
            hidden = torch.cat([hidden, hidden.new_zeros(padding, hidden.shape[1])])
        normed, carried = self._head(self._model.embed(batch), hidden, batch)
        if not self._backend.finite(carried[: batch.num_tokens]):
            self._lose_non_finite(carried, batch, fills)
        last = -1
        for fill in fills:
            last += len(fill.token_ids)
            reading = self._readings.get(fill.seq_id)
            if fill.next_drafts and reading is not None:
                reading.made = normed[last : last + 1], carried[last : last + 1]
        return batch

    def _lose_non_finite(self, carried: Tensor, batch: Batch, fills: Sequence[SequenceStep]) -> None:
        """Guess no more for sequences whose values overflowed: nothing of that may stay in blocks, which others get."""
        sound, first = torch.isfinite(carried).all(-1), 0
        for fill in fills:
            rows = slice(first, first + len(fill.token_ids))
            first = rows.stop
            if not bool(sound[rows].all()):
                self.end([fill.seq_id])
                for index in self._states:
                    view = batch.states[index]
                    assert isinstance(view, PagedView)
                    view.cache.clear(view.plan.slot_mapping[rows] // view.plan.block_size)

    def propose(self, states: Sequence[SequenceState], counts: Sequence[int]) -> list[list[int]]:
        """See Drafter."""
        drafts: list[list[int]] = [[] for _ in states]
        going = []
        for place, state in enumerate(states):
            reading = self._readings.get(state.start.seq_id)
            if reading is not None and reading.made is not None:
                going.append(place)
                if reading.sampling is not None and state.sampling is not None:
                    reading.sampling.output_token_ids = state.sampling.output_token_ids.copy()
        with torch.inference_mode(), self._backend.computing():
            while going:
                readings = [self._readings[states[place].start.seq_id] for place in going]
                for place, token in zip(going, self._choose(readings), strict=True):
                    if token is not None:
                        drafts[place].append(token)
                going = [p for n, p in enumerate(going) if readings[n].made and len(drafts[p]) < counts[p]]
                if going:
                    self._guess_on([states[place] for place in going], [drafts[place] for place in going])
                    going = [p for p in going if states[p].start.seq_id in self._readings]
        return drafts

    def _choose(self, readings: Sequence[_Reading]) -> list[int | None]:
        """The token that follows each one's last; None, and no further guesses, where numbers overflowed."""
        rows = torch.cat([reading.made[0] for reading in readings if reading.made is not None])
        batch = rows_without_adapters(rows)
        own = self._head.logits(rows, batch)
        logits = self._model.logits(rows, batch) if own is None else own
        tokens = self._ranks.choose(logits, [reading.sampling for reading in readings])
        for reading, token in zip(readings, tokens, strict=True):
            if token is None:
                reading.made = None
        return tokens

    def _guess_on(self, states: Sequence[SequenceState], drafts: Sequence[list[int]]) -> None:
        """Have the head read the newest guess of each, in place of whose hidden row is what it made before."""
        steps, rows = list[SequenceStep](), list[Tensor]()
        for state, made in zip(states, drafts, strict=True):
            reading = self._readings[state.start.seq_id]
            assert reading.made is not None
            place = reading.done + len(made) - 1
            token = min(made[-1], self._most)
            steps.append(SequenceStep(state.start.seq_id, reading.row, [token], place, place + 1, [], next_drafts=1))
            rows.append(reading.made[1])
        self._run(steps, states, torch.cat(rows))

    def end(self, seq_ids: Iterable[int]) -> None:
        """See Drafter."""
        for seq_id in seq_ids:
            self._readings.pop(seq_id, None)
