"""Quantized checkpoints answer as what their numbers mean, and damaged ones are refused by the tensor's name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo import LLM, SamplingParams
from octavo.errors import CheckpointError, ConfigError, UnsupportedModelError
from octavo.loading.formats import folder_format
from octavo.loading.formats.module_rules import matches
from octavo.loading.formats.quantized_tensor import QuantizedTensor
from octavo.loading.formats.unpacking import unpacked, words_of
from octavo.ops.native import runnable
from octavo.parts import Names
from octavo.parts.weight_slots import Shard
from tests.golden import prompt_of, read_case
from tests.quantized import CASES, case_named, tensors, write
from tests.test_golden import agrees, answers, opened

AWQ, GPTQ, FP8 = "LlamaForCausalLM--awq-gemm-128", "Qwen2ForCausalLM--gptq-4bit-asym-v1", "Qwen2ForCausalLM--fp8-block"
CT, NF4 = "LlamaForCausalLM--ct-w4a16", "LlamaForCausalLM--bnb-nf4-nested"
Q_PROJ = "model.layers.0.self_attn.q_proj"
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "chunks": {"max_num_batched_tokens": 7, "block_size": 8, "enable_prefix_caching": False},
    "reference-ops": {"ops": "torch"},
    "ranks": {"tensor_parallel_size": 2},
}


def open_folder(folder: Path, **options: Any) -> LLM:
    return LLM(str(folder), skip_tokenizer_init=True, kv_cache_memory="16MiB", **options)


@pytest.mark.parametrize("variant", ["float32", *(pytest.param(v, marks=pytest.mark.slow) for v in [*VARIANTS][1:])])
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_answers_of_the_reference(path: Path, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In floats, which hold what the codes mean."""
    monkeypatch.setattr("tests.test_golden.write_model", write)
    agrees(read_case(path), tmp_path, **VARIANTS[variant])


@pytest.mark.skipif(not runnable(), reason="the core was not built here")
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_as_they_are(path: Path, tmp_path: Path) -> None:
    """Computed with as stored: close to the reference, and the same bits alone, in a batch and in chunks."""
    case = read_case(path)
    write(case, tmp_path)
    llm = opened(case, tmp_path, dtype="auto")
    together = answers(llm, case)
    given = [
        abs(entry[token].logprob - want)
        for output, each in zip(together, case["cases"], strict=True)
        for entry, token, want in zip(
            output.prompt_logprobs[1:], each["prompt_token_ids"][1:], each["prompt_logprobs"], strict=True
        )
    ]
    assert sum(given) / len(given) < 0.05  # rows are rounded to 8 bits in products of integers
    last = case["cases"][-1]
    params = SamplingParams(temperature=0, max_tokens=10, logprobs=5, prompt_logprobs=0, ignore_eos=True)
    for other in (llm, opened(case, tmp_path, dtype="auto", **VARIANTS["chunks"])):
        (alone,) = other.generate([prompt_of(last)], params, use_tqdm=False)
        assert alone.outputs[0].logprobs == together[-1].outputs[0].logprobs
        assert alone.prompt_logprobs == together[-1].prompt_logprobs


@pytest.mark.skipif(not runnable(), reason="the core was not built here")
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_rows_are_the_numbers(path: Path, tmp_path: Path) -> None:
    """What is stored for the core is, row by row, what the codes mean; parts of a weight are parts of these."""
    from octavo.ops.native import load
    from octavo.ops.native.native_backend import NativeBackend

    case, library = read_case(path), load()
    assert library is not None
    backend = NativeBackend(library)
    weights = folder_format(write(case, tmp_path), "auto", case["config"]).weights(Names({}))
    quantized = [source for _, source in weights if isinstance(source, QuantizedTensor)]
    for source in quantized:
        floats, stored = source.read(), source.stored()
        shard = Shard(rows=((1, 5), (9, 30)), columns=((32, 64),))
        assert torch.equal(source.part(shard).read(), shard.of(floats))
        assert stored is not None
        rows = backend.stored_linear([stored]).rows(torch.arange(len(floats)), torch.float32)
        torch.testing.assert_close(rows, floats, rtol=2e-6, atol=1e-6)


def edited(name: str, folder: Path, tensor: str, change: Any) -> Path:
    case = case_named(name)
    own = tensors(case)[tensor]
    return write(case, folder, {tensor: change(own)})


