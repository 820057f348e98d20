"""The pooler of each request, by the model's way of pooling and the request's own wishes."""

from octavo.config import PoolerConfig
from octavo.params import PoolingParams
from octavo.parts import CausalLM, Pooler


class Pooling:
    """Makes the Pooler of each request.

    Args:
        task: embedding, classify, token_classify or reward; a generating engine pools as for embedding.
        model: whose scores the last two give.
        config: how hidden states are pooled, with nothing left open.
    """

    def __init__(self, task: str, model: CausalLM, config: PoolerConfig) -> None:
        self.config = config
        self.embed = model.embeddings if task == "embedding" else None
        self.score = model.scores if task in ("classify", "token_classify", "reward") else None

    def pooler(self, params: PoolingParams, skipped: int = 0) -> Pooler:
        """For one request, of whose first tokens some are left out."""
        config = self.config
        return Pooler(
            str(config.pooling_type),
            score=self.score,
            embed=self.embed,
            returned=config.returned_token_ids,
            normalize=bool(config.normalize if params.normalize is None else params.normalize),
            softmax=bool(config.softmax if params.softmax is None else params.softmax),
            multi_label=bool(config.multi_label),
            step_tag_id=config.step_tag_id,
            dimensions=params.dimensions,
            skipped=skipped,
        )
