"""How an engine's task, its options, the model's files and a request decide how hidden states are pooled."""

from octavo.config import PoolerConfig
from octavo.errors import ConfigError
from octavo.params import PoolingParams
from octavo.parts import CausalLM, Pooler

_DEFAULTS = {
    "embedding": PoolerConfig("LAST", normalize=True, softmax=False),
    "classify": PoolerConfig("LAST", normalize=False, softmax=True),
    "reward": PoolerConfig("ALL", normalize=False, softmax=False),
}


class Pooling:
    """Makes the Pooler of each request.

    Args:
        task: embedding, classify or reward; a generating engine pools as for embedding.
        model: whose scores the last two give.
        override: the engine's override_pooler_config.
        published: what the model's files say of embeddings.

    Raises ConfigError for a configuration that this model cannot follow.
    """

    def __init__(self, task: str, model: CausalLM, override: PoolerConfig | None, published: PoolerConfig) -> None:
        override, task = override or PoolerConfig(), "embedding" if task == "generate" else task
        default = _DEFAULTS[task]
        files = published if task == "embedding" else PoolerConfig()
        self.kind = override.pooling_type or files.pooling_type or str(default.pooling_type)
        self.normalize = _first(override.normalize, files.normalize, default.normalize)
        self.softmax = _first(override.softmax, default.softmax)
        self.step_tag_id = override.step_tag_id
        self.score = None if task == "embedding" else model.scores
        self.returned = override.returned_token_ids
        self.num_scores = model.num_scores
        if self.kind == "STEP" and self.step_tag_id is None:
            raise ConfigError("pooling_type='STEP' needs step_tag_id, the token at whose places steps end.")
        if self.returned is not None:
            if self.score is None:
                raise ConfigError("returned_token_ids chooses among scores; it needs task='reward' or 'classify'.")
            if wrong := [i for i in self.returned if not 0 <= i < self.num_scores]:
                raise ConfigError(f"returned_token_ids holds {wrong[0]}; this model has 0 to {self.num_scores - 1}.")

    def pooler(self, params: PoolingParams) -> Pooler:
        """For one request."""
        return Pooler(
            self.kind,
            score=self.score,
            returned=self.returned,
            normalize=_first(params.normalize, self.normalize),
            softmax=_first(params.softmax, self.softmax),
            step_tag_id=self.step_tag_id,
            dimensions=params.dimensions,
        )


def _first(*wishes: bool | None) -> bool:
    return bool(next((w for w in wishes if w is not None), False))