@pytest.mark.parametrize(
    ("name", "tensor", "change", "match"),
    [
        (AWQ, "scales", lambda t: None, r"lacks .*q_proj\.scales"),
        (AWQ, "qzeros", lambda t: None, r"lacks .*q_proj\.qzeros"),
        (AWQ, "scales", lambda t: torch.full_like(t, torch.inf), "q_proj.*not a finite number"),
        (AWQ, "scales", lambda t: t.repeat(2, 1), r"q_proj\.scales is \[2, 128\]"),
        (AWQ, "qweight", lambda t: t.float(), "q_proj.qweight is float32"),
        (GPTQ, "qzeros", lambda t: None, r"lacks .*q_proj\.qzeros"),
        (GPTQ, "qweight", lambda t: t[:-1], r"q_proj"),
        (GPTQ, "g_idx", lambda t: t + 40, "g_idx"),
        (GPTQ, "g_idx", lambda t: t[:-1], r"g_idx is \[63\]"),
        (FP8, "weight_scale_inv", lambda t: t[:1], "scales"),
        (FP8, "weight_scale_inv", lambda t: t * torch.nan, "not a finite number"),
        (FP8, "weight", lambda t: t.float(), "is float32"),
        (CT, "weight_shape", lambda t: t * 2, "weight_packed"),
        (CT, "weight_scale", lambda t: None, "weight_scale"),
        (NF4, "weight.absmax", lambda t: t[:-1], "absmax"),
        (NF4, "weight.quant_map", lambda t: None, "quant_map"),
        (NF4, "weight.quant_state.bitsandbytes__nf4", lambda t: t[:-9], "damaged"),
        ("LlamaForCausalLM--hqq-4bit", "axis", lambda t: t + 7, "axis.* is 8"),
        ("LlamaForCausalLM--ct-nvfp4a16", "weight_global_scale", lambda t: t * 0, "weight_global_scale"),
        ("LlamaForCausalLM--torchao-int8", "_weight_scale", lambda t: t[:4], "scales"),
    ],
)
def test_damaged_tensors_are_named(name: str, tensor: str, change: Any, match: str, tmp_path: Path) -> None:
    folder = edited(name, tmp_path, f"{Q_PROJ}.{tensor}", change)
    with pytest.raises(CheckpointError, match=match):
        open_folder(folder)


@pytest.mark.parametrize(
    ("name", "setting", "match"),
    [
        (AWQ, {"bits": 3}, "bits"),
        (AWQ, {"group_size": "x"}, "group_size"),
        (GPTQ, {"bits": 5}, "bits"),
        (GPTQ, {"checkpoint_format": "marlin"}, "marlin"),
        (FP8, {"weight_block_size": [128]}, "weight_block_size"),
        (CT, {"format": "sparse-bitmask"}, "sparse-bitmask"),
        (CT, {"config_groups": {"g": {"targets": ["re:(a+)+$"], "weights": {"num_bits": 4}}}}, "no group"),
        (CT, {"config_groups": {"g": {"targets": ["re:("], "weights": {"num_bits": 4}}}}, "regular expression"),
    ],
)
def test_settings_that_do_not_fit(name: str, setting: dict[str, Any], match: str, tmp_path: Path) -> None:
    case = case_named(name)
    case["config"]["quantization_config"] |= setting
    with pytest.raises(CheckpointError, match=match):
        open_folder(write(case, tmp_path))


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "hqq", "bitsandbytes", "torchao"])
def test_none_of_the_weights_is_quantized(method: str, tmp_path: Path) -> None:
    case = case_named(AWQ)
    plain = {name: spec for name, spec in case["tensors"].items() if not name.endswith(("qzeros", "scales", "qweight"))}
    case = {**case, "tensors": plain}
    case["config"]["quantization_config"] = {"quant_method": method, "bits": 4}
    with pytest.raises(CheckpointError, match=f"quantized .{method}.*none of its tensors"):
        open_folder(write(case, tmp_path))


def test_quantization_is_checked_against_the_checkpoint(tmp_path: Path) -> None:
    folder = write(case_named(AWQ), tmp_path)
    for name in ("awq", "awq_marlin"):
        open_folder(folder, quantization=name)
    for name, match in (("gptq", "quantized with awq"), ("int8", "quantized already"), ("gguf", "not a GGUF")):
        with pytest.raises(ConfigError, match=match):
            open_folder(folder, quantization=name)
    with pytest.raises(ConfigError, match="quantization"):
        open_folder(folder, quantization="of-next-year")


def test_inputs_of_products_that_would_have_to_change(tmp_path: Path) -> None:
    case = case_named("LlamaForCausalLM--modelopt-nvfp4")
    folder = write(case, tmp_path, {f"{Q_PROJ}.pre_quant_scale": torch.ones(128)})
    with pytest.raises(UnsupportedModelError, match="pre_quant_scale"):
        open_folder(folder)


def test_rules_of_modules(tmp_path: Path) -> None:
    """GPTQModel's `dynamic`: bits of some modules, and exceptions, which have plain weights."""
    case = case_named(GPTQ)
    quantization = case["config"]["quantization_config"]
    case["config"]["quantization_config"] = {**quantization, "bits": 8, "dynamic": {r"-:x": {}, r"+:.*": {"bits": 4}}}
    agrees_with = open_folder(write(case, tmp_path / "a"), dtype="float32")
    as_usual = open_folder(write(case_named(GPTQ), tmp_path / "b"), dtype="float32")
    prompt, params = prompt_of(case["cases"][1]), SamplingParams(temperature=0, max_tokens=4, logprobs=3)
    results = [llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].logprobs for llm in (agrees_with, as_usual)]
    assert results[0] == results[1]


