"""From hidden states to one answer a request."""

import torch
from torch import Tensor
from torch.nn import functional


class Pooler:
    """Pools one request's hidden states as its chunks are computed.

    Args:
        pooling_type: LAST, CLS (the first token), MEAN, ALL (every row) or STEP (rows of `step_tag_id`).
        normalize: scale each result to length one.
    """

    def __init__(self, pooling_type: str, normalize: bool, step_tag_id: int | None = None) -> None:
        self.pooling_type = pooling_type
        self.normalize = normalize
        self.step_tag_id = step_tag_id
        self._kept: list[Tensor] = []
        self._sum: Tensor | None = None
        self._count = 0

    @property
    def needs_every_token(self) -> bool:
        """Whether a prefix whose hidden states are not computed would be missed."""
        return self.pooling_type != "LAST"

    def restart(self) -> None:
        """Forget what was pooled, as the request is computed anew."""
        self._kept, self._sum, self._count = [], None, 0

    def add(self, hidden: Tensor, tokens: Tensor) -> None:
        """The next rows `[tokens, width]` of the request, after the model's last norm."""
        hidden = hidden.float()
        if self.pooling_type == "MEAN":
            # One row after the other, so that the sum does not depend on how the prompt was cut.
            rows = hidden.double() if self._sum is None else torch.cat([self._sum.unsqueeze(0), hidden.double()])
            self._sum = rows.cumsum(0)[-1]
        elif self.pooling_type == "CLS":
            if not self._count:
                self._kept = [hidden[0].clone()]
        elif self.pooling_type == "LAST":
            self._kept = [hidden[-1].clone()]
        elif self.pooling_type == "STEP":
            self._kept.append(hidden[tokens == self.step_tag_id])
        else:
            self._kept.append(hidden.clone())
        self._count += hidden.shape[0]

    def result(self, dimensions: int | None = None) -> Tensor:
        """`[width]`, or `[tokens, width]` for ALL and STEP; the first `dimensions` of the width if given."""
        if self._sum is not None:
            pooled = (self._sum / self._count).float()
        elif self.pooling_type in ("ALL", "STEP"):
            pooled = torch.cat(self._kept)
        else:
            pooled = self._kept[0]
        if dimensions is not None:
            pooled = pooled[..., :dimensions]
        return functional.normalize(pooled, dim=-1) if self.normalize else pooled
