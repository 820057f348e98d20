"""Log-probabilities as OpenAI's clients read them."""

from collections.abc import Iterable, Sequence
from typing import Any

from octavo.client.output_processor import NO_TEXT, TokenEntry
from octavo.outputs import Logprob, TokenLogprobs
from octavo.params import SamplingParams
from octavo.server.markers import is_text, visible
from octavo.text.detokenizer import TextStream
from octavo.text.token_text import REPLACEMENT, TokenText, token_spans, token_texts
from octavo.text.tokenizer import Tokenizer

LEAST = -9999.0
"""Stands for minus infinity, which JSON does not have."""


def _number(logprob: float) -> float:
    return max(logprob, LEAST)


def _escaped(data: bytes) -> str:
    return "".join(f"\\x{b:02x}" for b in data)


class LogprobsWriter:
    """Writes entries of one model's tokens.

    The token that was chosen is spelled as the text that it added, so that all of them together are the text; nothing,
    where it is skipped or begins a character. The others are spelled as they are inside a text, and parts of characters
    as their bytes (`\\xe2\\x82`), as OpenAI's server does.

    Args:
        as_ids: spell tokens `token_id:ID`, as vLLM does with return_tokens_as_token_ids.
    """

    def __init__(self, tokenizer: Tokenizer | None, as_ids: bool) -> None:
        self._texts = None if tokenizer is None else token_texts(tokenizer)
        self._as_ids = as_ids or tokenizer is None

    def _spelled(self, token_id: int, entry: TokenEntry) -> tuple[str, bytes]:
        if self._texts is None:
            return f"token_id:{token_id}", b""
        own = entry.text if token_id == entry.token_id else self._texts.own(token_id)
        if not is_text(own.text):  # a marker that is a special token
            own = TokenText(visible(own.text), own.data)
        if self._as_ids:
            return f"token_id:{token_id}", own.data
        if token_id == entry.token_id or REPLACEMENT not in own.text:
            return own.text, own.data
        return _escaped(own.data), own.data

    def _best(self, entry: TokenEntry) -> list[tuple[int, float]]:
        """All tokens that were reported for the place, the likeliest first."""
        ranked = sorted((entry.logprobs or {}).items(), key=lambda item: -item[1].logprob)
        return [(token, _number(item.logprob)) for token, item in ranked]

    def chat(self, entries: Iterable[TokenEntry], count: int) -> dict[str, Any]:
        """`logprobs` of a chat's choice.

        Args:
            count: with 0, no other tokens are told. Otherwise all that were reported: the likeliest and the chosen.
        """
        content = []
        for entry in entries:
            best = [self._chat_entry(token, logprob, entry) for token, logprob in self._best(entry)]
            own = _number((entry.logprobs or {})[entry.token_id].logprob)
            content.append({**self._chat_entry(entry.token_id, own, entry), "top_logprobs": best if count else []})
        return {"content": content}

    def _chat_entry(self, token_id: int, logprob: float, entry: TokenEntry) -> dict[str, Any]:
        text, data = self._spelled(token_id, entry)
        return {"token": text, "logprob": logprob, "bytes": list(data)}

    def completion(self, entries: Iterable[TokenEntry], offset: int) -> tuple[dict[str, Any], int]:
        """`logprobs` of a completion's choice from the character `offset` of its text on, and the offset behind them.

        `top_logprobs` has a key for each token: where two have one spelling, the less likely is `token_id:ID`. The
        chosen token keeps its own.
        """
        out: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in entries:
            name = self._spelled(entry.token_id, entry)[0]
            out["tokens"].append(name)
            out["text_offset"].append(offset)
            offset += len(entry.text.text)
            if entry.logprobs is None:
                out["token_logprobs"].append(None)
                out["top_logprobs"].append(None)
                continue
            top = dict[str, float]()
            for token, logprob in self._best(entry):
                spelled = self._spelled(token, entry)[0]
                if token != entry.token_id and (spelled in top or spelled == name):
                    spelled = f"token_id:{token}"
                top[spelled] = logprob
            out["token_logprobs"].append(top[name])
            out["top_logprobs"].append(top)
        return out, offset

    def prompt(self, entries: Sequence[TokenLogprobs | None] | None) -> list[Any] | None:
        """vLLM's `prompt_logprobs`: for each token of the prompt the entries by token id."""
        if entries is None:
            return None
        return [
            None if place is None else {str(token): self._prompt_entry(entry) for token, entry in place.items()}
            for place in entries
        ]

    def _prompt_entry(self, entry: Logprob) -> dict[str, Any]:
        return {"logprob": _number(entry.logprob), "rank": entry.rank, "decoded_token": entry.decoded_token}


def prompt_texts(
    tokenizer: Tokenizer | None, text: str | None, token_ids: Sequence[int], params: SamplingParams
) -> list[TokenText]:
    """A prompt's text by its tokens. Together they are all of `text`, if it is given, or what truncating left of it.

    Where the text came first, some tokenizers know which token has which of its characters. With others, and where
    normalizing has changed the text, a token has what fits, and the last one what is left over.
    """
    if tokenizer is None:
        return [NO_TEXT] * len(token_ids)
    if text is not None:
        spans = token_spans(tokenizer, text, token_ids)
        if spans is not None:
            return [_as_token(text[start:end]) for start, end in spans]
    if params.truncate_prompt_tokens is not None:
        text = None
    params = params.clone()
    params.stop, params.skip_special_tokens = [], params.skip_special_tokens and text is None
    stream = TextStream(tokenizer, [], params)
    for token in token_ids:
        stream.add(token)
    parts = stream.take_tokens(finished=True)
    if text is None or stream.text == text:
        return parts
    at, fitted = 0, list[TokenText]()
    for part in parts:
        fits = text.startswith(part.text, at)
        fitted.append(part if fits else NO_TEXT)
        at += len(part.text) if fits else 0
    return [*fitted[:-1], _as_token(fitted[-1].text + text[at:])]


def _as_token(text: str) -> TokenText:
    return TokenText(text, text.encode())
