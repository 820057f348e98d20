"""Log-probabilities over HTTP: every token has its own entry, and all entries together are the text."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.params import SamplingParams
from octavo.text.detokenizer import TextStream
from octavo.text.token_text import token_spans, token_texts
from octavo.text.tokenizer import FastTokenizer
from tests.server.running import Running
from tests.server.scripted import TEMPLATE, byte_tokenizer, chat, complete

TEXTS = ["Hello, world! It's 2024.", "naïve café – 你好 🙂", " a  b\n\tc ", "é", "🙂🙂", "a a"]


def spelled(text: str) -> str:
    """As byte-level vocabularies write it."""
    from tokenizers import pre_tokenizers

    return "".join(piece for piece, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text))


def byte_level() -> FastTokenizer:
    """Merges that join a space to half of a character, and half of a character to whole ones."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)}
    merges = []
    for text in (" a", "He", "He", "lo", " é", "你", "a "):
        left, right = spelled(text)[0], spelled(text)[1]
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append((left, right))
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|end|>"])
    inner.add_tokens([AddedToken("<tool>", normalized=False)])
    return FastTokenizer(inner, {"eos_token": "<|end|>"}, {"default": TEMPLATE})


def sentencepiece() -> FastTokenizer:
    """As Llama's: spaces are `▁`, one goes before the text, and what has no token is written in bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a", "Hello", "▁Hello"]
    pieces += [c for c in "Helo,wrd!It's204." if c not in pieces]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    inner = Tokenizer(
        models.BPE(vocab=vocab, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", vocab["<s>"])]
    )
    return FastTokenizer(inner, {"bos_token": "<s>", "eos_token": "</s>"}, {"default": TEMPLATE})


def metaspace() -> FastTokenizer:
    """As T5's: a vocabulary of unigrams with the decoder Metaspace."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = ["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "▁a", "a", "▁Hello"]
    pieces += [c for c in "Helo,wrd!It's204.b" if c not in pieces]
    inner = Tokenizer(models.Unigram([(p, -float(i)) for i, p in enumerate(pieces)], unk_id=0, byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    inner.add_special_tokens(["<unk>", "</s>"])
    return FastTokenizer(inner, {"eos_token": "</s>"}, {"default": TEMPLATE})


def wordpiece() -> FastTokenizer:
    """As BERT's: lower case, words that begin with a space, `##` in the midst of them."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    pieces = ["[UNK]", "[CLS]", "[SEP]", "hello", "world", "##ly", "a", "b", ",", "!", "##s", "it", "'", "."]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    inner = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.add_special_tokens(["[UNK]", "[CLS]", "[SEP]"])
    inner.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return FastTokenizer(inner, {}, {"default": TEMPLATE})


class WithoutOffsets:
    """A tokenizer that does not tell which token has which characters, as those in Python do not."""

    def __init__(self, tokenizer: FastTokenizer) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self._tokenizer, name)


def in_python() -> Any:
    """Bytes, and a tokenizer that does not say so."""
    return WithoutOffsets(byte_level())


KINDS = [in_python, byte_tokenizer, byte_level, sentencepiece, metaspace, wordpiece]
MADE = {kind: kind() for kind in KINDS}
kinds = pytest.mark.parametrize("kind", KINDS)


def joined(entries: Sequence[dict[str, Any]]) -> tuple[str, bytes]:
    return "".join(e["token"] for e in entries), b"".join(bytes(e["bytes"]) for e in entries)


def check_places(choice: dict[str, Any], num_tokens: int, count: int) -> None:
    """What holds of every completion's log-probabilities."""
    text, found = choice["text"], choice["logprobs"]
    assert len(found["tokens"]) == num_tokens
    assert "".join(found["tokens"]) == text
    at = 0
    for token, offset, own, top in zip(
        found["tokens"], found["text_offset"], found["token_logprobs"], found["top_logprobs"], strict=True
    ):
        assert offset == at
        assert text[offset : offset + len(token)] == token
        at += len(token)
        if top is None:
            assert own is None
        else:
            assert top[token] == own
            assert len(top) == count + 1  # the likeliest and, here, the chosen one beside them


@kinds
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("count", [0, 1, 5])
def test_tokens_are_the_text(kind: Callable[[], FastTokenizer], text: str, count: int) -> None:
    tokenizer = MADE[kind]
    ids = tokenizer.encode(text)
    others = [t for t in range(40, 60) if t not in ids] if tokenizer.vocab_size > 100 else []
    others = others or [t for t in range(tokenizer.vocab_size) if t not in ids]
    whole, streamed = complete(tokenizer, ids, {"prompt": "Hello a", "logprobs": count}, others=others)
    assert whole == streamed
    assert whole["text"].strip() == tokenizer.decode(ids).strip()
    count = min(count, len(others))
    check_places(whole, len(ids), count)
    answers = chat(tokenizer, [ids], {"logprobs": True, "top_logprobs": count}, finish="length", others=others)
    for said in answers:
        (answer,) = said
        assert answer.logprobs is not None
        assert joined(answer.logprobs) == (answer.content, answer.content.encode())
        assert answer.content.strip() == tokenizer.decode(ids).strip()
        for entry in answer.logprobs:
            top = entry["top_logprobs"]
            assert len(top) == (count + 1 if count else 0)
            own = {k: v for k, v in entry.items() if k != "top_logprobs"}
            assert not count or own in top
    assert answers[0][0].logprobs == answers[1][0].logprobs


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(KINDS), st.booleans(), st.sampled_from(["length", "stop"]))
def test_any_tokens_are_the_text(
    data: st.DataObject, kind: Callable[[], FastTokenizer], skip: bool, finish: str
) -> None:
    """Of any tokens, broken characters and special ones among them, with stop strings anywhere."""
    tokenizer = MADE[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), min_size=1, max_size=12))
    plain = tokenizer.decode(ids, skip)
    begin = data.draw(st.integers(0, max(0, len(plain) - 1)))
    stop = plain[begin : begin + data.draw(st.integers(1, 3))]
    body: dict[str, Any] = {"prompt": "Hello", "logprobs": 2, "skip_special_tokens": skip}
    if stop and data.draw(st.booleans()):
        body |= {"stop": [stop], "include_stop_str_in_output": data.draw(st.booleans())}
    whole, streamed = complete(tokenizer, ids, body, finish=finish, others=range(tokenizer.vocab_size))
    assert whole == streamed
    check_places(whole, len(whole["logprobs"]["tokens"]), 2)
    messages = {k: v for k, v in body.items() if k not in ("prompt", "logprobs")} | {"logprobs": True}
    for (answer,) in chat(tokenizer, [ids], messages, finish=finish):
        assert answer.logprobs is not None
        text, data_ = joined(answer.logprobs)
        assert text == answer.content
        if "\ufffd" not in text:
            assert data_.decode() == text
        elif kind in (byte_tokenizer, byte_level) and "stop" not in body:
            assert data_.decode("utf-8", "replace") == text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([0x41, 0x20, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xC3, 0xA9, 0xED, 0xFF])))
