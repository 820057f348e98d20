"""Guesses by Medusa's heads: the likeliest of each, one chain of them (the published trees of several are not made)."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from octavo.architectures.medusa import MedusaHeads
from octavo.executor.draft_sampling import draft_sampling
from octavo.executor.head_drafting import is_wanted, rows_without_adapters
from octavo.executor.sampler import sample
from octavo.executor.sampling_state import SamplingState
from octavo.executor.sequences import SequenceState
from octavo.executor.step import SequenceResult, SequenceStep
from octavo.ops import Backend


class MedusaDrafter:
    """A Drafter with heads that keep nothing: they read the hidden row from which the last token was chosen.

    Args:
        heads: loaded.
        backend: what computes.
    """

    def __init__(self, heads: MedusaHeads, backend: Backend) -> None:
        self._heads, self._backend = heads, backend
        self._rows: dict[int, Tensor] = {}
        """By sequence, `[1, hidden_size]`, of those that want guesses."""
        self._samplings: dict[int, SamplingState] = {}

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
            if is_wanted(step, result) and state.sampling is not None:
                last = first - step.num_drafts + len(result.token_ids) - 1
                self._rows[step.seq_id] = hidden[last - 1 : last].clone()
                if step.seq_id not in self._samplings:
                    self._samplings[step.seq_id] = draft_sampling(state)

    def propose(self, states: Sequence[SequenceState], counts: Sequence[int]) -> list[list[int]]:
        """See Drafter."""
        drafts: list[list[int]] = [[] for _ in states]
        going = [place for place, state in enumerate(states) if state.start.seq_id in self._rows]
        for place in going:
            sampling, own = self._samplings[states[place].start.seq_id], states[place].sampling
            assert own is not None
            sampling.output_token_ids = own.output_token_ids.copy()
        with torch.inference_mode(), self._backend.computing():
            for after in range(len(self._heads.blocks)):
                going = [place for place in going if after < counts[place] and len(drafts[place]) == after]
                if not going:
                    break
                ids = [states[place].start.seq_id for place in going]
                rows = torch.cat([self._rows[seq_id] for seq_id in ids])
                logits = self._heads(rows, after, rows_without_adapters(rows))
                samplings = [self._samplings[seq_id] for seq_id in ids]
                choices = sample(logits, samplings, self._backend)
                for place, sampling, choice in zip(going, samplings, choices, strict=True):
                    if choice.token_id is not None:
                        drafts[place].append(choice.token_id)
                        sampling.output_token_ids.append(choice.token_id)
        return drafts

    def end(self, seq_ids: Iterable[int]) -> None:
        """See Drafter."""
        for seq_id in seq_ids:
            self._rows.pop(seq_id, None)
            self._samplings.pop(seq_id, None)
