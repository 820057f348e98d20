"""How well texts go together: what is to be pooled for it, and what the results say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from octavo.engine.messages import Ready
from octavo.errors import InvalidRequestError
from octavo.params import PoolingParams
from octavo.prompts import Prompt
from octavo.text.inputs import InputChecker
from octavo.text.pair_template import pair_text
from octavo.text.token_text import first_tokens

Array = np.ndarray[Any, Any]

TOKENS_AT_A_TIME = 256
"""Tokens of a first text that are compared at once, so that two long ones make no matrix of both lengths."""


@dataclass
class ScorePlan:
    """Prompts to pool, and at which places of them each pair has its results: one of both, or one each."""

    prompts: list[Prompt]
    params: PoolingParams
    places: list[tuple[int, ...]]

    def scores(self, results: Sequence[Array]) -> list[float]:
        """The score of each pair.

        That is a classifier's probability of its last class, the cosine of two embeddings or, where each token has an
        embedding, ColBERT's late interaction: for each token of the first text the highest cosine with one of the
        second's, added up.

        Args:
            results: of each of the prompts, probabilities `[classes]`, an embedding `[hidden_size]` of length one, or
                those of its tokens `[tokens, hidden_size]`.
        """
        return [
            float(results[places[0]][-1]) if len(places) == 1 else _nearness(*(results[place] for place in places))
            for places in self.places
        ]


def _nearness(first: Array, second: Array) -> float:
    if first.ndim == 1:
        return float(first @ second)
    slices = (first[start : start + TOKENS_AT_A_TIME] for start in range(0, len(first), TOKENS_AT_A_TIME))
    return float(sum((rows @ second.T).max(1).sum(dtype=np.float64) for rows in slices))


def pair_up(first: Sequence[Prompt], second: Sequence[Prompt]) -> list[tuple[Prompt, Prompt]]:
    """Each text with its partner, or one with each. Raises InvalidRequestError for numbers that do not fit."""
    if len(first) == 1:
        first = list(first) * len(second)
    if len(first) != len(second):
        raise InvalidRequestError(f"there are {len(second)} prompts but {len(first)} text_1; give one each.")
    return list(zip(first, second, strict=True))


@dataclass(frozen=True)
class ScoreOptions:
    """What a request says of its scores.

    Args:
        params: how prompts are cut, and whether a classifier's scores are probabilities.
        max_first: most tokens of each first text; 0 for any number.
        max_second: most tokens of each second one.
        template: a chat template of the roles query and document; None for what the model's files say.
        variables: more names for it.
    """

    params: PoolingParams = field(default_factory=PoolingParams)
    max_first: int = 0
    max_second: int = 0
    template: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)


def _shortened(
    pairs: Sequence[tuple[Prompt, Prompt]], checker: InputChecker, options: ScoreOptions
) -> Sequence[tuple[Prompt, Prompt]]:
    """Pairs whose texts are cut to their own limits. Raises InvalidRequestError for limits that cannot be."""
    limits = (options.max_first, options.max_second)
    for name, limit in zip(("max_tokens_per_query", "max_tokens_per_doc"), limits, strict=True):
        if limit < 0:
            raise InvalidRequestError(f"{name} must be a non-negative integer, not {limit}.")
        if limit and limit >= checker.max_model_len:
            raise InvalidRequestError(f"{name} ({limit}) must be less than max_model_len ({checker.max_model_len}).")
    tokenizer = checker.tokenizer
    if limits == (0, 0) or tokenizer is None:
        return pairs
    known = dict[tuple[str, int], str]()

    def cut(text: Prompt, limit: int) -> Prompt:
        if not isinstance(text, str) or not limit:
            return text
        if (text, limit) not in known:
            known[text, limit] = first_tokens(tokenizer, text, limit)
        return known[text, limit]

    return [(cut(a, limits[0]), cut(b, limits[1])) for a, b in pairs]


def plan_scores(
    pairs: Sequence[tuple[Prompt, Prompt]],
    ready: Ready,
    checker: InputChecker,
    options: ScoreOptions = ScoreOptions(),
) -> ScorePlan:
    """What gives the scores of pairs: a classifier reads both texts as one input, other models embed each text once.

    Raises InvalidRequestError for a classifier of more than two classes, and for pairs that it cannot read.
    """
    pairs = _shortened(pairs, checker, options)
    if ready.info.task == "classify":
        if ready.info.num_scores > 2:
            raise InvalidRequestError(
                f"scores are for classifiers of one or two classes; this one has {ready.info.num_scores}. Use classify."
            )
        prompts: list[Prompt] = _as_one(pairs, ready, checker, options)
        return ScorePlan(prompts, options.params, [(place,) for place in range(len(pairs))])
    place_of: dict[Any, int] = {}
    prompts, places = [], []
    for pair in pairs:
        for prompt in pair:
            key = prompt if isinstance(prompt, str) else id(prompt)
            if key not in place_of:
                place_of[key] = len(prompts)
                prompts.append(prompt)
        places.append(tuple(place_of[p if isinstance(p, str) else id(p)] for p in pair))
    return ScorePlan(prompts, replace(options.params, normalize=True), places)


def _as_one(
    pairs: Sequence[tuple[Prompt, Prompt]], ready: Ready, checker: InputChecker, options: ScoreOptions
) -> list[Any]:
    """Each pair as one prompt: by a template, or with what the model's tokenizer puts between texts."""
    own, tokenizer = ready.info.pair_template, checker.tokenizer
    if tokenizer is None or (options.template is None and own is None):
        return [checker.encode_typed_pair(a, b, options.params) for a, b in pairs]
    variables, template = options.variables, options.template
    if template is None and own is not None:
        template, variables = own.source(tokenizer), {**own.variables, **variables}
    return [pair_text(tokenizer, str(template), a, b, variables) for a, b in pairs]
