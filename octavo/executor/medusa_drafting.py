"""Guesses by Medusa's heads: the likeliest of each, one chain of them (the published trees of several are not made)."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from octavo.architectures.medusa import MedusaHeads
from octavo.executor.draft_sampling import draft_sampling
from octavo.executor.guessing_ranks import GuessingRanks
from octavo.executor.head_drafting import is_wanted, rows_without_adapters
from octavo.executor.sampling_state import SamplingState
from octavo.executor.sequences import SequenceState
from octavo.executor.step import SequenceResult, SequenceStep
from octavo.ops import Backend


class MedusaDrafter:
    """A Drafter with heads that keep nothing: they read the hidden row from which the last token was chosen.

    It is on all ranks of the last stage.

    Args:
        heads: loaded.
        backend: what computes.
    """

    def __init__(self, heads: MedusaHeads, backend: Backend) -> None:
        self._heads, self._backend, self._ranks = heads, backend, GuessingRanks(backend)
        self._rows: dict[int, Tensor] = {}
        """By sequence, `[1, hidden_size]`, of those that want guesses."""
        self._samplings: dict[int, SamplingState | None] = {}
        """None on ranks that do not choose."""

    def read(
        self,
        steps: Sequence[SequenceStep],
        states: Sequence[SequenceState],
        results: Sequence[SequenceResult],
        hidden: Tensor,
    ) -> None:
        """See HiddenDrafter."""
        self._rows, first = {}, 0
        for step, state, result in zip(steps, states, results, strict=True):
            first += len(step.token_ids)
            if is_wanted(step, result):
                last = first - step.num_drafts + len(result.token_ids) - 1
                self._rows[step.seq_id] = hidden[last - 1 : last].clone()
                if step.seq_id not in self._samplings:
                    sampling = None if state.sampling is None else draft_sampling(state)
                    self._samplings[step.seq_id] = sampling

    def propose(self, states: Sequence[SequenceState], counts: Sequence[int]) -> list[list[int]]:
        """See Drafter."""
        drafts: list[list[int]] = [[] for _ in states]
        going = [place for place, state in enumerate(states) if state.start.seq_id in self._rows]
        for place in going:
            sampling, own = self._samplings[states[place].start.seq_id], states[place].sampling
            if sampling is not None and own is not None:
                sampling.output_token_ids = own.output_token_ids.copy()
        with torch.inference_mode(), self._backend.computing():
            for after in range(len(self._heads.blocks)):
                going = [place for place in going if after < counts[place] and len(drafts[place]) == after]
                if not going:
                    break
                ids = [states[place].start.seq_id for place in going]
                rows = torch.cat([self._rows[seq_id] for seq_id in ids])
                logits = self._heads(rows, after, rows_without_adapters(rows))
                tokens = self._ranks.choose(logits, [self._samplings[seq_id] for seq_id in ids])
                for place, token in zip(going, tokens, strict=True):
                    if token is not None:
                        drafts[place].append(token)
        return drafts

    def end(self, seq_ids: Iterable[int]) -> None:
        """See Drafter."""
        for seq_id in seq_ids:
            self._rows.pop(seq_id, None)
            self._samplings.pop(seq_id, None)
