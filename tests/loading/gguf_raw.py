"""GGUF files taken apart into their values, changed, and written again, sound or not."""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}


@dataclass
class Value:
    """A value of a header: of `kind`, or an array of `item`. Texts are bytes. `count` may lie."""

    kind: int
    value: Any
    item: int = 0
    count: int | None = None

    def encoded(self) -> bytes:
        if self.kind != ARRAY:
            return _one(self.kind, self.value)
        count = len(self.value) if self.count is None else self.count
        if isinstance(self.value, bytes):  # the items as they are in the file
            items = self.value
        elif self.item in CODES:
            items = struct.pack(f"<{len(self.value)}{CODES[self.item]}", *self.value)
        else:
            items = b"".join(_one(self.item, v) for v in self.value)
        return struct.pack("<IQ", self.item, count) + items


def _one(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return struct.pack("<Q", len(value)) + bytes(value)
    if kind == ARRAY:
        encoded: bytes = value.encoded()
        return encoded
    return struct.pack("<" + CODES[kind], value)


@dataclass
class Tensor:
    name: bytes
    dims: list[int]
    kind: int
    offset: int


@dataclass
class RawGGUF:
    """A file's values and tensors, in order. `pairs` and `tensors` may hold one name twice."""

    pairs: list[tuple[bytes, Value]]
    tensors: list[Tensor]
    data: bytes
    version: int = 3
    counts: dict[str, int] = field(default_factory=dict)
    """`tensors` or `pairs`, where the header is to lie about them."""

    def encoded(self) -> bytes:
        head = b"GGUF" + struct.pack("<I", self.version)
        head += struct.pack("<Q", self.counts.get("tensors", len(self.tensors)))
        head += struct.pack("<Q", self.counts.get("pairs", len(self.pairs)))
        parts = [head]
        for key, value in self.pairs:
            parts += [_one(STRING, key), struct.pack("<I", value.kind), value.encoded()]
        for t in self.tensors:
            dims = struct.pack(f"<I{len(t.dims)}Q", len(t.dims), *t.dims)
            parts += [_one(STRING, t.name), dims, struct.pack("<IQ", t.kind, t.offset)]
        header = b"".join(parts)
        return header + b"\0" * (-len(header) % 32) + self.data

    def set(self, key: str, value: Value) -> None:
        """Replace the value of `key`, or add it."""
        name = key.encode()
        kept = [(k, v) for k, v in self.pairs if k != name]
        self.pairs = [*kept, (name, value)]


def take_apart(path: Path) -> RawGGUF:
    """A sound file's values."""
    data, at = path.read_bytes(), 24

    def scalar(code: str) -> Any:
        nonlocal at
        at += struct.calcsize("<" + code)
        return struct.unpack_from("<" + code, data, at - struct.calcsize("<" + code))[0]

    def string() -> bytes:
        nonlocal at
        length = scalar("Q")
        at += length
        return data[at - length : at]

    def value(kind: int) -> Value:
        if kind != ARRAY:
            return Value(kind, string() if kind == STRING else scalar(CODES[kind]))
        item, count = scalar("I"), scalar("Q")
        return Value(kind, [string() if item == STRING else scalar(CODES[item]) for _ in range(count)], item)

    version, tensor_count, pair_count = struct.unpack_from("<IQQ", data, 4)
    pairs = [(string(), value(scalar("I"))) for _ in range(pair_count)]
    tensors = []
    for _ in range(tensor_count):
        name, dims = string(), [0] * scalar("I")
        tensors.append(Tensor(name, [scalar("Q") for _ in dims], scalar("I"), scalar("Q")))
    start = -(-at // 32) * 32
    return RawGGUF(pairs, tensors, data[start:], version)


def text(value: str) -> Value:
    return Value(STRING, value.encode())


def texts(values: list[str]) -> Value:
    return Value(ARRAY, [v.encode() for v in values], STRING)


def whole(value: int) -> Value:
    return Value(U32, value)


def sentencepiece(size: int) -> dict[str, Value]:
    """A tokenizer of llama.cpp's kind `llama` with `size` tokens, at least 300."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]
    pieces += [f"▁w{i}" for i in range(size - len(pieces))]
    types = [2, 3, 3] + [6] * 256 + [1] * (size - 259)
    return {
        "tokenizer.ggml.model": text("llama"),
        "tokenizer.ggml.tokens": texts(pieces),
        "tokenizer.ggml.token_type": Value(ARRAY, types, I32),
        "tokenizer.ggml.scores": Value(ARRAY, [-float(i) for i in range(size)], F32),
        "tokenizer.ggml.bos_token_id": whole(1),
        "tokenizer.ggml.eos_token_id": whole(2),
        "tokenizer.ggml.unknown_token_id": whole(0),
        "tokenizer.ggml.add_space_prefix": Value(BOOL, True),
        "tokenizer.chat_template": text("{{ messages[0].content }}"),
    }


def byte_letters() -> list[str]:
    """GPT-2's letters for bytes, in the order of bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def byte_level(size: int, pre: str = "llama-bpe") -> dict[str, Value]:
    """A tokenizer of llama.cpp's kind `gpt2` with `size` tokens, at least 262."""
    tokens = [*byte_letters(), "ab", "abc", "Ġab", "<|end|>", "<|im_end|>", "<|begin|>"]
    tokens += [f"<|reserved{i}|>" for i in range(size - len(tokens))]
    return {
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.pre": text(pre),
        "tokenizer.ggml.tokens": texts(tokens),
        "tokenizer.ggml.token_type": Value(ARRAY, [1] * 259 + [3] * (size - 259), I32),
        "tokenizer.ggml.merges": texts(["a b", "ab c", "Ġ ab"]),
        "tokenizer.ggml.bos_token_id": whole(261),
        "tokenizer.ggml.eos_token_id": whole(259),
        "tokenizer.ggml.add_bos_token": Value(BOOL, True),
    }


def unigrams(size: int, charsmap: bytes) -> dict[str, Value]:
    """A tokenizer of llama.cpp's kind `t5` with `size` tokens, at least 20."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", "a", "b", "▁a", "ab", "▁ab", "c"]
    pieces += [f"▁w{i}" for i in range(size - len(pieces))]
    return {
        "tokenizer.ggml.model": text("t5"),
        "tokenizer.ggml.tokens": texts(pieces),
        "tokenizer.ggml.token_type": Value(ARRAY, [3, 3, 2] + [1] * (size - 3), I32),
        "tokenizer.ggml.scores": Value(ARRAY, [0.0] * 3 + [-float(i) for i in range(3, size)], F32),
        "tokenizer.ggml.precompiled_charsmap": Value(ARRAY, list(charsmap), U8),
        "tokenizer.ggml.add_space_prefix": Value(BOOL, True),
        "tokenizer.ggml.remove_extra_whitespaces": Value(BOOL, True),
    }


def wordpieces(size: int) -> dict[str, Value]:
    """A tokenizer of llama.cpp's kind `bert` with `size` tokens, at least 20."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁ab", "c", "▁a", "b", "▁!", "▁e"]
    pieces += [f"▁w{i}" for i in range(size - len(pieces))]
    ids = {"bos": 2, "unknown": 1, "seperator": 3, "padding": 0, "eos": 3}
    return {
        "tokenizer.ggml.model": text("bert"),
        "tokenizer.ggml.tokens": texts(pieces),
        "tokenizer.ggml.token_type": Value(ARRAY, [3] * 4 + [1] * (size - 4), I32),
        **{f"tokenizer.ggml.{name}_token_id": whole(i) for name, i in ids.items()},
    }


def charsmap(replacements: dict[str, str]) -> bytes:
    """sentencepiece's table of normalized texts: a double array in which each node has a block of 256 units."""
    texts_at, blob = {}, b""
    for source, target in replacements.items():
        texts_at[source.encode()] = len(blob)
        blob += target.encode() + b"\0"
    prefixes = sorted({key[:n] for key in texts_at for n in range(len(key) + 1)})
    block = {prefix: 256 * (i + 1) for i, prefix in enumerate(prefixes)}
    units = [0] * (256 * (len(prefixes) + 1))
    units[0] = block[b""] << 10
    for prefix in prefixes[1:]:
        at = block[prefix[:-1]] ^ prefix[-1]
        leaf = prefix in texts_at
        units[at] = prefix[-1] | leaf << 8 | (at ^ block[prefix]) << 10
        if leaf:
            units[block[prefix]] = texts_at[prefix] | 1 << 31
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + blob
