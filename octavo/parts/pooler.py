"""From hidden states to one answer a request."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from octavo.parts.batch import Batch

Score = Callable[[Tensor, Batch], Tensor]
"""Pooled rows `[rows, hidden_size]`, of a request of the step, to `[rows, scores]`."""
SUMS: dict[str, Callable[[int], float]] = {
    "MEAN": float,
    "MEAN_SQRT_LEN": math.sqrt,
    "WEIGHTED_MEAN": lambda count: count * (count + 1) / 2,
}
"""Ways of pooling that sum, and what of the number of tokens the sum is divided by."""
SCORED_ROWS = 64
"""Rows that are scored at a time, which bounds the memory where scores are logits of a whole vocabulary."""


class _Way(ABC):
    """One way of pooling, which sees a request's rows as they are computed."""

    @abstractmethod
    def add(self, hidden: Tensor, tokens: Tensor, first: int) -> None:
        """The next rows `[tokens, hidden_size]` in float32, of which one at least, and the first one's place."""

    @abstractmethod
    def result(self) -> Tensor:
        """`[rows, hidden_size]`"""


class _Sum(_Way):
    def __init__(self, kind: str) -> None:
        self.kind, self._sum, self._begin, self._end = kind, torch.empty(0), -1, 0

    def add(self, hidden: Tensor, tokens: Tensor, first: int) -> None:
        # One row after the other, so that the sum does not depend on how the prompt was cut.
        rows = hidden.double()
        if self.kind == "WEIGHTED_MEAN":
            rows *= torch.arange(first + 1, first + len(rows) + 1, device=rows.device).unsqueeze(1)
        if self._begin < 0:
            self._begin = first
        else:
            rows = torch.cat([self._sum.unsqueeze(0), rows])
        self._sum, self._end = rows.cumsum(0)[-1], first + len(hidden)

    def result(self) -> Tensor:
        divide = SUMS[self.kind]
        by_place = self.kind == "WEIGHTED_MEAN"
        by = divide(self._end) - divide(self._begin) if by_place else divide(self._end - self._begin)
        return (self._sum / by).float().unsqueeze(0)


class _Max(_Way):
    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def add(self, hidden: Tensor, tokens: Tensor, first: int) -> None:
        self._kept = [torch.cat([*self._kept, hidden]).amax(0, keepdim=True)]

    def result(self) -> Tensor:
        return self._kept[0]


class _One(_Way):
    """The first row, or the last."""

    def __init__(self, is_last: bool) -> None:
        self.is_last, self._kept = is_last, torch.empty(0)

    def add(self, hidden: Tensor, tokens: Tensor, first: int) -> None:
        if self.is_last or not len(self._kept):
            self._kept = (hidden[-1:] if self.is_last else hidden[:1]).clone()

    def result(self) -> Tensor:
        return self._kept


class _Rows(_Way):
    """All rows, or those of one token."""

    def __init__(self, tag: int | None, left_out: tuple[int | None, int | None]) -> None:
        self.tag, self.left_out, self._kept = tag, left_out, list[Tensor]()
        self._first = self._last = -1

    def add(self, hidden: Tensor, tokens: Tensor, first: int) -> None:
        self._first = int(tokens[0]) if first == 0 else self._first
        self._last = int(tokens[-1])
        self._kept.append(hidden.clone() if self.tag is None else hidden[tokens == self.tag])

    def result(self) -> Tensor:
        rows, (begin, end) = torch.cat(self._kept), self.left_out
        rows = rows[1:] if begin is not None and self._first == begin else rows
        return rows[:-1] if end is not None and self._last == end else rows


class AnyPooler(Protocol):
    """What pools a request."""

    def restart(self) -> None: ...

    def add(self, hidden: Tensor, tokens: Tensor) -> None: ...

    def result(self, batch: Batch) -> Tensor: ...