def test_a_stream_of_bytes_is_what_they_are_at_once(data: list[int]) -> None:
    tokenizer = MADE[byte_tokenizer]
    by_byte = {token_texts(tokenizer).own(t).data: t for t in range(256)}
    ids = [by_byte[bytes([b])] for b in data]
    stream = TextStream(tokenizer, [], SamplingParams())
    text = ""
    for token in ids:
        stream.add(token)
        text += stream.take(False)
    text += stream.take(True)
    assert text == tokenizer.decode(ids) == bytes(data).decode("utf-8", "replace")


def test_bytes_are_the_tokens_own() -> None:
    for kind, count in ((byte_level, 3), (sentencepiece, 3)):
        tokenizer = MADE[kind]
        euro = [t for t in tokenizer.encode("€", add_special_tokens=False) if token_texts(tokenizer).own(t).text != " "]
        assert len(euro) == count
        hello = tokenizer.encode("Hello")[-1:]
        (said,), (streamed,) = chat(tokenizer, [[*hello, *euro]], {"logprobs": True}, finish="length")
        assert said.logprobs == streamed.logprobs
        assert said.logprobs is not None
        assert [e["bytes"] for e in said.logprobs[-3:]] == [[0xE2], [0x82], [0xAC]]
        assert [e["token"] for e in said.logprobs[-3:]] == ["", "", "€"]
        # Parts of characters that were not chosen are told apart by their bytes.
        (other,), _ = chat(tokenizer, [hello], {"logprobs": True, "top_logprobs": 3}, finish="length", others=euro)
        assert other.logprobs is not None
        names = {e["token"]: e["bytes"] for e in other.logprobs[0]["top_logprobs"] if e["token"].startswith("\\x")}
        assert names == {"\\xe2": [0xE2], "\\x82": [0x82], "\\xac": [0xAC]}


