"""How hidden states are pooled, as people say it."""

from dataclasses import dataclass

from octavo.errors import ConfigError, names_closest
from octavo.option_types import check_types

POOLING_TYPES = ("LAST", "MEAN", "CLS", "MAX", "MEAN_SQRT_LEN", "WEIGHTED_MEAN", "ALL", "STEP")


@names_closest
@dataclass
class PoolerConfig:
    """How hidden states become one answer. None means: as the model's own files say, or the task's default."""

    pooling_type: str | None = None
    """LAST (the last token), CLS (the first), MEAN, MAX, MEAN_SQRT_LEN (the sum over the root of the number of tokens),
    WEIGHTED_MEAN (the n-th token counts n times), ALL (one row a token), or STEP (rows at `step_tag_id`). CLS+MEAN has
    both, side by side."""
    normalize: bool | None = None
    """Scale embeddings to length one."""
    softmax: bool | None = None
    """Turn class scores into probabilities."""
    multi_label: bool | None = None
    """With `softmax`, each class by itself: a sigmoid."""
    step_tag_id: int | None = None
    returned_token_ids: list[int] | None = None
    task: str | None = None
    """What requests that do not say it are pooled for, as PoolingParams.task."""
    seq_pooling_type: str | None = None
    """vLLM's way of saying a pooling_type that gives one answer."""
    tok_pooling_type: str | None = None
    """Likewise of one that gives rows."""
    use_activation: bool | None = None
    """vLLM's way of saying normalize, and softmax."""

    def __post_init__(self) -> None:
        check_types(self, ConfigError)
        self.pooling_type = self.pooling_type or self.seq_pooling_type or self.tok_pooling_type
        if self.use_activation is not None:
            self.normalize = self.use_activation if self.normalize is None else self.normalize
            self.softmax = self.use_activation if self.softmax is None else self.softmax
        self.seq_pooling_type = self.tok_pooling_type = self.use_activation = None
        if self.pooling_type is not None:
            self.pooling_type = self.pooling_type.upper()
            ways = self.pooling_type.split("+")
            if unknown := [way for way in ways if way not in POOLING_TYPES]:
                raise ConfigError(f"pooling_type={unknown[0]!r} is unknown; choose one of {', '.join(POOLING_TYPES)}.")
            if len(ways) > 1 and {"ALL", "STEP"} & set(ways):
                raise ConfigError(f"pooling_type={self.pooling_type!r}: ALL and STEP give rows, which join no others.")
