"""Tokens beside tokenizer.json, held against transformers' AutoTokenizer on the same folder (with 4.57: .ci/run)."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from octavo.architectures.model_config import Config
from octavo.errors import CheckpointError, InvalidRequestError
from octavo.loading.model import _eos_tokens as end_tokens
from octavo.text.tokenizer import SLOW_CHARACTERS, FastTokenizer, TransformersTokenizer, load_tokenizer
from tests.text.test_tokenizer import write_tokenizer

FIVE = int(transformers.__version__.split(".")[0]) >= 5
TEXT = "a <pad> b<x> <tool>c<TOOL> </end>z<s>q</s> a<tool>b <img> <|eot|>Ä tool"


def token(content: str, **flags: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    return {"content": content, **plain, **flags}


def decoder(*tokens: dict[str, Any], first: int = 258) -> dict[str, Any]:
    return {"added_tokens_decoder": {str(first + i): t for i, t in enumerate(tokens)}}


PLAIN: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
END = {"eos_token": "</end>"}
TYPED = {"__type": "AddedToken"}
SETTINGS: dict[str, dict[str, Any]] = {
    "only in the decoder": {**decoder(token("</end>"), token("<tool>", special=False)), **END},
    "of the decoder, with all before": {**decoder(token("<s>"), token("</s>"), token("</end>"), first=256), **END},
    "ids with gaps": {**decoder(token("<s>"), token("</s>"), first=256), **decoder(token("</end>"), first=300), **END},
    "ids in another order": {"added_tokens_decoder": {"1000": token("<x>"), "300": token("</end>")}, **END},
    "a name makes it special": {**decoder(token("</end>", special=False)), **END},
    "strips": decoder(token("<x>", lstrip=True, rstrip=True), token("<tool>", lstrip=True, special=False)),
    "whole words": decoder(token("tool", single_word=True, special=False)),
    "normalized": decoder(token("<TOOL>", normalized=True, special=False), token("Ä", normalized=True)),
    "other flags than tokenizer.json": decoder(token("<s>", lstrip=True), token("</s>", special=False), first=256),
    "named, in no list": {"unk_token": "<unk>", "mask_token": "<img>", "pad_token": "<pad>", **END},
    "named, a word of the vocabulary": {"pad_token": "a"},
    "named, with flags": {"eos_token": {**TYPED, **token("</end>", lstrip=True)}},
    "extra, as 4 writes them": {"additional_special_tokens": ["<x>", "<tool>"]},
    "extra, with flags": {"additional_special_tokens": [{**TYPED, **token("<x>", lstrip=True)}]},
    "extra, by name": {"extra_special_tokens": {"image_token": "<img>", "tool_token": "<tool>"}},
}
OF_FIVE: dict[str, dict[str, Any]] = {
    "extra, as 5 writes them": {"extra_special_tokens": ["<x>", "<tool>"]},
    "extra, both spellings": {"extra_special_tokens": ["<x>"], "additional_special_tokens": ["<tool>"]},
    "a name of its own": {"image_token": "<img>"},
}
FILES: dict[str, dict[str, Any]] = {
    "added_tokens.json": {"added_tokens.json": {"<tool>": 259, "</end>": 258}},
    "special_tokens_map.json": {
        "special_tokens_map.json": {"eos_token": token("</end>", lstrip=True), "additional_special_tokens": ["<x>"]}
    },
    "both": {
        "special_tokens_map.json": {"eos_token": "</end>", "pad_token": "<pad>"},
        "added_tokens.json": {"<pad>": 258, "</end>": 259, "<tool>": 260},
    },
}


def held_against_transformers(folder: Path) -> None:
    from transformers import AutoTokenizer

    own, theirs = load_tokenizer(folder, False), AutoTokenizer.from_pretrained(str(folder))
    assert isinstance(own, FastTokenizer)
    ids = own.encode(TEXT)
    assert ids == theirs.encode(TEXT)
    assert own.encode_pair("a<x>", " </end>") == theirs.encode("a<x>", " </end>")
    assert own.encode(TEXT, add_special_tokens=False) == theirs.encode(TEXT, add_special_tokens=False)
    for skip in (False, True):
        want = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert own.decode(ids, skip_special_tokens=skip) == want
    assert (own.bos_token_id, own.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert own.vocab_size == len(theirs)
    assert [own.token(i) for i in range(len(theirs))] == theirs.convert_ids_to_tokens(list(range(len(theirs))))
    named = {n: t for n, t in theirs.special_tokens_map.items() if isinstance(t, str)}
    assert named.items() <= own.special_tokens.items()


@pytest.mark.parametrize("name", SETTINGS)
def test_as_transformers_reads_tokenizer_config(name: str, tmp_path: Path) -> None:
    held_against_transformers(write_tokenizer(tmp_path, **{**PLAIN, **SETTINGS[name]}))


@pytest.mark.skipif(not FIVE, reason="version 4 fails on what version 5 writes")
@pytest.mark.parametrize("name", OF_FIVE)
def test_as_transformers_5_reads_tokenizer_config(name: str, tmp_path: Path) -> None:
    held_against_transformers(write_tokenizer(tmp_path, **{**PLAIN, **OF_FIVE[name]}))


@pytest.mark.parametrize("name", FILES)
def test_as_transformers_reads_other_files(name: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, **{**PLAIN, **END})
    for file, value in FILES[name].items():
        (tmp_path / file).write_text(json.dumps(value))
    held_against_transformers(tmp_path)
    write_tokenizer(tmp_path, **{**PLAIN, **SETTINGS["only in the decoder"]})
    held_against_transformers(tmp_path)  # the decoder counts for all


@pytest.mark.parametrize("extra", [[], pytest.param(["<tool>"], marks=pytest.mark.skipif(FIVE, reason="5 does not"))])
def test_what_is_special_though_tokenizer_json_does_not_say_so(extra: list[str], tmp_path: Path) -> None:
    """A token that any file calls special; version 5 does so only for those with a name."""
    from tokenizers import Tokenizer

    write_tokenizer(tmp_path, **{**PLAIN, **END, "additional_special_tokens": extra})
    inner = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    inner.add_tokens(["</end>", "<tool>"])
    inner.save(str(tmp_path / "tokenizer.json"))
    held_against_transformers(tmp_path)
    assert load_tokenizer(tmp_path, False).decode([64, 258, 259]) == ("a" if extra else "a<tool>")


@pytest.mark.parametrize("class_name", ["GPTNeoXTokenizerFast", "GPT2Tokenizer"])
def test_special_tokens_that_only_the_class_names(class_name: str, tmp_path: Path) -> None:
    """As transformers has them; a null is none, and a token that the vocabulary lacks is not made up."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path)
    inner = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    inner.add_special_tokens(["<|endoftext|>"])
    inner.save(str(tmp_path / "tokenizer.json"))
    for settings, want in (({}, 258), ({"eos_token": None}, None), ({"eos_token": "<s>"}, 256)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": class_name, **settings}))
        assert load_tokenizer(tmp_path, False).eos_token_id == want
        assert AutoTokenizer.from_pretrained(str(tmp_path)).eos_token == (inner.id_to_token(want) if want else None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CohereTokenizer"}))
    assert load_tokenizer(tmp_path, False).eos_token_id is None


def test_end_tokens_that_stand_in_other_files_alone(tmp_path: Path) -> None:
    """They end answers, as far as the model can write them: min_tokens masks them among its logits."""
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, **{**PLAIN, **SETTINGS["only in the decoder"]}), False)
    config = Config({"eos_token_id": [7, 400]})
    assert end_tokens(config, {"eos_token_id": 9}, tokenizer, 259) == {7, 9, 258}
    assert end_tokens(config, {}, tokenizer, 258) == {7}