class PoolersSideBySide:
    """What several poolers give, one after the other in one row."""

    def __init__(self, *poolers: AnyPooler) -> None:
        self._poolers = poolers

    def restart(self) -> None:
        for pooler in self._poolers:
            pooler.restart()

    def add(self, hidden: Tensor, tokens: Tensor) -> None:
        for pooler in self._poolers:
            pooler.add(hidden, tokens)

    def result(self, batch: Batch) -> Tensor:
        return torch.cat([pooler.result(batch).flatten() for pooler in self._poolers])


class Pooler:
    """Pools one request's hidden states as its chunks are computed.

    Args:
        pooling_type: one of octavo.config.POOLING_TYPES, or several with a plus between them, side by side.
        score: what makes scores of pooled rows; None to give the rows themselves.
        embed: what makes embeddings of pooled rows, as `score`; None to give the rows themselves.
        returned: which of the scores to keep; None for all.
        normalize: scale each result to length one.
        softmax: scores become probabilities (of a single score, its sigmoid).
        multi_label: these are sigmoids, each score by itself.
        step_tag_id: the token whose rows STEP keeps.
        dimensions: how many of the first values of each row to keep; None for all.
        skipped: how many of the first rows are left out.
        left_out: of ALL, a token whose row is left out at the beginning, and one at the end.
        is_flat: of ALL, whether a row's only value is given by itself.
    """

    def __init__(
        self,
        pooling_type: str,
        *,
        score: Score | None = None,
        embed: Score | None = None,
        returned: Sequence[int] | None = None,
        normalize: bool = False,
        softmax: bool = False,
        multi_label: bool = False,
        step_tag_id: int | None = None,
        dimensions: int | None = None,
        skipped: int = 0,
        left_out: tuple[int | None, int | None] = (None, None),
        is_flat: bool = False,
    ) -> None:
        self.pooling_type = pooling_type
        self.score, self.embed, self.returned = score, embed, returned
        self.normalize, self.softmax, self.multi_label = normalize, softmax, multi_label
        self.step_tag_id = step_tag_id
        self.dimensions, self.skipped = dimensions, skipped
        self.left_out, self.is_flat = left_out, is_flat
        self.restart()

    def restart(self) -> None:
        """Forget what was pooled, as the request is computed anew."""
        self._ways = [self._way(kind) for kind in self.pooling_type.split("+")]
        self._count = 0

    def _way(self, kind: str) -> _Way:
        if kind in SUMS:
            return _Sum(kind)
        if kind == "MAX":
            return _Max()
        if kind in ("CLS", "LAST"):
            return _One(kind == "LAST")
        return _Rows(self.step_tag_id if kind == "STEP" else None, self.left_out)

    def add(self, hidden: Tensor, tokens: Tensor) -> None:
        """The next rows `[tokens, hidden_size]` of the request, after the model's last norm."""
        skip = min(max(0, self.skipped - self._count), len(hidden))
        if skip < len(hidden):
            rows, first = hidden[skip:].float(), self._count + skip
            for way in self._ways:
                way.add(rows, tokens[skip:], first)
        self._count += len(hidden)

    def result(self, batch: Batch) -> Tensor:
        """`[hidden_size]` or `[scores]`; for ALL and STEP one such row a token."""
        pooled = torch.cat([way.result() for way in self._ways], dim=-1)
        if self.embed is not None:
            pooled = torch.cat([self.embed(rows, batch) for rows in torch.split(pooled, SCORED_ROWS)])
        if self.score is not None:
            pooled = torch.cat([self._scores(rows, batch) for rows in torch.split(pooled, SCORED_ROWS)])
        if self.dimensions is not None:
            pooled = pooled[:, : self.dimensions]
        if self.normalize:
            pooled = functional.normalize(pooled, dim=-1)
        if self.pooling_type not in ("ALL", "STEP"):
            return pooled[0]
        return pooled.squeeze(-1) if self.is_flat else pooled

    def _scores(self, rows: Tensor, batch: Batch) -> Tensor:
        assert self.score is not None
        scores = self.score(rows, batch).float()
        if self.returned is not None:
            scores = scores[:, self.returned]
        if not self.softmax:
            return scores
        alone = self.multi_label or scores.shape[1] == 1
        return 1.0 / (torch.exp(-scores) + 1.0) if alone else torch.softmax(scores, -1)