def test_an_expression_that_never_ends() -> None:
    with pytest.raises(CheckpointError, match="cannot be used"):
        matches(r"(a|aa)+$", "a" * 60 + "b")


@settings(deadline=None)
@given(st.data(), st.integers(1, 8), st.integers(1, 70))
def test_unpacked(data: st.DataObject, bits: int, count: int) -> None:
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count))
    whole = sum(code << (bits * place) for place, code in enumerate(codes))
    words = [whole >> (32 * i) & 0xFFFFFFFF for i in range(words_of(count, bits))]
    stored = torch.tensor([words], dtype=torch.int64).to(torch.int32)
    assert unpacked(stored, bits, count).tolist() == [codes]


def source_of(folder: Path, quantization: dict[str, Any], own: dict[str, Tensor], metadata: Any = None) -> Tensor:
    """The weight that a folder of one module means."""
    case = {"config": {"quantization_config": quantization}, "files": {}, "tensors": {}}
    case["safetensors_metadata"] = metadata or {}
    write(case, folder, {f"m.{name}": value for name, value in own.items()})
    (name, source), *more = folder_format(folder, "auto", case["config"]).weights(Names({}))
    assert (name, more) == ("m.weight", [])
    return source.read()


def test_awq_for_vectors(tmp_path: Path) -> None:
    codes = torch.randint(0, 16, (8, 64))
    packed = sum((codes[:, place::8] << (4 * place) for place in range(8)), torch.zeros(8, 8, dtype=torch.int64))
    own = {
        "qweight": packed.to(torch.int32),
        "qzeros": torch.full((8, 1), 0x53, dtype=torch.int32),
        "scales": torch.rand(8, 8).half(),
    }
    got = source_of(tmp_path, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"}, own)
    zeros = torch.tensor([3, 5]).repeat_interleave(32)
    assert torch.equal(got, (codes - zeros) * own["scales"][:, :2].float().repeat_interleave(32, 1))


def test_hqq_beside_each_other(tmp_path: Path) -> None:
    """Axis 0: a group is every so many values."""
    codes, scale, zero = torch.randint(0, 4, (64, 12)), torch.rand(1, 12), torch.rand(1, 12)
    packed = sum((codes[16 * part : 16 * part + 16] << (6 - 2 * part) for part in range(4)), torch.zeros(16, 12).long())
    own = {"W_q": packed.to(torch.uint8), "scale": scale, "zero": zero, "shape": torch.tensor([24, 32])}
    own |= {"nbits": torch.tensor(2), "axis": torch.tensor(0), "group_size": torch.tensor(64)}
    assert torch.equal(source_of(tmp_path, {"quant_method": "hqq"}, own), ((codes - zero) * scale).view(24, 32))


def test_torchao_int4(tmp_path: Path) -> None:
    codes = torch.randint(-8, 8, (6, 32))
    packed = (codes[:, 0::2] & 15) | (codes[:, 1::2] & 15) << 4
    own = {"_weight_qdata": packed.to(torch.uint8).view(torch.int8)}
    own |= {"_weight_scale": torch.rand(1, 6), "_weight_zero_point": torch.rand(1, 6)}
    about = {"m.weight": json.dumps({"_type": "Int4Tensor", "_data": {"block_size": [1, 32]}})}
    got = source_of(tmp_path, {"quant_method": "torchao"}, own, about)
    assert torch.equal(got, codes * own["_weight_scale"].T + own["_weight_zero_point"].T)


def test_compressed_integers_of_an_odd_width(tmp_path: Path) -> None:
    """3 bits over the borders of words, with zeros along the outputs."""
    codes, zeros = torch.randint(0, 8, (5, 40)), torch.randint(0, 8, (5, 2))
    own = {"weight_packed": words(codes, 3), "weight_zero_point": words(zeros.T, 3).T.contiguous()}
    own |= {"weight_scale": torch.rand(5, 2), "weight_shape": torch.tensor([5, 40])}
    scheme = {"num_bits": 3, "type": "int", "strategy": "group", "group_size": 20}
    groups = {"g": {"targets": ["Linear"], "weights": scheme}}
    quantization = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    want = (codes - zeros.repeat_interleave(20, 1)) * own["weight_scale"].repeat_interleave(20, 1)
    assert torch.equal(source_of(tmp_path, quantization, own), want)


def words(codes: Tensor, bits: int) -> Tensor:
    """Rows of codes in int32, the first in the lowest bits."""
    rows = []
    for row in codes.tolist():
        whole = sum(code << (bits * place) for place, code in enumerate(row))
        rows.append([whole >> (32 * i) & 0xFFFFFFFF for i in range(words_of(len(row), bits))])
    return torch.tensor(rows, dtype=torch.int64).to(torch.int32)
