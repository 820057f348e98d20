"""The vocabulary of a GGUF file: its tokens, what kinds they are, and which of them begin and end texts.

What the file leaves out is as in llama.cpp (llama-vocab.cpp): special tokens by the kind of vocabulary, and tokens that
end an answer by their text.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from octavo.loading.gguf_reader import Metadata, shown

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens, as `tokenizer.ggml.token_type` has them."""

MAX_TOKENS, MAX_TOKEN_CHARS = 1 << 20, 1 << 12

_IDS = ("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask", "fim_pad", "fim_rep", "fim_sep")
_HARMLESS = ("seperator", "padding", "mask", "fim_pad", "fim_rep", "fim_sep")
"""Published files have some of these beyond their vocabulary; llama.cpp then does without, and so do we."""
_USUAL_IDS: dict[str, dict[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
    "bert": {"bos": 101, "unknown": 100, "seperator": 102, "padding": 0, "mask": 103},
    "gpt2": {"bos": 11, "eos": 11},
    "t5": {"eos": 1, "unknown": 2, "padding": 0},
}
"""The special tokens of files that do not name theirs."""

_ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>"),
    *(
        "[EOT]",
        "[EOS]",
        "</s>",
        "<eos>",
        "<|eom_id|>",
        "<｜end▁of▁sentence｜>",
        "<end_of_utterance>",
        "<turn|>",
        "[e~[",
    ),
    *("<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<|tool_response>"),
)
"""Texts of tokens that end an answer wherever they are in a vocabulary."""
_FILL_IN_THE_MIDDLE = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
"""Tokens after which code completion has left its place: they end an answer too."""
_RENDERED = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
"""gpt-oss' marks, which its reader wants to see."""


@dataclass(frozen=True)
class Vocabulary:
    """A file's tokens by id, and the ids that matter.

    Args:
        kind: llama.cpp's `tokenizer.ggml.model`: gpt2, llama, bert or t5.
        types: kinds of the tokens, those known by their text among them.
        special: bos, eos, unknown, seperator (as llama.cpp spells it), padding and so on to their ids.
        ends: tokens that end an answer.
    """

    kind: str
    tokens: list[str]
    types: list[int]
    special: dict[str, int]
    ends: frozenset[int] = field(default_factory=frozenset)


def token_id(metadata: Metadata, name: str, count: int | None) -> int | None:
    """The special token `name` of a vocabulary of `count`. Raises CheckpointError for one that is not in it."""
    key = f"tokenizer.ggml.{name}_token_id"
    index: int | None = metadata.typed(key, int, "the id of a token")
    if index is None or count is None or 0 <= index < count:
        return index
    if name not in _HARMLESS:
        metadata.fail(f"{key} is {index}, and the vocabulary has {count} tokens")
    return None


def read_vocabulary(metadata: Metadata, rows: int | None) -> Vocabulary | None:
    """The vocabulary, or None where the file has none.

    Args:
        rows: how many tokens the model has vectors for, if that is known.

    Raises CheckpointError for one that contradicts itself.
    """
    kind = metadata.text("tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab") or "tokenizer.ggml.tokens" not in metadata:
        return None
    tokens = _tokens(metadata, rows)
    ids = {text: i for i, text in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(t for i, t in enumerate(tokens) if ids[t] != i)
        metadata.fail(f"token {shown(twice)} is in the vocabulary twice")
    types = numbers(metadata, "tokenizer.ggml.token_type", len(tokens), whole=True) or [NORMAL] * len(tokens)
    special = _special(metadata, kind or "", len(tokens), types)
    return Vocabulary(kind or "", tokens, types, special, _ends(ids, types, special))


def _tokens(metadata: Metadata, rows: int | None) -> list[str]:
    most = MAX_TOKENS if rows is None else min(rows, MAX_TOKENS)
    tokens = metadata.texts("tokenizer.ggml.tokens", most)
    if not tokens:
        metadata.fail("its vocabulary has no tokens")
    if longest := next((t for t in tokens if len(t) > MAX_TOKEN_CHARS), None):
        metadata.fail(f"token {shown(longest)} is too long")
    return [t or f"[EMPTY_{i}]" for i, t in enumerate(tokens)]


def numbers(metadata: Metadata, key: str, count: int, whole: bool) -> list[Any] | None:
    """A number for each of `count` tokens, or None if the file has no `key`."""
    if key not in metadata:
        return None
    array = metadata.array(key)
    if array.dtype.kind not in ("iu" if whole else "iuf"):
        metadata.fail(f"{key} must be a list of {'whole ' if whole else ''}numbers")
    if len(array) < count:
        metadata.fail(f"{key} has {len(array)} values for {count} tokens")
    if not np.isfinite(array).all():
        metadata.fail(f"{key} has values that are not numbers")
    values: list[Any] = array[:count].tolist()
    return values


def _special(metadata: Metadata, kind: str, count: int, types: list[int]) -> dict[str, int]:
    usual, special = _USUAL_IDS.get(kind, {}), {}
    for name in _IDS:
        index = token_id(metadata, name, count)
        if index is None and usual.get(name, count) < count:
            index = usual[name]
            # Falcon's token 11 is llama.cpp's guess for all byte-level vocabularies; where it is a word it is none.
            if kind == "gpt2" and types[index] != CONTROL:
                continue
        if index is not None:
            special[name] = index
    return special


def _ends(ids: dict[str, int], types: list[int], special: dict[str, int]) -> frozenset[int]:
    """The tokens that end an answer. Those known by their text become control tokens in `types`."""
    ends = {ids[text] for text in _ENDS if text in ids}
    for name, texts in _FILL_IN_THE_MIDDLE.items():
        known = special.get(name, next((ids[t] for t in texts if t in ids), None))
        if known is not None:
            ends.add(known)
    for index in ends:
        types[index] = CONTROL
    ends |= {special[name] for name in ("eos", "eot", "eom") if name in special}
    for text in _RENDERED:
        if text in ids:
            types[ids[text]] = USER_DEFINED
    if ids.keys() >= {"<|return|>", "<|call|>", "<|end|>"} or ids.keys() >= {"<|calls|>", "<|flush|>", "<|end|>"}:
        ends.discard(ids["<|end|>"])  # gpt-oss and Solar go on after it
        types[ids["<|end|>"]] = USER_DEFINED
    if ids.keys() >= {"<|tool_response>", "</s>"}:
        ends.discard(ids["</s>"])  # Gemma 4 has it as a word
        types[ids["</s>"]] = NORMAL
    return frozenset(ends)
