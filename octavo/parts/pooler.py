"""From hidden states to one answer a request."""

import math
from collections.abc import Callable, Sequence

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


class Pooler:
    """Pools one request's hidden states as its chunks are computed.

    Args:
        pooling_type: one of octavo.config.POOLING_TYPES.
        score: what makes scores of pooled rows; None to give the rows themselves.
        returned: which of the scores to keep; None for all.
        normalize: scale each result to length one.
        softmax: scores become probabilities (of a single score, its sigmoid).
        multi_label: these are sigmoids, each score by itself.
        step_tag_id: the token whose rows STEP keeps.
        dimensions: how many of the first values of each row to keep; None for all.
    """

    def __init__(
        self,
        pooling_type: str,
        *,
        score: Score | None = None,
        returned: Sequence[int] | None = None,
        normalize: bool = False,
        softmax: bool = False,
        multi_label: bool = False,
        step_tag_id: int | None = None,
        dimensions: int | None = None,
    ) -> None:
        self.pooling_type = pooling_type
        self.score, self.returned = score, returned
        self.normalize, self.softmax, self.multi_label = normalize, softmax, multi_label
        self.step_tag_id = step_tag_id
        self.dimensions = dimensions
        self._kept: list[Tensor] = []
        self._sum: Tensor | None = None
        self._count = 0

    def restart(self) -> None:
        """Forget what was pooled, as the request is computed anew."""
        self._kept, self._sum, self._count = [], None, 0

    def add(self, hidden: Tensor, tokens: Tensor) -> None:
        """The next rows `[tokens, hidden_size]` of the request, after the model's last norm."""
        hidden = hidden.float()
        if self.pooling_type in SUMS:
            # One row after the other, so that the sum does not depend on how the prompt was cut.
            rows = hidden.double()
            if self.pooling_type == "WEIGHTED_MEAN":
                rows *= torch.arange(self._count + 1, self._count + len(rows) + 1, device=rows.device).unsqueeze(1)
            rows = rows if self._sum is None else torch.cat([self._sum.unsqueeze(0), rows])
            self._sum = rows.cumsum(0)[-1]
        elif self.pooling_type == "MAX":
            self._kept = [torch.cat([*self._kept, hidden]).amax(0, keepdim=True)]
        elif self.pooling_type == "CLS":
            if not self._count:
                self._kept = [hidden[:1].clone()]
        elif self.pooling_type == "LAST":
            self._kept = [hidden[-1:].clone()]
        elif self.pooling_type == "STEP":
            self._kept.append(hidden[tokens == self.step_tag_id])
        else:
            self._kept.append(hidden.clone())
        self._count += hidden.shape[0]

    def result(self, batch: Batch) -> Tensor:
        """`[hidden_size]` or `[scores]`; for ALL and STEP one such row a token."""
        if self._sum is None:
            pooled = torch.cat(self._kept)
        else:
            pooled = (self._sum / SUMS[self.pooling_type](self._count)).float().unsqueeze(0)
        if self.score is not None:
            pooled = torch.cat([self._scores(rows, batch) for rows in torch.split(pooled, SCORED_ROWS)])
        if self.dimensions is not None:
            pooled = pooled[:, : self.dimensions]
        if self.normalize:
            pooled = functional.normalize(pooled, dim=-1)
        return pooled if self.pooling_type in ("ALL", "STEP") else pooled[0]

    def _scores(self, rows: Tensor, batch: Batch) -> Tensor:
        assert self.score is not None
        scores = self.score(rows, batch).float()
        if self.returned is not None:
            scores = scores[:, self.returned]
        if not self.softmax:
            return scores
        alone = self.multi_label or scores.shape[1] == 1
        return 1.0 / (torch.exp(-scores) + 1.0) if alone else torch.softmax(scores, -1)
