"""Tokenizers out of GGUF files: as llama.cpp reads them.

The expectations were checked with llama.cpp's own library (October 2026), on files that the functions here wrote; where
the published pattern and llama.cpp's approximation of it differ, with the published pattern in `tokenizers`.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Regex, pre_tokenizers

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_splits import SPLITS
from octavo.loading.gguf_tokenizer import gguf_tokenizer
from octavo.text.tokenizer import FastTokenizer
from tests.loading.gguf_raw import (
    ARRAY,
    BOOL,
    F32,
    I32,
    U8,
    RawGGUF,
    Value,
    byte_letters,
    byte_level,
    charsmap,
    sentencepiece,
    text,
    texts,
    unigrams,
    whole,
    wordpieces,
)

Made = Callable[..., FastTokenizer]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., GGUFFile]:
    """A file of a tokenizer's values, with others in place of some, and None for what is left out."""

    def made(values: dict[str, Value], /, **changes: Value | None) -> GGUFFile:
        changed = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
        kept = {k: v for k, v in {**values, **changed}.items() if v is not None}
        raw = RawGGUF([(b"general.architecture", text("llama"))], [], b"")
        for key, value in kept.items():
            raw.set(key, value)
        path = tmp_path / "tokens.gguf"
        path.write_bytes(raw.encoded())
        return GGUFFile(path)

    return made


@pytest.fixture
def make(read: Callable[..., GGUFFile]) -> Made:
    return lambda values, /, **changes: gguf_tokenizer(read(values, **changes))


def spelled(tokenizer: FastTokenizer, ids: list[int]) -> list[str]:
    return [str(tokenizer.token(i)) for i in ids]


# How text is split


def pieces(pre: str, content: str) -> list[str]:
    """What the patterns of `pre` cut a text into."""
    steps = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in SPLITS[pre].patterns]
    return [piece for piece, _ in pre_tokenizers.Sequence(steps).pre_tokenize_str(content)]


TEXT = "Hello we'LL pay 12345 x²,\n\n  ok?"
SPLIT_AS: dict[str, list[str]] = {
    "default": ["Hello", " we", "'", "LL", " pay", " ", "123", "45", " x", "²", ",", "\n\n ", " ok", "?"],
    "gpt-2": ["Hello", " we", "'", "LL", " pay", " 12345", " x", "²", ",", "\n\n ", " ok", "?"],
    "smollm": ["Hello", " we", "'", "LL", " pay", " ", *"12345", " x", "²", ",", "\n\n ", " ok", "?"],
    "llama-bpe": ["Hello", " we", "'LL", " pay", " ", "123", "45", " x", "²", ",\n\n", " ", " ok", "?"],
    "qwen2": ["Hello", " we", "'LL", " pay", " ", *"12345", " x", "²", ",\n\n", " ", " ok", "?"],
    "tekken": ["Hello", " we", "'LL", " pay", " ", *"12345", " x", "²", ",\n\n", " ", " ok", "?"],
    "gpt-4o": ["Hello", " we'LL", " pay", " ", "123", "45", " x", "²", ",\n\n", " ", " ok", "?"],
    "falcon": ["Hello", " we", "'", "LL", " pay", " ", "123", "45", " x", "²", ",", "\n\n ", " ok", "?"],
    "deepseek-llm": ["Hello", " we", "'", "LL", " pay", " ", "12345", " x", "²", ",", "\n", "\n", " ", " ok", "?"],
    "deepseek-coder": ["Hello", " we", "'", "LL", " pay", " ", *"12345", " x", "²", ",", "\n", "\n", " ", " ok", "?"],
    "deepseek-v3": ["Hello", " we", "'LL", " pay", " ", "123", "45", " x", "²", ",\n\n", " ", " ok", "?"],
    "bloom": ["Hello", " we'LL", " pay", " 12345", " x²", ",\n\n ", " ok", "?"],
    "viking": ["Hello", " we'LL", " pay", " ", *"12345", " x", "²", ",\n\n ", " ok", "?"],
    "superbpe": ["Hello we'LL pay ", "12", "345", " x", "²", ",\n\n  ok?"],
}