def test_tokens_of_one_text_keep_their_entries() -> None:
    tokenizer = MADE[sentencepiece]
    ids = {piece: tokenizer.inner.token_to_id(piece) for piece in ("▁a", "a", "▁Hello", "Hello", "b", "<0x61>")}
    others = [ids["▁a"], ids["a"], ids["<0x61>"]]
    body = {"prompt": "Hello", "logprobs": 3}
    whole, _ = complete(tokenizer, [ids["b"]], body, others=others)
    assert whole["logprobs"]["top_logprobs"] == [{"b": -1.25, " a": -0.5, "a": -1.0, f"token_id:{ids['<0x61>']}": -1.5}]
    # The chosen one keeps its name, whatever is likelier.
    whole, _ = complete(tokenizer, [ids["<0x61>"]], body, others=[ids["a"], ids["▁a"]])
    assert whole["logprobs"]["top_logprobs"] == [{"a": -1.25, f"token_id:{ids['a']}": -0.5, " a": -1.0}]
    by_id, _ = complete(tokenizer, [ids["b"]], {**body, "return_tokens_as_token_ids": True}, others=others)
    assert by_id["logprobs"]["tokens"] == [f"token_id:{ids['b']}"]
    assert set(by_id["logprobs"]["top_logprobs"][0]) == {f"token_id:{i}" for i in (ids["b"], *others)}


@pytest.mark.parametrize(("include", "text"), [(False, "Hel"), (True, "Hello wo")])
def test_a_stop_string_in_the_midst_of_tokens(include: bool, text: str) -> None:
    tokenizer = MADE[byte_level]
    ids = tokenizer.encode("Hello world")
    body = {"prompt": "x", "logprobs": 1, "stop": ["lo wo"], "include_stop_str_in_output": include}
    whole, streamed = complete(tokenizer, ids, body, others=[0, 1, 2])
    assert whole == streamed
    assert (whole["text"], whole["finish_reason"], whole["stop_reason"]) == (text, "stop", "lo wo")
    check_places(whole, len(tokenizer.encode("Hello wo")), 1)


@kinds
@pytest.mark.parametrize("text", ["Hello world", "  a é\n", "it's 🙂 a", "<s>Hello</s> a", "[CLS] HELLO<|end|>b"])
def test_echo(kind: Callable[[], FastTokenizer], text: str) -> None:
    """The prompt's tokens are the prompt's text as it was sent, special tokens in it or around it."""
    tokenizer = MADE[kind]
    ids = tokenizer.encode(text)
    answer = tokenizer.encode("a b", add_special_tokens=False)
    others = range(tokenizer.vocab_size)
    body: dict[str, Any] = {"prompt": text, "echo": True, "logprobs": 2}
    whole, streamed = complete(tokenizer, answer, body, others=others)
    assert whole == streamed
    assert whole["text"].startswith(text)
    assert "".join(whole["logprobs"]["tokens"][: len(ids)]) == text
    assert whole["logprobs"]["top_logprobs"][0] is None
    check_places(whole, len(ids) + len(answer), 2)
    only, streamed = complete(tokenizer, answer, {**body, "max_tokens": 0}, others=others)
    assert only == streamed
    assert only["text"] == text
    check_places(only, len(ids), 2)
    whole, streamed = complete(tokenizer, answer, {**body, "prompt": ids}, others=others)
    assert whole == streamed
    assert whole["text"].strip().startswith(tokenizer.decode(ids).strip())
    check_places(whole, len(ids) + len(answer), 2)
    whole, streamed = complete(tokenizer, answer, {**body, "truncate_prompt_tokens": 2}, others=others)
    assert whole == streamed
    check_places(whole, 2 + len(answer), 2)


@kinds
@pytest.mark.parametrize("text", ["Hello world", "  a é\n", "it's 🙂 a", "[CLS] HELLO<|end|>b"])
def test_echo_without_offsets(kind: Callable[[], FastTokenizer], text: str) -> None:
    tokenizer: Any = WithoutOffsets(MADE[kind])
    assert token_spans(tokenizer, text, tokenizer.encode(text)) is None
    answer = tokenizer.encode("a b", add_special_tokens=False)
    body: dict[str, Any] = {"prompt": text, "echo": True, "logprobs": 2}
    others = range(tokenizer.vocab_size)
    whole, streamed = complete(tokenizer, answer, body, others=others)
    assert whole == streamed
    assert whole["text"].startswith(text)
    check_places(whole, len(tokenizer.encode(text)) + len(answer), 2)
    whole, streamed = complete(tokenizer, answer, {**body, "truncate_prompt_tokens": 2}, others=others)
    assert whole == streamed
    check_places(whole, 2 + len(answer), 2)


def test_token_ids_alone() -> None:
    """A server without a tokenizer has no text, and names tokens by their ids."""
    body = {"prompt": [5, 6], "echo": True, "logprobs": 1}
    whole, streamed = complete(None, [7, 8], body, others=[9])
    assert whole == streamed
    assert (whole["text"], whole["logprobs"]["text_offset"]) == ("", [0, 0, 0, 0])
    assert whole["logprobs"]["tokens"] == ["token_id:5", "token_id:6", "token_id:7", "token_id:8"]
    assert whole["logprobs"]["top_logprobs"][1:] == [{f"token_id:{i}": -1.25, "token_id:9": -0.5} for i in (6, 7, 8)]


