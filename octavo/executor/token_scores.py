"""What requests are told of tokens: their log-probabilities or logits, as the model has them or as tokens are drawn."""

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.executor.sampling_state import SamplingState
from octavo.ops import Backend, DrawBy, rows_of, sent


class TokenScores:
    """By an engine's `logprobs_mode`: before anything has changed the logits (raw), or behind all that does
    (processed), down to what top_k and top_p leave.

    Of a transcript they are always log-probabilities of what its rule leaves: windows are judged by their mean.

    Args:
        backend: what computes them.
        mode: raw_logprobs, raw_logits, processed_logprobs or processed_logits.
    """

    def __init__(self, backend: Backend, mode: str = "raw_logprobs") -> None:
        self._backend = backend
        self._is_raw, self._is_logits = mode.startswith("raw"), mode.endswith("logits")

    def of_prompt(self, logits: Tensor) -> Tensor:
        """Of a prompt's own tokens, which nothing changes: scores `[rows, vocab]` for its `logits`, perhaps these."""
        return logits if self._is_logits else self._backend.log_softmax(logits)

    def before(self, logits: Tensor, rows: Sequence[int], states: Sequence[SamplingState]) -> Tensor:
        """Scores `[rows, vocab]`, a new tensor, of the model's own `logits`, for those `rows` that are told of these.

        `states` are theirs.
        """
        part = rows_of(logits, rows)
        scores = self.of_prompt(part)
        if scores is logits:
            scores = logits.clone()
        kept = [i for i, state in enumerate(states) if state.transcript is not None] if self._is_logits else []
        if kept:
            scores[kept] = self._backend.log_softmax(part[kept])
        return scores

    def after(
        self, scores: Tensor, logits: Tensor, states: Sequence[SamplingState], draws: Sequence[DrawBy], chosen: Tensor
    ) -> Tensor:
        """The scores that are told.

        Args:
            scores: those of `before` [rows, vocab].
            logits: what tokens were chosen by [rows, vocab].
            states, draws: the rows' own.
            chosen: the tokens [rows].
        """
        told = [i for i, state in enumerate(states) if state.transcript is None]
        if self._is_raw or not told:
            return scores
        own = rows_of(logits, told), [draws[i] for i in told], rows_of(chosen, told)
        left = self.of_prompt(self._backend.left_to_draw(*own))
        return scores.index_copy_(0, sent(told, torch.int64, scores.device), left)