@pytest.mark.parametrize("pre", SPLIT_AS)
def test_text_is_split_as_by_llama_cpp(pre: str) -> None:
    assert pieces(pre, TEXT) == SPLIT_AS[pre]


SAME_AS = {
    "gpt-2": ("gpt2", "phi-2", "mpt", "olmo", "jais", "exaone4", "gigachat", "trillion", "roberta-bpe"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "llama-bpe": (
        "llama3",
        "llama-v3",
        "falcon3",
        "pixtral",
        "lfm2",
        "dbrx",
        "smaug-bpe",
        "chatglm-bpe",
        "glm4",
        "glm5",
    ),
    "qwen2": ("stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "grok-2"),
    "gpt-4o": ("llama4", "kanana2", "minimax-m2"),
    "deepseek-v3": ("hunyuan-dense", "joyai-llm"),
    "bloom": ("poro-chat", "gpt3-finnish"),
}


@pytest.mark.parametrize("pre", SAME_AS)
def test_other_names_of_a_split(pre: str) -> None:
    for other in SAME_AS[pre]:
        assert SPLITS[other].patterns == SPLITS[pre].patterns, other


def test_every_split_keeps_every_character() -> None:
    content = (
        TEXT + " Éa éÉ 你好，かな 한국어 привет\tHTTPServer <sentinel:3> e\u0301 \u3000wide 1234567 ½ 😀 //a/ \r\n"
    )
    for pre in SPLITS:
        assert "".join(pieces(pre, content)) == content, pre


def test_words_are_cut_before_capitals_of_every_script() -> None:
    """llama.cpp's engine knows no cases beyond ASCII; the models were made with the published pattern."""
    for pre in ("gpt-4o", "tekken", "kimi-k2", "youtu", "tiny_aya"):
        assert pieces(pre, "HTTPServer éÉcole") == ["HTTPServer", " é", "École"], pre
    assert pieces("kimi-k2", "你好abc") == ["你好", "abc"]


def test_digits_are_grouped_from_the_right() -> None:
    for pre in ("superbpe", "afmoe", "tiny_aya"):
        assert pieces(pre, "1234567") == ["1", "234", "567"], pre


def test_merges_do_not_cross_pieces(make: Made) -> None:
    tokenizer = make(byte_level(262, "gpt-2"))
    assert spelled(tokenizer, tokenizer.encode("abc ab", False)) == ["abc", "Ġab"]
    digits = ["1 2"]
    values = byte_level(263, "gpt-2") | {"tokenizer.ggml.merges": texts(digits)}
    tokens = [v.decode() for v in values["tokenizer.ggml.tokens"].value]
    tokens[262] = "12"
    values["tokenizer.ggml.tokens"] = texts(tokens)
    for pre, want in (("gpt-2", ["12"]), ("phi-2", ["12"]), ("llama3", ["12"]), ("smollm", ["1", "2"])):
        tokenizer = make(values, pre=text(pre), token_type=Value(ARRAY, [1] * 263, I32))
        assert spelled(tokenizer, tokenizer.encode("12", False)) == want, pre


@pytest.mark.parametrize(
    "pre", ["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken"]
)
def test_begin_and_whole_words_by_the_kind_of_split(make: Made, pre: str) -> None:
    """bos where the file does not say, and words that are tokens whatever the merges say."""
    merges = texts(["b c"])  # "abc" is a token, and no merges lead to it
    values = byte_level(262, pre)
    tokens = [*byte_letters(), "bc", "abc", "Ġab", "<|end|>", "<|im_end|>", "<|begin|>"]
    tokenizer = make(values, add_bos_token=None, merges=merges, tokens=texts(tokens))
    assert spelled(tokenizer, tokenizer.encode("abc")) == ["<|begin|>", "abc"]
    assert spelled(make(values, add_bos_token=Value(BOOL, False)), [256]) == ["ab"]
    said = make(values, add_bos_token=Value(BOOL, False), merges=merges, tokens=texts(tokens))
    assert spelled(said, said.encode("abc")) == ["abc"]


@pytest.mark.parametrize("pre", ["qwen2", "smollm", "gpt-4o", "dbrx", "chatglm-bpe", "deepseek-llm", "bloom"])
def test_other_splits_begin_with_nothing(make: Made, pre: str) -> None:
    tokens = [*byte_letters(), "bc", "abc", "Ġab", "<|end|>", "<|im_end|>", "<|begin|>"]
    tokenizer = make(byte_level(262, pre), add_bos_token=None, merges=texts(["b c"]), tokens=texts(tokens))
    assert spelled(tokenizer, tokenizer.encode("abc")) == ["a", "bc"]


def test_an_unknown_split_is_refused_and_a_missing_one_warned_of(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'brand-new'.*tokenizer="):
        make(byte_level(262), pre=text("brand-new"))
    logged: list[str] = []
    monkeypatch.setattr("octavo.loading.gguf_tokenizer.log.warning", lambda message, *a: logged.append(message % a))
    tokenizer = make(byte_level(262), pre=None, add_bos_token=None)
    assert "tokenizer.ggml.pre" in logged[0]
    assert tokenizer.encode("abc") == tokenizer.encode("abc", False)


# Tokens that end answers


@pytest.mark.parametrize(
    "token",
    [
        *(
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<end_of_turn>",
            "<|endoftext|>",
            "<|end_of_text|>",
            "<EOT>",
            "_<EOT>",
        ),
        *("[EOT]", "[EOS]", "</s>", "<eos>", "<|eom_id|>", "<｜end▁of▁sentence｜>", "<end_of_utterance>", "<|return|>"),
        *("<|call|>", "<turn|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
    ],
)
def test_tokens_known_by_their_text_end_answers(read: Callable[..., GGUFFile], token: str) -> None:
    values = byte_level(262)
    tokens = [*byte_letters(), "ab", "abc", "Ġab", "<|stop|>", token, "<|begin|>"]
    file = read(values, tokens=texts(tokens), token_type=Value(ARRAY, [1] * 262, I32))
    assert file.vocabulary is not None
    assert file.vocabulary.ends == {259, 260}
    assert gguf_tokenizer(file).decode([256, 260]) == "ab"  # it is a control token, whatever the file says


def test_tokens_that_the_file_names_end_answers(read: Callable[..., GGUFFile]) -> None:
    values = byte_level(270)
    file = read(values, eot_token_id=whole(264), eom_token_id=whole(265), fim_sep_token_id=whole(266))
    assert file.vocabulary is not None
    assert file.vocabulary.ends == {259, 260, 264, 265, 266}
    assert file.vocabulary.special["eos"] == 259


def test_a_message_of_gpt_oss_goes_on_after_its_end(read: Callable[..., GGUFFile]) -> None:
    tokens = [*byte_letters(), "ab", "abc", "Ġab", "<|end|>", "<|return|>", "<|call|>", "<|start|>"]
    kinds = Value(ARRAY, [1] * 259 + [3] * 4, I32)
    file = read(byte_level(263), tokens=texts(tokens), token_type=kinds, eos_token_id=whole(260), bos_token_id=whole(0))
    assert file.vocabulary is not None
    assert file.vocabulary.ends == {260, 261}
    tokenizer = gguf_tokenizer(file)
    assert tokenizer.decode([262, 256, 259, 260]) == "<|start|>ab<|end|>"


def test_eos_that_the_file_leaves_out(read: Callable[..., GGUFFile]) -> None:
    """sentencepiece's usual ones; token 11 of byte-level ones only where it is a mark, as Falcon's."""
    file = read(sentencepiece(300), eos_token_id=None, bos_token_id=None, unknown_token_id=None)
    assert file.vocabulary is not None
    assert file.vocabulary.special == {"bos": 1, "eos": 2, "unknown": 0}
    plain = read(byte_level(262), eos_token_id=None, bos_token_id=None, add_bos_token=None)
    assert plain.vocabulary is not None
    assert plain.vocabulary.special == {}


# Vocabularies


def test_sentencepiece_with_added_tokens(make: Made) -> None:
    """User-defined and control tokens are found before the split, and a space is put behind them as before a text."""
    values = sentencepiece(300)
    tokens = [v.decode() for v in values["tokenizer.ggml.tokens"].value]
    tokens[-3:] = ["<|im_start|>", "<tag>", "  "]
    kinds = [*values["tokenizer.ggml.token_type"].value[:-3], 3, 4, 4]
    added = {"tokens": texts(tokens), "token_type": Value(ARRAY, kinds, I32)}
    tokenizer = make(values, **added)
    assert spelled(tokenizer, tokenizer.encode("ab<tag>ab")) == ["<s>", "▁ab", "<tag>", "▁ab"]
    assert spelled(tokenizer, tokenizer.encode("<|im_start|>ab  b", False)) == ["<|im_start|>", "▁ab", "  ", "▁", "b"]
    assert spelled(tokenizer, tokenizer.encode("é", False)) == ["▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("ab é<tag>")) == "ab é<tag>"
    bare = make(values, **added, add_space_prefix=Value(BOOL, False), add_bos_token=Value(BOOL, False))
    assert spelled(bare, bare.encode("ab<tag>ab")) == ["ab", "<tag>", "ab"]
    both = make(values, **added, add_eos_token=Value(BOOL, True))
    assert spelled(both, both.encode("ab")) == ["<s>", "▁ab", "</s>"]


def test_phi3_marks_swallow_the_spaces_behind_them(make: Made) -> None:
    values = sentencepiece(300)
    tokens = [v.decode() for v in values["tokenizer.ggml.tokens"].value]
    tokens[-1] = "<|user|>"
    kinds = [*values["tokenizer.ggml.token_type"].value[:-1], 3]
    added = {"tokens": texts(tokens), "token_type": Value(ARRAY, kinds, I32)}
    plain, phi = make(values, **added), make({**values, "general.name": text("Phi-3 mini")}, **added)
    assert spelled(plain, plain.encode("<|user|>\nab", False)) == ["<|user|>", "▁", "<0x0A>", "ab"]
    assert spelled(phi, phi.encode("<|user|>\nab", False)) == ["<|user|>", "▁ab"]


def test_unigrams(make: Made) -> None:
    table = charsmap({"Ａ": "a", "ﬁ": "b", "\t": " "})
    tokenizer = make(unigrams(20, table))
    assert spelled(tokenizer, tokenizer.encode("  ab   Ａb\tﬁ ")) == ["▁ab", "▁ab", "▁", "b", "</s>"]
    assert spelled(tokenizer, tokenizer.encode("a?!c", False)) == ["▁a", "<unk>", "c"]
    assert tokenizer.decode(tokenizer.encode("ab ab")) == "ab ab"
    first, second = tokenizer.encode("ab", False), tokenizer.encode("c", False)
    assert tokenizer.encode_pair("ab", "c") == [*first, 1, *second, 1]
    spaces = make(unigrams(20, table), remove_extra_whitespaces=Value(BOOL, False))
    assert spelled(spaces, spaces.encode(" ab  c", False)) == ["▁", "▁ab", "▁", "▁", "c"]
    bare = make(unigrams(20, table), remove_extra_whitespaces=Value(BOOL, False), add_space_prefix=Value(BOOL, False))
    assert spelled(bare, bare.encode("ab c", False)) == ["ab", "▁", "c"]


def test_glm_takes_words_that_are_tokens_whole(make: Made) -> None:
    tokens = [*byte_letters(), "bc", "abc", "Ġab", "<|end|>", "<|im_end|>", "<|begin|>"]
    tokenizer = make(byte_level(262, "glm4"), add_bos_token=None, merges=texts(["b c"]), tokens=texts(tokens))
    assert spelled(tokenizer, tokenizer.encode("abc")) == ["abc"]


def test_pairs_of_robertas_kind_have_the_separator_twice(make: Made) -> None:
    """As XLM-R's unigrams are converted: bos and eos around texts, and a separator, which is eos as well."""
    marks = {"add_bos_token": Value(BOOL, True), "bos_token_id": whole(0), "seperator_token_id": whole(1)}
    tokenizer = make(unigrams(20, charsmap({"Ａ": "a"})), **marks)
    first, second = tokenizer.encode("ab", False), tokenizer.encode("c", False)
    assert tokenizer.encode("ab") == [0, *first, 1]
    assert tokenizer.encode_pair("ab", "c") == [0, *first, 1, 1, *second, 1]


def test_wordpieces(make: Made) -> None:
    tokenizer = make(wordpieces(20))
    assert tokenizer.encode("ABC, é! abb [SEP]") == [2, 4, 5, 1, 9, 8, 4, 7, 3, 3]
    assert tokenizer.decode([2, 4, 5, 8, 3]) == "abc!"
    assert tokenizer.encode_pair("ab", "a") == [2, 4, 3, 6, 3]
    cased = make(wordpieces(20), **{"normalizer.lowercase": Value(BOOL, False)})
    assert cased.encode("AB é", False) == [1, 1]
    assert make(wordpieces(20), **{"normalizer.strip_accents": Value(BOOL, False)}).encode("é", False) == [1]


def test_chat_templates_by_name(make: Made) -> None:
    values = sentencepiece(300) | {
        "tokenizer.chat_templates": texts(["tool_use", "rag"]),
        "tokenizer.chat_template.tool_use": text("tools"),
    }
    assert make(values).chat_templates == {"default": "{{ messages[0].content }}", "tool_use": "tools"}


# What is refused

WRONG: dict[str, dict[str, Value | None]] = {
    "twice in the vocabulary|in the vocabulary twice": {"tokens": texts(["a"] * 262)},
    "tokens. must be a list of texts": {"tokens": Value(ARRAY, [1.0] * 262, F32)},
    "must be a list of texts": {"tokens": text("a b c")},
    "is not UTF-8": {"tokens": Value(ARRAY, [b"\xff"], 8)},
    r"merges\[0\].*not two tokens": {"merges": texts(["a q b"])},
    r"merges\[0\].*must|not two tokens": {"merges": texts(["ab"])},
    "merges": {"merges": Value(ARRAY, [1, 2], I32)},
    "token_type has 3 values": {"token_type": Value(ARRAY, [1, 1, 1], I32)},
    "token_type must be": {"token_type": Value(ARRAY, [1.0] * 262, F32)},
    "eos_token_id is 262": {"eos_token_id": whole(262)},
    "eos_token_id' must be": {"eos_token_id": text("</s>")},
    "bos_token_id is 4294967295": {"bos_token_id": whole(2**32 - 1)},
    "eot_token_id is 999": {"eot_token_id": whole(999)},
    "add_bos_token' must be true or false": {"add_bos_token": whole(1)},
    "bos_token_id is missing": {"bos_token_id": None},
    "pre' must be a text": {"pre": whole(3)},
}


@pytest.mark.parametrize("message", WRONG)
def test_vocabularies_that_contradict_themselves(make: Made, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        make(byte_level(262), **WRONG[message])
    assert len(str(error.value)) < 400


def test_ids_that_do_not_matter_may_be_beyond_the_vocabulary(make: Made) -> None:
    assert make(byte_level(262), padding_token_id=whole(32000)).encode("ab") == [261, 256]


def test_a_table_of_normalized_texts_that_points_beyond_itself(make: Made) -> None:
    sound = bytearray(charsmap({"Ａ": "A"}))
    for wrong in (b"", bytes(sound[:3]), bytes(sound[:600]), bytes([255] * 4) + bytes(sound[4:])):
        with pytest.raises(CheckpointError, match="precompiled_charsmap"):
            make(unigrams(20, wrong))
    for at in range(4, len(sound), 3):
        broken = bytearray(sound)
        broken[at] ^= 0x94
        try:
            tokenizer = make(unigrams(20, bytes(broken)))
        except CheckpointError:
            continue
        tokenizer.encode("Ａ ab ｂ é")  # it goes nowhere else


def test_scores_that_are_no_numbers(make: Made) -> None:
    with pytest.raises(CheckpointError, match="scores has values that are not numbers"):
        make(sentencepiece(300), scores=Value(ARRAY, [float("nan")] * 300, F32))
    with pytest.raises(CheckpointError, match="scores must be"):
        make(sentencepiece(300), scores=Value(ARRAY, [True] * 300, BOOL))
    with pytest.raises(CheckpointError, match="unknown_token_id"):
        make(sentencepiece(300), unknown_token_id=whole(300))
    with pytest.raises(CheckpointError, match="precompiled_charsmap"):
        make(unigrams(20, b""), precompiled_charsmap=Value(ARRAY, [1.0], F32))
    assert make(unigrams(20, charsmap({"Ａ": "A"})), scores=Value(ARRAY, list(range(20)), U8)).vocab_size == 20