def test_version_5s_spelling_with_every_version(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, extra_special_tokens=["<x>", "<tool>"]), False)
    ids = tokenizer.encode("a<x>b<tool>")
    assert ids == [64, 258, 65, 259]
    assert (tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=False)) == ("ab", "a<x>b<tool>")


@pytest.mark.parametrize(
    "settings",
    [
        {"added_tokens_decoder": 3},
        {"added_tokens_decoder": ["</end>"]},
        {"added_tokens_decoder": {"258": "</end>"}},
        {"added_tokens_decoder": {"x": token("</end>")}},
        {"added_tokens_decoder": {"258": {"special": True}}},
        {"added_tokens_decoder": {"258": {"content": 3}}},
        {"extra_special_tokens": 3},
        {"additional_special_tokens": "<x>"},
    ],
)
def test_values_of_a_wrong_type(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"added_tokens_decoder|extra special tokens"):
        load_tokenizer(write_tokenizer(tmp_path, **settings), False)


def test_a_long_text_is_tokenized_beside_other_threads(tmp_path: Path) -> None:
    """The call that is used lets go of the interpreter: both must reach the barrier for either to pass it."""
    tokenizer = load_tokenizer(write_tokenizer(tmp_path), False)
    assert isinstance(tokenizer, FastTokenizer)
    text = "Grüße " * 5000
    assert tokenizer.encode(text) == tokenizer.inner.encode(text).ids
    assert tokenizer.encode_pair(text, "b") == tokenizer.inner.encode(text, "b").ids
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, 257] * 2, skip_special_tokens=False) == f"{text}</s>" * 2


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_a_text_that_cannot_be_encoded(text: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path), False)
    for work in (lambda: tokenizer.encode(text), lambda: tokenizer.encode_pair(text, "b")):
        with pytest.raises(InvalidRequestError, match="the tokenizer failed on this text"):
            work()


