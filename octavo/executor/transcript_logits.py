"""Which tokens may come next in a transcript, on one row of logits by itself."""

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.transcripts import TranscriptRule


class TranscriptLogits:
    """A sequence's transcript rule, with its lists as tensors.

    Args:
        rule: as the request has it; its ids are within the vocabulary.
    """

    def __init__(self, rule: TranscriptRule) -> None:
        self.rule = rule
        self._suppress = torch.tensor(rule.suppress, dtype=torch.long)
        self._first = torch.tensor(rule.suppress_first, dtype=torch.long)

    def apply(self, logits: Tensor, written: Sequence[int]) -> None:
        """Set the logits `[vocab]` of what may not follow the tokens `written` to -inf, in place."""
        self._suppress, self._first = self._suppress.to(logits.device), self._first.to(logits.device)
        if not written:
            logits[self._first] = -torch.inf
        logits[self._suppress] = -torch.inf
        if self.rule.timestamps is not None:
            self._apply_timestamps(logits, written, self.rule.timestamps)

    def _apply_timestamps(self, logits: Tensor, written: Sequence[int], first: int) -> None:
        rule = self.rule
        if rule.no_timestamps is not None:
            logits[rule.no_timestamps] = -torch.inf
        after_one = bool(written) and written[-1] >= first
        after_two = after_one and (len(written) < 2 or written[-2] >= first)
        if after_two:  # a pair is whole, or the transcript has begun
            logits[first:] = -torch.inf
        elif after_one:  # another one completes it, unless the transcript ends
            logits[: rule.end] = -torch.inf
        latest = next((token for token in reversed(written) if token >= first), None)
        if latest is not None:
            # The second of a pair may tell the same time; what follows a segment's beginning is later.
            logits[first : latest if after_one and not after_two else latest + 1] = -torch.inf
        if not written:
            logits[:first] = -torch.inf
            if rule.max_first is not None:
                logits[first + rule.max_first + 1 :] = -torch.inf
        is_time = torch.logsumexp(logits[first:], 0) > logits[:first].max()
        logits[:first].masked_fill_(is_time, -torch.inf)
