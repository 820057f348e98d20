"""How well texts go together: what is to be pooled for it, and what the results say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.engine.messages import Ready
from octavo.errors import InvalidRequestError
from octavo.params import PoolingParams
from octavo.prompts import Prompt
from octavo.text.inputs import InputChecker

Array = np.ndarray[Any, Any]


@dataclass
class ScorePlan:
    """Prompts to pool, and at which places of them each pair has its results: one of both, or one each."""

    prompts: list[Prompt]
    params: PoolingParams
    places: list[tuple[int, ...]]

    def scores(self, results: Sequence[Array]) -> list[float]:
        """The score of each pair: a classifier's probability of its last class, or the cosine of two embeddings.

        Args:
            results: of each of the prompts, probabilities `[classes]` or an embedding `[hidden_size]` of length one.
        """
        return [
            float(results[places[0]][-1] if len(places) == 1 else results[places[0]] @ results[places[1]])
            for places in self.places
        ]


def pair_up(first: Sequence[Prompt], second: Sequence[Prompt]) -> list[tuple[Prompt, Prompt]]:
    """Each text with its partner, or one with each. Raises InvalidRequestError for numbers that do not fit."""
    if len(first) == 1:
        first = list(first) * len(second)
    if len(first) != len(second):
        raise InvalidRequestError(f"there are {len(second)} prompts but {len(first)} text_1; give one each.")
    return list(zip(first, second, strict=True))


def plan_scores(
    pairs: Sequence[tuple[Prompt, Prompt]], ready: Ready, checker: InputChecker, truncate: int | None = None
) -> ScorePlan:
    """What gives the scores of pairs: a classifier reads both texts as one input, other models embed each text once.

    Raises InvalidRequestError for a classifier of more than two classes, and for pairs that it cannot read.
    """
    if ready.info.task == "classify":
        if ready.info.num_scores > 2:
            raise InvalidRequestError(
                f"scores are for classifiers of one or two classes; this one has {ready.info.num_scores}. Use classify."
            )
        params = PoolingParams(truncate_prompt_tokens=truncate)
        prompts: list[Prompt] = [checker.encode_typed_pair(a, b, params) for a, b in pairs]
        return ScorePlan(prompts, params, [(place,) for place in range(len(pairs))])
    place_of: dict[Any, int] = {}
    prompts, places = [], []
    for pair in pairs:
        for prompt in pair:
            key = prompt if isinstance(prompt, str) else id(prompt)
            if key not in place_of:
                place_of[key] = len(prompts)
                prompts.append(prompt)
        places.append(tuple(place_of[p if isinstance(p, str) else id(p)] for p in pair))
    return ScorePlan(prompts, PoolingParams(normalize=True, truncate_prompt_tokens=truncate), places)
