"""Single tokens as text and as bytes, whatever stands beside them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octavo.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class TokenText:
    """What a token is, or what it has added to a text."""

    text: str
    """In a text, the characters that it completed: none for one that is skipped or begins a character."""
    data: bytes
    """Its bytes, which need not be whole characters; of all tokens together, those of the text."""


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level vocabularies write bytes with: themselves, or those from U+0100 on."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (b for b in range(256) if b not in plain)
    return {**{chr(b): b for b in plain}, **{chr(0x100 + i): b for i, b in enumerate(others)}}


_BYTES = _byte_alphabet()


class TokenTexts:
    """A tokenizer's tokens one by one. Each is looked up once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decode, self._token = tokenizer.decode, tokenizer.token
        self.is_byte_level = _decodes_bytes(tokenizer)
        """Whether a text is nothing but its tokens' bytes, one after the other."""
        self._own: dict[int, TokenText] = {}
        self._is_skipped: dict[int, bool] = {}
        self._anchor = [] if self.is_byte_level else tokenizer.encode("a", add_special_tokens=False)[-1:]
        """A token before the one that is looked at: some tokenizers leave out the space that a text begins with."""
        self._before = {skip: tokenizer.decode(self._anchor, skip) if self._anchor else "" for skip in (False, True)}

    def own(self, token_id: int) -> TokenText:
        """The token as it is inside a text. A special one is its name, part of a character is U+FFFD."""
        found = self._own.get(token_id)
        if found is None:
            text = self._text(token_id, skip_special_tokens=False)
            found = self._own[token_id] = TokenText(text, self._data(token_id, text))
        return found

    def is_skipped(self, token_id: int) -> bool:
        """Whether a text without special tokens lacks it."""
        found = self._is_skipped.get(token_id)
        if found is None:
            found = bool(self.own(token_id).text) and not self._text(token_id, skip_special_tokens=True)
            self._is_skipped[token_id] = found
        return found

    def _text(self, token_id: int, skip_special_tokens: bool) -> str:
        return self._decode([*self._anchor, token_id], skip_special_tokens)[len(self._before[skip_special_tokens]) :]

    def _data(self, token_id: int, text: str) -> bytes:
        piece = self._token(token_id) if REPLACEMENT in text else None
        if piece is None:
            return text.encode()
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes.fromhex(piece[3:5])
        return bytes(_BYTES[c] for c in piece) if all(c in _BYTES for c in piece) else text.encode()


def _decodes_bytes(tokenizer: Tokenizer) -> bool:
    decoder: Any = getattr(getattr(tokenizer, "inner", None), "decoder", None)
    if not hasattr(decoder, "__getstate__") or not type(decoder).__module__.startswith("tokenizers"):
        return False
    state = json.loads(decoder.__getstate__())
    return {d.get("type") for d in state.get("decoders", [state])} == {"ByteLevel"}


def token_texts(tokenizer: Tokenizer) -> TokenTexts:
    """The tokens of this tokenizer, shared by all who ask."""
    found = vars(tokenizer).get("token_texts")
    if not isinstance(found, TokenTexts):
        found = TokenTexts(tokenizer)
        vars(tokenizer)["token_texts"] = found
    return found


def token_spans(tokenizer: Tokenizer, text: str, token_ids: Sequence[int]) -> list[tuple[int, int]] | None:
    """Where in `text` the tokens begin and end that were made of it, in characters and without gaps.

    What lies between two tokens is the second one's, what lies behind the last is its own; a character of several
    tokens is the last one's; what was put before or after the text has none of it. None where the tokenizer does not
    tell.

    Args:
        token_ids: the text's tokens, or the last of them.
    """
    encoded = _encoding(getattr(tokenizer, "inner", None), text)
    if encoded is None or not token_ids or encoded[0][-len(token_ids) :] != list(token_ids):
        return None
    begins, covered = list[int](), 0
    for start, end in encoded[1]:
        at = start if start < min(end, covered) else covered
        begins.append(max(at, begins[-1] if begins else 0))
        covered = max(covered, end)
    begins[0] = 0
    return list(zip(begins, [*begins[1:], len(text)], strict=True))[-len(token_ids) :]


def first_tokens(tokenizer: Tokenizer, text: str, most: int) -> str:
    """The beginning of a text that is no more than so many tokens, at least one, without special ones."""
    while len(ids := tokenizer.encode(text, False)) > most:
        encoded = _encoding(getattr(tokenizer, "inner", None), text, add_special_tokens=False)
        if encoded is None:
            return tokenizer.decode(ids[:most])
        end = min(encoded[1][most - 1][1], encoded[1][most][0])  # not within a character that several tokens make
        text = text[: min(end, len(text) - 1)]
    return text


def _encoding(inner: Any, text: str, add_special_tokens: bool = True) -> tuple[list[int], list[tuple[int, int]]] | None:
    """Token ids of a text, and what each covers."""
    inner = getattr(inner, "backend_tokenizer", inner)
    if not hasattr(inner, "encode_batch"):
        return None
    # Unlike `encode`, it lets other threads run.
    encoding = inner.encode_batch([text], add_special_tokens=add_special_tokens)[0]
    return encoding.ids, encoding.offsets
