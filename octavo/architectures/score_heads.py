"""Heads for scores in place of the vocabulary's: a class of the whole text, or a reward."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from octavo.architectures.model_config import Config
from octavo.errors import CheckpointError
from octavo.parts import Batch, CausalLM, Linear

Build = Callable[[Config], CausalLM]


def num_labels(c: Config) -> int:
    """As transformers reads a config: as many as have names, or two."""
    return int(c.first("num_labels", default=len(c.get("id2label", {})) or 2))


def with_classes(build: Build) -> Build:
    """The model of `build` as transformers publishes it for sequence classification."""

    def classifier(c: Config) -> CausalLM:
        model = build(c)
        tokens: list[int] = c.get("classifier_token_ids", [])
        if tokens:
            model.score = TokenScores(model, tokens, is_pair=c.get("is_original_qwen3_reranker", False))
            return model
        return model.score_with(Linear(model.hidden_size, num_labels(c), exact=True), {"score": "score"})

    return classifier


def with_reward(build: Build) -> Build:
    """The model of `build` under Qwen2.5-Math-RM's head: two layers and a relu, one value a token."""

    def reward_model(c: Config) -> CausalLM:
        model = build(c)
        head = TwoLayers(model.hidden_size, c.get("num_labels", 1))
        return model.score_with(head, {"score.{0|2}": "score.{first|second}"})

    return reward_model


class TokenScores(nn.Module):
    """Scores that are logits of tokens; of a pair, one, whose sigmoid is the second's probability among the two."""

    def __init__(self, model: CausalLM, tokens: list[int], is_pair: bool) -> None:
        super().__init__()
        if is_pair and len(tokens) != 2:
            raise CheckpointError(f"classifier_from_token names {len(tokens)} tokens, of which there must be two.")
        self._logits, self._tokens, self._is_pair = (model.logits,), tokens, is_pair  # a tuple: it is no part of this
        self.num_scores = 1 if is_pair else len(tokens)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        logits = self._logits[0](x, batch)[:, self._tokens]
        return logits[:, 1:] - logits[:, :1] if self._is_pair else logits


class TwoLayers(nn.Module):
    """`second(relu(first(x)))`."""

    def __init__(self, hidden_size: int, scores: int) -> None:
        super().__init__()
        self.first = Linear(hidden_size, hidden_size, bias=True, exact=True)
        self.second = Linear(hidden_size, scores, bias=True, exact=True)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self.second(torch.relu(self.first(x, batch)), batch)  # type: ignore[no-any-return]
