"""Hostile GGUF files: each is refused with a short CheckpointError, or is a sound model. Never anything else."""

import copy
import math
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from octavo import LLM, SamplingParams
from octavo.errors import CheckpointError
from octavo.loading.gguf_config import shared_config
from octavo.loading.gguf_file import GGUFFile
from octavo.loading.gguf_tokenizer import gguf_tokenizer
from tests.golden import case_named
from tests.loading.gguf_models import write_gguf
from tests.loading.gguf_raw import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I32,
    I64,
    STRING,
    U8,
    U32,
    U64,
    RawGGUF,
    Tensor,
    Value,
    byte_level,
    charsmap,
    sentencepiece,
    take_apart,
    text,
    unigrams,
    whole,
    wordpieces,
)

LONGEST_ERROR = 700
TOKENS = 320

VALUES: dict[str, Value] = {
    "0": whole(0),
    "1": whole(1),
    "319": whole(319),
    "320": whole(320),
    "100,000": whole(100_000),
    "2**32-1": whole(2**32 - 1),
    "2**64-1": Value(U64, 2**64 - 1),
    "-1": Value(I32, -1),
    "-2**63": Value(I64, -(2**63)),
    "not a number": Value(F32, math.nan),
    "infinite": Value(F32, math.inf),
    "0.0": Value(F32, 0.0),
    "-0.5": Value(F32, -0.5),
    "1e308": Value(F64, 1e308),
    "true": Value(BOOL, True),
    "no text": text(""),
    "a word": text("word"),
    "a long word": text("x" * 60_000),
    "not UTF-8": Value(STRING, b"\xff\xfe\x80"),
    "no whole numbers": Value(ARRAY, [], U32),
    "no texts": Value(ARRAY, [], STRING),
    "a long text": Value(ARRAY, [b"y" * 60_000], STRING),
    "texts that are not UTF-8": Value(ARRAY, [b"\xff"] * TOKENS, STRING),
    "numbers that are none": Value(ARRAY, [math.nan] * TOKENS, F32),
    "negative numbers": Value(ARRAY, [-1] * TOKENS, I32),
    "two numbers": Value(ARRAY, [2, 2], I32),
    "huge numbers": Value(ARRAY, [2**64 - 1] * TOKENS, U64),
    "all control": Value(ARRAY, [3] * TOKENS, I32),
    "all user-defined": Value(ARRAY, [4] * TOKENS, I32),
    "truths": Value(ARRAY, [True] * TOKENS, BOOL),
    "the same text": Value(ARRAY, [b"a b"] * TOKENS, STRING),
    "spaces": Value(ARRAY, [b" " * i for i in range(TOKENS)], STRING),
    "other texts": Value(ARRAY, [b"t%d" % i for i in range(TOKENS)], STRING),
    "too many texts": Value(ARRAY, [b"t%d" % i for i in range(1000)], STRING),
    "bytes": Value(ARRAY, bytes(range(256)) * 100, U8, 25_600),
    "a count that lies": Value(ARRAY, [1, 2], U32, 2**63),
    "a count of texts that lies": Value(ARRAY, [b"a"], STRING, 2**60),
    "arrays of arrays": Value(ARRAY, [Value(ARRAY, [], U32)] * 100, ARRAY),
    "an unknown type": Value(ARRAY, b"", 13, 0),
}
BASES: dict[str, tuple[str, Callable[[], dict[str, Value]]]] = {
    "llama": ("LlamaForCausalLM--gqa-tied", lambda: sentencepiece(TOKENS)),
    "llama (Mixtral)": ("MixtralForCausalLM--8x7b", lambda: byte_level(TOKENS)),
    "phi3": ("Phi3ForCausalLM--mini-128k-longrope", lambda: unigrams(TOKENS, charsmap({"Ａ": "A", "\t": " "}))),
    "deepseek2": ("DeepseekV2ForCausalLM--lite", lambda: wordpieces(TOKENS)),
    "jamba": ("JambaForCausalLM--mini", lambda: byte_level(TOKENS, "default")),
}
OPTIONAL = (
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor", "rope.scaling.yarn_log_multiplier"),
    *("rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast", "rope.scale_linear", "expert_count"),
    *("expert_used_count", "attention.clamp_kqv", "rope.dimension_count", "attention.key_length"),
)
OTHERS = (
    *("general.alignment", "split.count", "split.no", "split.tensors.count", "tokenizer.chat_templates"),
    *("tokenizer.ggml.eot_token_id", "tokenizer.ggml.padding_token_id", "tokenizer.ggml.add_eos_token"),
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RawGGUF]:
    made = {}
    for name, (case, tokens) in BASES.items():
        made[name] = take_apart(write_gguf(case_named(case), tmp_path_factory.mktemp("base") / "m.gguf"))
        for key, value in tokens().items():
            made[name].set(key, value)
    return made


