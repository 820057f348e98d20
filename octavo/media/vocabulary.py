"""A tokenizer as processors need it: tokens by name, and where a text stands among tokens."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.errors import CheckpointError
from octavo.text.token_text import TokenTexts
from octavo.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Place:
    """Where an item belongs in a prompt: tokens from `start` to `stop` are what its span replaces."""

    kind: str
    start: int
    stop: int
    before: list[int] = field(default_factory=list)
    """Tokens to write before the span: what else was in the tokens that are replaced, or what the family puts there."""
    after: list[int] = field(default_factory=list)
    index: int | None = None
    """Which item of its kind it is; None: the next."""


class Vocabulary:
    """A model's tokenizer, or the lack of one."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.tokenizer = tokenizer
        self._texts = None if tokenizer is None else TokenTexts(tokenizer)

    def find(self, name: str) -> int | None:
        """The id of the token that is spelled so; None where there is none."""
        inner: Any = getattr(self.tokenizer, "inner", None)
        look = getattr(inner, "token_to_id", None) or getattr(inner, "convert_tokens_to_ids", None)
        found = look(name) if look else None
        if isinstance(found, int) and self.tokenizer is not None and self.tokenizer.token(found) == name:
            return found
        return None

    def id(self, name: str) -> int:
        """The id of the token that is spelled so. Raises CheckpointError where there is none."""
        found = self.find(name)
        if found is None:
            raise CheckpointError(f"the tokenizer has no token {name!r}, which stands for media. Use the model's own.")
        return found

    def encode(self, text: str) -> list[int]:
        """A text's tokens, and none that begin or end it."""
        if self.tokenizer is None:
            raise CheckpointError("this model needs its tokenizer for media; skip_tokenizer_init leaves it out.")
        return self.tokenizer.encode(text, add_special_tokens=False) if text else []

    def beginning(self) -> list[int]:
        """What the tokenizer puts before every text."""
        if self.tokenizer is None or self.tokenizer.bos_token_id is None:
            return []
        begins = self.tokenizer.encode("a")[:1] == [self.tokenizer.bos_token_id]
        return [self.tokenizer.bos_token_id] if begins else []

    def places_of(self, pattern: str, token_ids: Sequence[int], kind: str = "image") -> list[Place]:
        """Where a text (a regular expression) stands. Tokens that it shares with its neighbours are cut."""
        if self._texts is None:
            raise CheckpointError("this model needs its tokenizer for media; skip_tokenizer_init leaves it out.")
        starts, text = [0], ""
        pieces = [self._texts.own(i).text for i in token_ids]
        for piece in pieces:
            starts.append(starts[-1] + len(piece))
        text, places, at = "".join(pieces), [], 0
        for match in re.finditer(pattern, text):
            while starts[at + 1] <= match.start():
                at += 1
            first = at
            while starts[at] < match.end():
                at += 1
            before = self.encode(text[starts[first] : match.start()])
            after = self.encode(text[match.end() : starts[at]])
            index = int(match[1]) - 1 if match.re.groups else None
            places.append(Place(kind, first, at, before, after, index))
            at = max(first, at - 1)
        return places