def test_a_tokenizer_that_throws(tmp_path: Path) -> None:
    """A WordPiece vocabulary without its unknown token, as the library reports it."""
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordPiece(vocab={"a": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path, False)
    assert tokenizer.encode("a") == [0]
    with pytest.raises(InvalidRequestError, match=r"failed on this text.*UNK"):
        tokenizer.encode("b")


class PanicException(BaseException):
    """As pyo3 raises it for a panic in Rust."""


class Slow:
    """A tokenizer of Python code, as transformers gives one."""

    eos_token_id, bos_token_id, special_tokens_map, is_fast = 1, None, {"eos_token": "b"}, False

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0, "bcd": 1}

    def encode(self, text: str, pair: str = "", add_special_tokens: bool = True) -> list[int]:
        if self.error is not None:
            raise self.error
        return [0] * len(text + pair)

    def decode(self, ids: list[int], **options: Any) -> str:
        return "".join(("a", "bcd")[i] for i in ids)

    def convert_ids_to_tokens(self, index: int) -> str:
        return ("a", "bcd")[index]


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError(), MemoryError(), PanicException("in Rust")])
def test_a_slow_tokenizer_that_throws(error: BaseException) -> None:
    tokenizer = TransformersTokenizer(Slow(error), {})
    for work in (lambda: tokenizer.encode("a"), lambda: tokenizer.encode_pair("a", "b")):
        with pytest.raises(InvalidRequestError, match=type(error).__name__):
            work()
    with pytest.raises(KeyboardInterrupt):
        TransformersTokenizer(Slow(KeyboardInterrupt()), {}).encode("a")


def test_a_slow_tokenizer_takes_no_giant_texts() -> None:
    tokenizer = TransformersTokenizer(Slow(), {})
    assert len(tokenizer.encode("a" * 1000)) == 1000
    with pytest.raises(InvalidRequestError, match="takes at most"):
        tokenizer.encode("a" * (SLOW_CHARACTERS + 1))
    with pytest.raises(InvalidRequestError, match="takes at most"):
        tokenizer.encode_pair("a" * SLOW_CHARACTERS, "b")
    assert tokenizer.longest_token == 12


def test_tokens_that_a_tokenizer_does_not_know(tmp_path: Path) -> None:
    """A model's vocabulary is often padded: what it writes there is no text, and no error."""
    slow = TransformersTokenizer(Slow(), {})
    assert slow.decode([0, 7, 1]) == "abcd"
    assert slow.decode([7]) == ""
    assert slow.token(7) is None
    fast = load_tokenizer(write_tokenizer(tmp_path), False)
    assert fast.decode([64, 5000, 65, 1 << 40, -1]) == "ab"
    assert fast.token(5000) is fast.token(1 << 40) is fast.token(-1) is None
