"""Prompts that are cut to so many tokens, as transformers' tokenizers cut them: special tokens around a text stay."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from octavo.errors import InvalidRequestError
from octavo.params import SIDES, PoolingParams, SamplingParams

T = TypeVar("T")

LEFT, RIGHT = SIDES
"""At which end of a text what is too much is taken away."""
MOST_BEFORE = 16
"""Special tokens that may stand before a text."""


def sliced(values: Sequence[T], most: int, side: str) -> list[T]:
    """So many of the first values, or of the last where the left is cut."""
    return list(values[max(0, len(values) - most) :] if side == LEFT else values[:most])


def _place(whole: Sequence[int], part: Sequence[int], start: int) -> int | None:
    """Where `part` begins, at `start` or few tokens behind it."""
    found = (i for i in range(start, start + MOST_BEFORE) if list(whole[i : i + len(part)]) == list(part))
    return next(found, None)


def kept_of_text(whole: Sequence[int], bare: Sequence[int], most: int, side: str) -> list[int]:
    """Which tokens of a text stay, by their places: all that are special, and of the text as many as there is room for.

    Args:
        whole: the text's tokens, with special ones around them.
        bare: without these.
        most: how many may stay.
        side: at which end the text is cut.
    """
    places = range(len(whole))
    first = _place(whole, bare, 0)
    room = most - (len(whole) - len(bare))
    if first is None or room < 0:
        return sliced(places, most, side)
    text = range(first, first + len(bare))
    return [*places[:first], *sliced(text, room, side), *places[text.stop :]]


def kept_of_pair(
    whole: Sequence[int], first: Sequence[int], second: Sequence[int], most: int, side: str = RIGHT
) -> list[int]:
    """The same of two texts that are one input: the longer of them is cut first, until both are of one length.

    Args:
        whole: the input's tokens.
        first: those of the first text alone.
        second: those of the second.
    """
    places = range(len(whole))
    room = most - (len(whole) - len(first) - len(second))
    begin = _place(whole, first, 0)
    middle = None if begin is None else _place(whole, second, begin + len(first))
    if begin is None or middle is None or room < 0:
        return sliced(places, most, side)
    one, other = range(begin, begin + len(first)), range(middle, middle + len(second))
    short, long = sorted((len(one), len(other)))
    long = max(short, min(long, room - short))
    if short + long > room:
        short, long = room // 2, room - room // 2
    of_one, of_other = (short, long) if len(one) <= len(other) else (long, short)
    return [
        *places[:begin],
        *sliced(one, of_one, side),
        *places[one.stop : middle],
        *sliced(other, of_other, side),
        *places[other.stop :],
    ]


def side_of(params: SamplingParams | PoolingParams) -> str:
    """At which side a prompt is cut: what is generated goes on at the right, and is not cut there."""
    return params.truncation_side or (LEFT if isinstance(params, SamplingParams) else RIGHT)


def most_tokens(params: SamplingParams | PoolingParams, max_model_len: int) -> int | None:
    """To how many tokens prompts are cut; None for those that are not.

    Raises InvalidRequestError for more than there may be.
    """
    most = params.truncate_prompt_tokens
    if most is not None and most > max_model_len:
        raise InvalidRequestError(
            f"truncate_prompt_tokens={most} cannot be greater than max_model_len = {max_model_len}. Please request a "
            "smaller truncation size."
        )
    of_answer = 1 if isinstance(params, SamplingParams) else 0
    return max_model_len - of_answer if most == -1 else most


def truncated(
    text: str | None,
    ids: list[int],
    params: SamplingParams | PoolingParams,
    bare: Callable[[str], list[int]],
    max_model_len: int,
) -> list[int]:
    """A prompt's tokens, cut as the request says: at the side that it names, else special tokens around a text stay.

    Args:
        text: what the tokens were made of; None where they were given.
        ids: its tokens.
        params: what the request says.
        bare: the tokens of a text without special ones around them.
        max_model_len: longest prompt.
    """
    most = most_tokens(params, max_model_len)
    if most is None or len(ids) <= most:
        return ids
    if text is None or params.truncation_side is not None:
        return sliced(ids, most, side_of(params))
    return [ids[i] for i in kept_of_text(ids, bare(text), most, side_of(params))]


def truncated_pair(
    texts: tuple[str, str],
    tokens: tuple[list[int], list[int]],
    params: PoolingParams,
    bare: Callable[[str], list[int]],
    max_model_len: int,
) -> dict[str, Any]:
    """The prompt of two texts, with its tokens' types where they differ. What names a side is cut when it is checked.

    Args:
        texts: both.
        tokens: those of the pair, and their types; empty for none.
        params, bare, max_model_len: as in `truncated`.
    """
    (ids, types), most = tokens, most_tokens(params, max_model_len)
    if most is not None and len(ids) > most and params.truncation_side is None:
        kept = kept_of_pair(ids, bare(texts[0]), bare(texts[1]), most)
        ids, types = [ids[i] for i in kept], [types[i] for i in kept] if types else []
    return {"prompt_token_ids": ids, **({"token_type_ids": types} if any(types) else {})}
