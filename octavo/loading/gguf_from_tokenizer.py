"""The vocabulary of a GGUF file, from a tokenizer: what octavo.loading.gguf_tokenizer reads, the other way round."""

import json
from collections.abc import Iterator
from typing import Any

from octavo.errors import OctavoError, UnsupportedModelError
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_splits import SPLITS, Split
from octavo.loading.gguf_tokenizer import gguf_tokenizer
from octavo.loading.gguf_vocab import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from octavo.text.tokenizer import FastTokenizer

SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}
"""Tokenizers' names of special tokens, and llama.cpp's."""
SAMPLES = (
    "Hello, world! It's 12345.678 o'clock; we've 7 apples & 3,000,000 pears.",
    "  def f(x):\n\treturn x ** 2  # comment\n\n\n    if x != 0x1F: print('done')\r\n",
    "Ünïcödé naïve façade — “quotes” … 日本語のテキスト、한국어 텍스트, русский текст, العربية, हिन्दी, ไทย",
    "🦙🚀👨‍👩‍👧 x²+y² ≠ ∞ I'LL YOU'RE camelCaseWord SCREAMING_CASE www.example.com/a?b=c&d=%20",
    "a b  c   d    e     f\t\tg \n h \n\n i\r\n\r\nj   ",
    "",
)
"""Texts that tell ways of splitting and vocabularies apart."""
NONE_HERE = "Leave it out with --skip-tokenizer-init, and give it with tokenizer= where the file is used."


def tokenizer_values(tokenizer: FastTokenizer, rows: int) -> dict[str, Any]:
    """Metadata of a tokenizer, by full keys.

    Args:
        rows: tokens that the model has vectors for; those past the vocabulary are padding.

    Raises UnsupportedModelError for a kind that is not written.
    """
    settings = json.loads(tokenizer.inner.to_str())
    model = settings["model"]
    if model.get("type") != "BPE":
        raise UnsupportedModelError(f"a tokenizer of kind {model.get('type')} is not written as GGUF. {NONE_HERE}")
    by_id = {i: token for token, i in tokenizer.inner.get_vocab(with_added_tokens=True).items()}
    if max(by_id) >= rows:
        raise UnsupportedModelError(f"the tokenizer has more tokens than the model ({rows}). {NONE_HERE}")
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(rows)]
    types = _types(tokenizer, by_id, rows, model)
    is_bytes = not model.get("byte_fallback")
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    values: dict[str, Any] = {"model": "gpt2" if is_bytes else "llama", "tokens": tokens, "token_type": types}
    if is_bytes:
        values |= {"pre": _pre(tokenizer, bool(model.get("ignore_merges"))), "merges": [" ".join(m) for m in merges]}
    else:
        values |= {"pre": "default", "scores": _scores(tokens, merges)}
        values["add_space_prefix"] = _has_prefix(tokenizer)
    ids = {
        name: tokenizer.inner.token_to_id(text)
        for name in SPECIAL
        if (text := tokenizer.special_tokens.get(f"{name}_token"))
    }
    values |= {f"{SPECIAL[name]}_token_id": i for name, i in ids.items() if i is not None}
    plain, ended = tokenizer.encode("a", False), tokenizer.encode("a")
    values["add_bos_token"] = "bos" in ids and ended[:1] == [ids["bos"]] != plain[:1]
    values["add_eos_token"] = "eos" in ids and ended[-1:] == [ids["eos"]] != plain[-1:]
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()} | _templates(tokenizer)


def _templates(tokenizer: FastTokenizer) -> dict[str, Any]:
    """Chat templates: the usual one, and others by their names."""
    others = {name: text for name, text in tokenizer.chat_templates.items() if name != "default"}
    values: dict[str, Any] = {f"tokenizer.chat_template.{name}": text for name, text in others.items()}
    if others:
        values["tokenizer.chat_templates"] = list(others)
    if "default" in tokenizer.chat_templates:
        values["tokenizer.chat_template"] = tokenizer.chat_templates["default"]
    return values


def _types(tokenizer: FastTokenizer, by_id: dict[int, str], rows: int, model: dict[str, Any]) -> list[int]:
    added = tokenizer.inner.get_added_tokens_decoder()
    types = []
    for i in range(rows):
        text = by_id.get(i)
        if text is None:
            types.append(UNUSED)
        elif i in added:
            is_unknown = text == model.get("unk_token")
            types.append(UNKNOWN if is_unknown else CONTROL if added[i].special else USER_DEFINED)
        elif text == model.get("unk_token"):
            types.append(UNKNOWN)
        else:
            is_byte = model.get("byte_fallback") and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
            types.append(BYTE if is_byte else NORMAL)
    return types


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """sentencepiece's scores: a token that is merged first has the highest."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks[token]) if token in ranks else -1e6 for token in tokens]


def _has_prefix(tokenizer: FastTokenizer) -> bool:
    """Whether texts begin with a space that they do not have."""
    pieces = tokenizer.inner.encode("a", add_special_tokens=False).tokens
    return bool(pieces) and pieces[0].startswith("▁")


def _pre(tokenizer: FastTokenizer, ignore_merges: bool) -> str:
    """llama.cpp's name of the way in which a byte-level tokenizer splits text."""
    inner = tokenizer.inner
    wanted = [_pieces(inner.pre_tokenizer, text) for text in SAMPLES] if inner.pre_tokenizer is not None else []
    for name, split in _candidates(ignore_merges):
        if wanted and [_pieces(split, text) for text in SAMPLES] == wanted:
            return name
    raise UnsupportedModelError(f"llama.cpp has no way to split text as this tokenizer does. {NONE_HERE}")


def _candidates(ignore_merges: bool) -> Iterator[tuple[str, Any]]:
    from tokenizers import Regex, pre_tokenizers

    seen = set[Split]()
    for name, split in SPLITS.items():
        if split in seen or split.raw or split.ignore_merges != ignore_merges:
            continue
        seen.add(split)
        steps: list[Any] = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in split.patterns]
        yield name, pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _pieces(pre_tokenizer: Any, text: str) -> list[str]:
    return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)]


def check_tokenizer(tokenizer: FastTokenizer, file: GGUFFile) -> None:
    """Raises UnsupportedModelError where what a file says is another tokenizer."""
    try:
        found = gguf_tokenizer(file)
    except OctavoError as error:
        raise UnsupportedModelError(f"the tokenizer cannot be written as GGUF: {error} {NONE_HERE}") from error
    marks = sorted(token.content for token in tokenizer.inner.get_added_tokens_decoder().values())
    for text in (*SAMPLES, *(f"a{mark}b {mark}" for mark in marks[:64])):
        for with_ends in (True, False):
            if tokenizer.encode(text, with_ends) != found.encode(text, with_ends):
                raise UnsupportedModelError(
                    f"the tokenizer cannot be written as GGUF: it would make other tokens of {text[:40]!r}. {NONE_HERE}"
                )