def changed(base: RawGGUF, key: str, value: Value | None) -> RawGGUF:
    raw = copy.copy(base)
    raw.pairs = [(k, v) for k, v in base.pairs if k.decode() != key]
    if value is not None:
        raw.set(key, value)
    return raw


def opened_config(path: Path) -> GGUFFile:
    file = GGUFFile(path)
    shared_config(file)
    return file


def opened(path: Path) -> bool:
    """Whether the header, the config and the tokenizer are read; then texts become tokens and come back."""
    refused = ""
    try:
        tokenizer = gguf_tokenizer(opened_config(path))
    except CheckpointError as error:
        refused = str(error)
    assert len(refused) < LONGEST_ERROR
    if refused:
        return False
    for content in ("a abc <w> ab\n", " ", "Ａ é", ""):
        ids = tokenizer.encode(content)
        tokenizer.decode(ids)
    for token in range(TOKENS):
        tokenizer.decode([token], skip_special_tokens=False)
    return True


@pytest.mark.parametrize("name", BASES)
def test_every_value_of_a_header_replaced_by_every_other(name: str, bases: dict[str, RawGGUF], tmp_path: Path) -> None:
    base, path, refused = bases[name], tmp_path / "m.gguf", 0
    arch = next(v.value.decode() for k, v in base.pairs if k == b"general.architecture")
    keys = [k.decode() for k, _ in base.pairs] + [f"{arch}.{key}" for key in OPTIONAL] + list(OTHERS)
    path.write_bytes(base.encoded())
    assert opened(path)
    values = (None, *VALUES.values())
    for number, key in enumerate(dict.fromkeys(keys)):
        # One file meets all values, and the others a third of them, each key another third.
        for value in values if name == "llama" else values[number % 3 :: 3]:
            path.write_bytes(changed(base, key, value).encoded())
            refused += not opened(path)
    assert refused > 200


def answers(path: Path) -> bool:
    """Whether it loads; whatever it answers then, it answers each request."""
    refused = ""
    try:
        llm = LLM(str(path), kv_cache_memory="4MiB", max_model_len=32)
    except CheckpointError as error:
        refused = str(error)
    assert len(refused) < 2 * LONGEST_ERROR
    if refused:
        return False
    if llm.engine.max_model_len > 16:
        outputs = llm.generate(["ab a", " "], SamplingParams(temperature=0, max_tokens=3), use_tqdm=False)
        assert all(o.outputs[0].finish_reason in ("length", "stop", "error") for o in outputs)
    return True


@pytest.mark.parametrize("name", BASES)
def test_random_damage(name: str, bases: dict[str, RawGGUF], tmp_path: Path) -> None:
    """A smaller run of what found no more in 20,000 files of 14 architectures."""
    base, rng, path = bases[name], random.Random(name), tmp_path / "m.gguf"
    sound = base.encoded()
    header, refused = len(sound) - len(base.data), 0
    for _ in range(40):
        data, kind = bytearray(sound), rng.choice(["one", "many", "cut", "insert", "twice"])
        at = rng.randrange(header)
        if kind == "cut":
            del data[rng.randrange(len(data)) :]
        elif kind == "insert":
            data[at:at] = rng.randbytes(rng.choice([1, 8, 32]))
        elif kind == "twice":
            data[at:at] = data[at : at + rng.randrange(200)]
        else:
            for _ in range(1 if kind == "one" else 20):
                at = rng.randrange(header)
                data[at] = rng.choice([0, 1, 255, 127, 128, data[at] ^ 1 << rng.randrange(8)])
        path.write_bytes(data)
        refused += not answers(path)
    assert refused > 10


# Tensors


