"""What a request for an embedding, a score or a reward asks for."""

import copy
from dataclasses import dataclass

from octavo.errors import InvalidRequestError, names_closest
from octavo.option_types import check_types
from octavo.params.checks import check_kept, check_range, check_side

POOLING_TASKS = ("embed", "classify", "token_embed", "token_classify", "embed&token_classify")
REMOVED_TASKS = {"score": "classify", "encode": "token_embed or token_classify"}
"""Tasks that vLLM once had, and what took their place."""


@names_closest
@dataclass
class PoolingParams:
    """What an embedding, score or reward request asks for."""

    dimensions: int | None = None
    """Keep only the first so many values of an embedding (Matryoshka models)."""
    normalize: bool | None = None
    """Scale the embedding to length one; None: as the engine was told."""
    softmax: bool | None = None
    """Turn scores into probabilities; None: as the engine was told."""
    truncate_prompt_tokens: int | None = None
    """Keep only so many tokens of a text, the first (-1: as many as the model allows)."""
    prompt_name: str | None = None
    """Which of the model's own prompts stands before a text that is embedded; None for its default."""
    task: str | None = None
    """One of POOLING_TASKS: embed, token_embed (a vector a token), token_classify (of an embedder: a weight a token),
    or both embed&token_classify, one after the other; None for what the engine does."""
    use_activation: bool | None = None
    """vLLM's name of `normalize` for embeddings and of `softmax` for scores, which go before it: False gives both as
    the model computes them; True gives embeddings of length one, and scores as the model's files say."""
    truncation_side: str | None = None
    """At which end a text is cut: left keeps the last tokens. None cuts the right, and keeps special tokens."""

    def __post_init__(self) -> None:
        check_side(self.truncation_side)
        if self.dimensions is not None:
            check_range("dimensions", self.dimensions, int, 1)
        if isinstance(self.task, str) and self.task in REMOVED_TASKS:
            raise InvalidRequestError(f"task={self.task!r} is no task any more; use {REMOVED_TASKS[self.task]}.")
        if self.task is not None and self.task not in POOLING_TASKS:
            raise InvalidRequestError(
                f"task={str(self.task)[:60]!r} is unknown; it is one of {', '.join(POOLING_TASKS)}."
            )
        if not isinstance(self.prompt_name, str | None):
            raise InvalidRequestError(f"prompt_name must be a text, not {type(self.prompt_name).__name__}.")
        check_types(self, InvalidRequestError)
        check_kept(self.truncate_prompt_tokens)

    def clone(self) -> "PoolingParams":
        return copy.copy(self)
