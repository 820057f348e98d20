"""From a GGUF's metadata to the config: rope's keys, what old files leave out, and tokens that end answers.

llama.cpp's own library gave the same log-probabilities for these keys (to 0.003, its cache is float16), except for
YaRN's betas and attention_factor: its converter copies them from config.json, and its Llamas do not read them. The
published model does.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.loading.gguf_config import shared_config
from octavo.loading.gguf_file import GGUFFile
from tests.golden import case_named, write_model
from tests.loading.gguf_models import write_gguf
from tests.loading.gguf_raw import F32, RawGGUF, Tensor, Value, byte_level, sentencepiece, take_apart, text, whole

CASE = "LlamaForCausalLM--gqa-tied"


def number(value: float) -> Value:
    return Value(F32, value)


def raw(tmp_path: Path, case: str = CASE) -> RawGGUF:
    return take_apart(write_gguf(case_named(case), tmp_path / "sound.gguf"))


def written(made: RawGGUF, tmp_path: Path) -> Path:
    path = tmp_path / "changed.gguf"
    path.write_bytes(made.encoded())
    return path


def with_keys(tmp_path: Path, keys: dict[str, Value | None], case: str = CASE) -> Path:
    made = raw(tmp_path, case)
    for key, value in keys.items():
        made.pairs = [(k, v) for k, v in made.pairs if k.decode() != key]
        if value is not None:
            made.set(key, value)
    return written(made, tmp_path)


def add_tensor(made: RawGGUF, name: str, values: list[float]) -> None:
    made.tensors.append(Tensor(name.encode(), [len(values)], 0, len(made.data)))
    data = np.array(values, np.float32).tobytes()
    made.data += data + b"\0" * (-len(data) % 32)


def logprobs(path: Path, **options: Any) -> list[float]:
    """Of the answer to a golden prompt."""
    prompt = {"prompt_token_ids": case_named(CASE)["cases"][-1]["prompt_token_ids"]}
    llm = LLM(str(path), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="4MiB", **options)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
    answer = llm.generate([prompt], params, use_tqdm=False)[0].outputs[0]
    return [step[token].logprob for step, token in zip(answer.logprobs, answer.token_ids, strict=True)]


R = "llama.rope."
YARN = {R + "scaling.type": text("yarn"), R + "scaling.factor": number(4.0)}
ORIGINAL = {R + "scaling.original_context_length": whole(64)}
SCALINGS: dict[str, tuple[dict[str, Value], dict[str, Any] | None]] = {
    "before 2024": ({R + "scale_linear": number(4.0)}, {"rope_type": "linear", "factor": 4.0}),
    "no type is linear": ({R + "scaling.factor": number(4.0)}, {"rope_type": "linear", "factor": 4.0}),
    "none": ({R + "scaling.type": text("none"), R + "scaling.factor": number(4.0)}, None),
    "0 is none": ({R + "scaling.factor": number(0.0)}, None),
    "linear": (
        {R + "scaling.type": text("linear"), R + "scaling.factor": number(2.0), R + "scale_linear": number(8.0)},
        {"rope_type": "linear", "factor": 2.0},
    ),
    "yarn": (YARN | ORIGINAL, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
    "yarn of the context": (YARN, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}),
    "yarn's betas": (
        YARN | ORIGINAL | {R + "scaling.yarn_beta_fast": number(16.0), R + "scaling.yarn_beta_slow": number(2.0)},
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
        },
    ),
    "yarn's magnitude": (
        YARN | ORIGINAL | {R + "scaling.attn_factor": number(0.5)},
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "attention_factor": 0.5 * (0.1 * math.log(4) + 1),
        },
    ),
    "DeepSeek's multiplier": (
        YARN | ORIGINAL | {R + "scaling.yarn_log_multiplier": number(0.5)},
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "yarn's attention_factor": (
        YARN | ORIGINAL | {R + "scaling.yarn_attn_factor": number(0.5)},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 0.5},
    ),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_rope_scaling(name: str, tmp_path: Path) -> None:
    keys, want = SCALINGS[name]
    path = with_keys(tmp_path, keys)
    assert shared_config(GGUFFile(path)).get("rope_scaling") == want
    folder = write_model(case_named(CASE), tmp_path / "folder")
    published = logprobs(folder, hf_overrides={"rope_scaling": want} if want else {})
    np.testing.assert_allclose(logprobs(path), published, atol=1e-4)


def test_linear_scaling_beside_rope_freqs(tmp_path: Path) -> None:
    made = raw(tmp_path)
    pairs = case_named(CASE)["config"]["head_dim"] // 2 if case_named(CASE)["config"].get("head_dim") else 8
    add_tensor(made, "rope_freqs.weight", [1.0 + i for i in range(pairs)])
    made.set(R + "scaling.factor", number(2.0))
    scaling = shared_config(GGUFFile(written(made, tmp_path)))["rope_scaling"]
    assert scaling == {"rope_type": "factors", "factors": [2.0 + 2 * i for i in range(pairs)]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0] * 3, "has the shape .3., and a head rotates"),
        ([0.0] * 8, "no positive numbers"),
        ([-1.0] * 8, "no positive numbers"),
        ([math.nan] * 8, "no positive numbers"),
        ([math.inf] * 8, "no positive numbers"),
    ],
)
def test_factors_that_turn_nothing(values: list[float], message: str, tmp_path: Path) -> None:
    made = raw(tmp_path)
    add_tensor(made, "rope_freqs.weight", values)
    with pytest.raises(CheckpointError, match=message):
        LLM(str(written(made, tmp_path)), skip_tokenizer_init=True)


@pytest.mark.parametrize("kept", ["long", "short"])
def test_long_context_factors_for_one_of_the_two_tables(kept: str, tmp_path: Path) -> None:
    made = raw(tmp_path, "Phi3ForCausalLM--mini-128k-longrope")
    other = "short" if kept == "long" else "long"
    made.tensors = [t for t in made.tensors if other not in t.name.decode()]
    with pytest.raises(CheckpointError, match=f"rope_factors_{other}.weight is missing"):
        LLM(str(written(made, tmp_path)), skip_tokenizer_init=True)


@pytest.mark.parametrize(
    "keys",
    [
        {R + "scaling.type": text("spiral")},
        {R + "scaling.attn_factor": number(2.0)},
        YARN | {R + "scaling.yarn_ext_factor": number(0.5)},
    ],
)
def test_scaling_that_is_not_supported(keys: dict[str, Value], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError):
        LLM(str(with_keys(tmp_path, keys)), skip_tokenizer_init=True)


def test_keys_that_a_file_leaves_out_are_llama_cpps(tmp_path: Path) -> None:
    """All of a head turns, and there are as many key heads as heads, whatever a family's published default is."""
    keys: dict[str, Value | None] = {"phi2.rope.dimension_count": None, "phi2.attention.head_count_kv": None}
    config = shared_config(GGUFFile(with_keys(tmp_path, keys, "PhiForCausalLM--1_5")))
    assert config["partial_rotary_factor"] == 1.0
    assert config["num_key_value_heads"] == config["num_attention_heads"]
    assert "rope_scaling" not in config
    assert config["rope_theta"] == case_named("PhiForCausalLM--1_5")["config"].get("rope_theta", 10000.0)


def test_answers_end_at_the_tokens_that_llama_cpp_ends_them_at(tmp_path: Path) -> None:
    """The model's next token is named `<|eot_id|>`, and the file's eos is another, as in the first Llama 3 files."""
    case = case_named(CASE)["cases"][0]
    prompt, want = {"prompt_token_ids": case["prompt_token_ids"]}, case["output_token_ids"]
    stop = next(t for i, t in enumerate(want) if i > 0 and t not in want[:i] and t >= 259)
    values = byte_level(320)
    tokens = [v.decode() for v in values["tokenizer.ggml.tokens"].value]
    tokens[stop] = "<|eot_id|>"
    values["tokenizer.ggml.tokens"].value = [t.encode() for t in tokens]
    values["tokenizer.ggml.eos_token_id"] = whole(261)
    llm = LLM(str(with_keys(tmp_path, dict(values))), dtype="float32", kv_cache_memory="4MiB")
    answer = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)[0].outputs[0]
    assert answer.finish_reason == "stop"
    assert answer.token_ids == want[: want.index(stop) + 1]


def test_more_tokens_than_the_model_has_vectors_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="321 texts, and 320 are the most"):
        LLM(str(with_keys(tmp_path, dict(sentencepiece(321)))))
