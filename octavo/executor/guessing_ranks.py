"""What ranks that compute a head together must agree on: the tokens that one of them, the output rank, has chosen."""

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.executor.sampler import sample
from octavo.executor.sampling_state import SamplingState
from octavo.executor.step import SequenceResult, SequenceStep
from octavo.ops import Backend

NONE = -1
"""In the place of a token that is not there."""


class GuessingRanks:
    """The ranks of the last stage, which share a head's layers as they do the model's.

    Args:
        backend: what computes, and by which they meet. All call the same in the same order.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend, self._size = backend, backend.place.tensor_size
        self._chooses = backend.place.is_output

    def told(self, steps: Sequence[SequenceStep], results: Sequence[SequenceResult]) -> list[SequenceResult]:
        """The output rank's `results` of a step; on others, what a head needs of them.

        That is the tokens, whether more may follow, and what overflowed.
        """
        if self._size == 1:
            return list(results)
        width = 1 + max(step.num_drafts for step in steps)
        rows = []
        for result in results:
            ended = result.ended or result.error is not None
            rows.append([ended, result.non_finite, *result.token_ids, *[NONE] * (width - len(result.token_ids))])
        told = self._of_output_rank(rows)
        if self._chooses:
            return list(results)
        return [
            SequenceResult(
                step.seq_id, [t for t in tokens if t != NONE], ended=bool(ended), non_finite=bool(overflowed)
            )
            for step, (ended, overflowed, *tokens) in zip(steps, told, strict=True)
        ]

    def choose(self, logits: Tensor, samplings: Sequence[SamplingState | None]) -> list[int | None]:
        """The token that follows each row of `logits` `[rows, vocab]`; None where numbers overflowed.

        `samplings`: how they are chosen, on the output rank, whose outputs go on by them.
        """
        own = [sampling for sampling in samplings if sampling is not None]
        tokens: list[int | None] = [None] * len(samplings)
        if self._chooses:
            tokens = [choice.token_id for choice in sample(logits, own, self._backend)]
        if self._size > 1:
            told = self._of_output_rank([[NONE if token is None else token] for token in tokens])
            tokens = [None if token == NONE else token for (token,) in told]
        for sampling, token in zip(samplings, tokens, strict=True):
            if sampling is not None and token is not None:
                sampling.output_token_ids.append(token)
        return tokens

    def _of_output_rank(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """The output rank's `rows`, of equal lengths; on the others, their values are of no account."""
        own = torch.tensor([list(row) for row in rows], dtype=torch.int64, device=self._backend.device)
        everyone = self._backend.all_gather(own, [own.shape[1]] * self._size)
        told: list[list[int]] = everyone[:, : own.shape[1]].tolist()
        return told
