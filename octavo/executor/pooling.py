"""The pooler of each request, by the model's way of pooling and the request's own wishes."""

from octavo.config import PoolerConfig
from octavo.params import PoolingParams
from octavo.parts import CausalLM, Pooler
from octavo.parts.pooler import AnyPooler, PoolersSideBySide


class Pooling:
    """Makes the Pooler of each request.

    Args:
        task: embedding, classify, token_classify or reward; a generating engine pools as for embedding.
        model: whose scores the last two give.
        config: how hidden states are pooled, with nothing left open.
    """

    def __init__(self, task: str, model: CausalLM, config: PoolerConfig) -> None:
        self.config, self._heads = config, model.token_heads
        self.embed = model.embeddings if task == "embedding" else None
        self.score = model.scores if task in ("classify", "token_classify", "reward") else None

    def pooler(self, params: PoolingParams, skipped: int = 0) -> AnyPooler:
        """For one request, of whose first tokens some are left out."""
        if params.task == "embed&token_classify":
            return PoolersSideBySide(self._embedder(params, skipped), self._of_tokens("token_classify", params))
        if self.embed is not None and params.task in ("token_embed", "token_classify"):
            return self._of_tokens(params.task, params)
        return self._embedder(params, skipped)

    def _of_tokens(self, task: str, params: PoolingParams) -> Pooler:
        """Of an embedder: a vector of each token by its head, or a weight."""
        heads = self._heads
        if task == "token_classify":
            assert heads is not None
            return Pooler("ALL", score=heads.weights, left_out=(heads.first, heads.last), is_flat=True)
        unit = _first(params.normalize, params.use_activation, True)
        own = self.embed if self.config.pooling_type == "ALL" else None  # layers that were made for tokens
        embed, first = (own, None) if heads is None else (heads.vectors, heads.first)
        return Pooler("ALL", embed=embed, left_out=(first, None), normalize=unit, dimensions=params.dimensions)

    def _embedder(self, params: PoolingParams, skipped: int) -> Pooler:
        config, gives_scores, is_bare = self.config, self.score is not None, params.use_activation is False
        return Pooler(
            str(config.pooling_type),
            score=self.score,
            embed=self.embed,
            returned=config.returned_token_ids,
            normalize=_first(params.normalize, None if gives_scores else params.use_activation, config.normalize),
            softmax=_first(params.softmax, False if is_bare and gives_scores else None, config.softmax),
            multi_label=bool(config.multi_label),
            step_tag_id=config.step_tag_id,
            dimensions=params.dimensions,
            skipped=skipped,
        )


def _first(*values: bool | None) -> bool:
    """The first that is given."""
    return bool(next((value for value in values if value is not None), False))