def test_minus_infinity_is_a_number_in_json() -> None:
    from octavo.outputs import Logprob
    from octavo.server.logprobs import LogprobsWriter, TokenEntry
    from octavo.text.token_text import TokenText

    entry = TokenEntry(65, TokenText("a", b"a"), {65: Logprob(float("-inf"), 2), 66: Logprob(-0.5, 1)})
    writer = LogprobsWriter(MADE[byte_tokenizer], as_ids=False)
    completion, _ = writer.completion([entry], 0)
    assert completion["token_logprobs"] == [-9999.0]
    assert writer.chat([entry], 1)["content"][0]["logprob"] == -9999.0
    assert entry.logprobs is not None
    assert writer.prompt([None, entry.logprobs])[1]["65"]["logprob"] == -9999.0  # type: ignore[index]


def test_characters_of_several_tokens_in_a_prompt() -> None:
    tokenizer = MADE[byte_level]
    ids = tokenizer.encode("a € b")
    spans = token_spans(tokenizer, "a € b", ids)
    assert spans is not None
    assert ["a € b"[a:b] for a, b in spans] == ["a", " ", "", "", "€", " ", "b"][-len(ids) :] or len(ids) < 7
    assert "".join("a € b"[a:b] for a, b in spans) == "a € b"
    assert [b - a for a, b in spans if "€" in "a € b"[a:b]] == [1]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(KINDS), st.text(max_size=12))
def test_a_prompts_spans_are_all_of_it(kind: Callable[[], FastTokenizer], text: str) -> None:
    tokenizer = MADE[kind]
    ids = tokenizer.encode(text)
    if ids:
        spans = token_spans(tokenizer, text, ids)
        assert (spans is None) == (kind is in_python)
        assert spans is None or "".join(text[a:b] for a, b in spans) == text


def test_prompt_logprobs_of_chats_and_completions() -> None:
    tokenizer = MADE[sentencepiece]
    ids = tokenizer.encode("Hello a")
    body = {"prompt": "Hello a", "prompt_logprobs": 1}
    whole, streamed = complete(tokenizer, ids, body, others=[tokenizer.inner.token_to_id("▁a")])
    assert whole == streamed
    assert whole["prompt_logprobs"][0] is None
    assert len(whole["prompt_logprobs"]) == len(ids)
    assert whole["prompt_logprobs"][1][str(ids[1])]["logprob"] == -1.25
    assert {e["decoded_token"] for place in whole["prompt_logprobs"][1:] for e in place.values()} >= {" a"}


@pytest.mark.parametrize("stream", [False, True])
def test_the_served_model(smollm_server: Running, stream: bool) -> None:
    body = {
        "prompt": "naïve café 🙂🙂 你好",
        "max_tokens": 24,
        "temperature": 1.5,
        "seed": 3,
        "logprobs": 0,
        "echo": True,
    }
    for count in (0, 1, 3):
        answer = smollm_server.post("/v1/completions", {**body, "logprobs": count, "stream": stream})
        text, found = completion_of(answer, stream)
        assert "".join(found["tokens"]) == text
        assert text.startswith(body["prompt"])
        for token, own, top, offset in zip(*(found[k] for k in KEYS), strict=True):
            assert text[offset : offset + len(token)] == token
            assert top is None or (top[token] == own and count <= len(top) <= count + 1)
        assert not count or any(top is not None and len(top) == count + 1 for top in found["top_logprobs"])
    messages = [{"role": "user", "content": "Write three emojis and the word café."}]
    asked = {"messages": messages, "max_tokens": 40, "temperature": 1.3, "seed": 1, "logprobs": True, "top_logprobs": 2}
    content = smollm_server.post("/v1/chat/completions", asked).json()["choices"][0]
    text, data = joined(content["logprobs"]["content"])
    assert text == content["message"]["content"]
    assert data.decode("utf-8", "replace") == text  # the answer may end within a character
    for entry in content["logprobs"]["content"]:
        own = {k: v for k, v in entry.items() if k != "top_logprobs"}
        assert own in entry["top_logprobs"]
    about = smollm_server.post("/v1/chat/completions", {**asked, "prompt_logprobs": 1}).json()["prompt_logprobs"]
    assert about[0] is None
    assert len(about) > 10


KEYS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def completion_of(answer: httpx.Response, stream: bool) -> tuple[str, dict[str, list[Any]]]:
    assert answer.status_code == 200, answer.text
    if not stream:
        choice = answer.json()["choices"][0]
        return choice["text"], choice["logprobs"]
    text, found = "", {k: list[Any]() for k in KEYS}
    for line in answer.text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                text += choice["text"]
                for key in KEYS:
                    found[key] += choice["logprobs"][key]
    return text, found