def test_tensors_that_are_none(bases: dict[str, RawGGUF], tmp_path: Path) -> None:
    """Each with the error that says so."""
    base, path = bases["llama"], tmp_path / "m.gguf"

    def made(change: Callable[[RawGGUF], object]) -> str:
        raw = copy.deepcopy(base)
        change(raw)
        path.write_bytes(raw.encoded())
        with pytest.raises(CheckpointError) as error:
            LLM(str(path), kv_cache_memory="4MiB")
        assert len(str(error.value)) < LONGEST_ERROR
        return str(error.value)

    def first(raw: RawGGUF) -> Tensor:
        return raw.tensors[1]

    assert "it has tensor" in made(lambda r: r.tensors.append(copy.copy(first(r))))
    assert "lies over another" in made(lambda r: setattr(first(r), "offset", r.tensors[2].offset))
    assert "reaches beyond its end" in made(lambda r: setattr(first(r), "offset", 2**62))
    assert "has 36000 bytes" in made(lambda r: setattr(first(r), "name", b"n" * 36_000))
    assert "is not UTF-8" in made(lambda r: setattr(first(r), "name", b"\xff\xff"))
    assert "has the unknown type 77" in made(lambda r: setattr(first(r), "kind", 77))
    assert "has 9 dimensions" in made(lambda r: setattr(first(r), "dims", [1] * 9))
    assert "impossible shape" in made(lambda r: setattr(first(r), "dims", [2**63, 2**63]))
    assert "impossible shape" in made(lambda r: setattr(first(r), "dims", [0, 4]))
    assert "claims 99999 tensors" in made(lambda r: r.counts.update(tensors=99_999))
    assert "claims 20 tensors and 9223372036854775808" in made(lambda r: r.counts.update(pairs=2**63, tensors=20))
    assert "is a text of" in made(lambda r: r.set("tokenizer.chat_template", text("x" * (2 << 20))))
    assert "'general.name' twice" in made(lambda r: r.pairs.extend([(b"general.name", text("a"))] * 2))
    assert "has the tensors of" in made(lambda r: r.set("llama.block_count", whole(900)))
    many = [Tensor(b"x%d" % i, [8], 0, len(base.data) + 32 * i) for i in range(20_000)]
    assert "more than any model has" in made(lambda r: r.tensors.extend(many))


def test_experts_that_are_not_there(bases: dict[str, RawGGUF], tmp_path: Path) -> None:
    for name, value, message in (
        ("llama", 100_000, "must be in 0 to 1024"),
        ("llama", 8, "no tensors of experts"),
        ("llama (Mixtral)", 1000, "expert_count is 1000, and tensor blk"),
        ("llama (Mixtral)", 0, "expert_count is 0, and tensor blk"),
    ):
        path = tmp_path / "m.gguf"
        path.write_bytes(changed(bases[name], "llama.expert_count", whole(value)).encoded())
        with pytest.raises(CheckpointError, match=message):
            LLM(str(path))
    path.write_bytes(changed(bases["llama (Mixtral)"], "llama.expert_used_count", whole(99)).encoded())
    with pytest.raises(CheckpointError, match="expert_used_count is 99 of"):
        LLM(str(path))


# Giants: files with holes, whose arrays are much longer than what is on the disk

GIANTS: dict[str, tuple[str, Value, int, str | None]] = {
    "five million empty texts": ("general.tags", Value(ARRAY, b"", STRING, 5_000_000), 40_000_000, "texts"),
    "five million empty arrays": ("general.tags", Value(ARRAY, b"", ARRAY, 5_000_000), 60_000_000, "array of type 9"),
    "400 MB that nobody reads": ("general.tags", Value(ARRAY, b"", U8, 400_000_000), 400_000_000, None),
    "400 MB of scores": ("tokenizer.ggml.scores", Value(ARRAY, b"", F32, 100_000_000), 400_000_000, "100000000 values"),
    "400 MB of kinds": ("tokenizer.ggml.token_type", Value(ARRAY, b"", I32, 100_000_000), 400_000_000, "values"),
    "16 MB for a flag": ("tokenizer.ggml.add_bos_token", Value(ARRAY, b"", U8, 16_000_000), 16_000_000, "an array of"),
    "heads": ("llama.attention.head_count_kv", Value(ARRAY, b"", U32, 4_000_000), 16_000_000, "an array of"),
    "too many tokens": ("tokenizer.ggml.tokens", Value(ARRAY, b"", STRING, 100_000), 800_000, "100000 texts"),
    "too many templates": ("tokenizer.chat_templates", Value(ARRAY, b"", STRING, 100_000), 800_000, "texts"),
}


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("name", GIANTS)
def test_giant_arrays_cost_no_memory(name: str, bases: dict[str, RawGGUF], tmp_path: Path) -> None:
    key, value, hole, message = GIANTS[name]
    data = changed(bases["llama"], key, value).encoded()
    at = data.index(key.encode()) + len(key) + 4 + 12
    path = tmp_path / "m.gguf"
    with open(path, "wb") as file:
        file.write(data[:at])
        file.seek(hole, 1)
        file.write(data[at:])
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    if message is None:
        assert opened(path)
    else:
        with pytest.raises(CheckpointError, match=message):
            gguf_tokenizer(opened_config(path))
    assert tracemalloc.get_traced_memory()[1] - before < 8 << 20
