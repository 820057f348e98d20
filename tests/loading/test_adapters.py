"""Adapters' files in their forms, and those that are refused."""

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo import LLM, LoRARequest, SamplingParams
from octavo.errors import InvalidRequestError
from octavo.loading.adapter_files import AdapterConfig
from octavo.loading.adapter_places import output_order, spellings
from octavo.parts import alternating, gate_second, grouped_qkv, transposed
from tests.adapters import adapter_tensors, lora_case, requests_of, save_adapter
from tests.golden import prompt_of
from tests.loading.gguf_models import KINDS, name_map, write_gguf
from tests.test_golden import load

CASE = lora_case("LlamaForCausalLM--all-linear")
PARAMS = SamplingParams(temperature=0, max_tokens=3, logprobs=3, prompt_logprobs=1, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return load(CASE, tmp_path_factory.mktemp("base"), enable_lora=True, max_loras=2)


def bits(llm: LLM, request: LoRARequest | None, case: dict[str, Any] = CASE) -> str:
    output = llm.generate(prompt_of(case["cases"][1]), PARAMS, use_tqdm=False, lora_request=request)[0]
    return str((output.outputs[0].token_ids, output.outputs[0].logprobs, output.prompt_logprobs))


def saved(folder: Path, config: dict[str, Any] | None = None, **tensors: Any) -> LoRARequest:
    """The case's adapter `all` with these settings, and these tensors in place of its own by the ends of names."""
    own = adapter_tensors(CASE, "all")
    for name, value in tensors.items():
        key = next(k for k in own if k.endswith(name.replace("__", ".")))
        own[key] = value(own[key])
    save_adapter(folder, {**CASE["adapters"]["all"]["adapter_config"], **(config or {})}, own)
    return LoRARequest(folder.name, 1, str(folder))


def test_pickles_and_names_with_the_adapters_own(llm: LLM, tmp_path: Path) -> None:
    want = bits(llm, saved(tmp_path / "plain"))
    tensors = adapter_tensors(CASE, "all")
    folder = tmp_path / "pickled"
    save_adapter(folder, CASE["adapters"]["all"]["adapter_config"], tensors)
    (folder / "adapter_model.safetensors").unlink()
    torch.save({n: torch.from_numpy(t) for n, t in tensors.items()}, folder / "adapter_model.bin")
    assert bits(llm, LoRARequest("pickled", 2, str(folder))) == want
    named = {n.replace("_A.weight", "_A.default.weight"): t for n, t in tensors.items()}
    named = {n.replace("_B.weight", "_B.default.weight"): t for n, t in named.items()}
    save_adapter(tmp_path / "named", CASE["adapters"]["all"]["adapter_config"], named)
    assert bits(llm, LoRARequest("named", 3, str(tmp_path / "named"))) == want


def lora_gguf(case: dict[str, Any], name: str, path: Path, alpha: float | None = None) -> LoRARequest:
    """An adapter of a case as llama.cpp's converter writes it."""
    kind, config = KINDS[case["row"]], case["config"]
    writer = gguf.GGUFWriter(path, kind.arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32(
        "adapter.lora.alpha", case["adapters"][name]["adapter_config"]["lora_alpha"] if alpha is None else alpha
    )
    names, stacks = name_map(kind.arch, config.get("num_hidden_layers") or config["n_layer"]), dict[str, list[Any]]()
    for tensor, value in adapter_tensors(case, name).items():
        module, _, part = tensor.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        bare = module.removeprefix(kind.prefix)
        if part == "lora_B" and "c_" not in bare:  # a change of rows is one of B's
            ((_, value),) = kind.change(f"{module}.weight", value, config)
        stacked = re.sub(r"\.experts\.\d+", ".experts", bare)
        key = names.get_name(stacked + ".weight", try_suffixes=(".weight",))
        assert key is not None, module
        stacks.setdefault(f"{key}.{part.lower()}", []).append(value)
    for key, values in stacks.items():
        writer.add_tensor(key, np.ascontiguousarray(values[0] if "_exps" not in key else np.stack(values)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return LoRARequest(path.stem, 9, str(path))


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        ("LlamaForCausalLM--all-linear", "all"),
        ("Qwen2ForCausalLM--attention", "a"),
        ("GPT2LMHeadModel--conv1d", "a"),
        ("MixtralForCausalLM--experts", "a"),
        ("GPTNeoXForCausalLM--fused", "b"),
        ("Gemma2ForCausalLM--all-linear", "a"),
    ],
)
def test_llama_cpps_adapters(name: str, adapter: str, tmp_path: Path) -> None:
    """The same bits as of PEFT's files, over a published checkpoint and over a GGUF one."""
    case = lora_case(name)
    own = requests_of(case, tmp_path)[adapter]
    converted = lora_gguf(case, adapter, tmp_path / "adapter.gguf")
    published = load(case, tmp_path / "base", enable_lora=True, max_loras=2)
    want = bits(published, own, case)
    assert want != bits(published, None, case)
    assert bits(published, converted, case) == want
    file = write_gguf(case, tmp_path / "model.gguf")
    stored = LLM(
        str(file), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="32MiB", enable_lora=True, max_loras=2
    )
    assert bits(stored, own, case) == bits(stored, converted, case) != bits(stored, None, case)


def test_an_adapter_without_alpha_is_added_as_it_is(llm: LLM, tmp_path: Path) -> None:
    rank = 8
    want = bits(llm, saved(tmp_path / "plain", {"lora_alpha": rank}))
    assert bits(llm, lora_gguf(CASE, "all", tmp_path / "none.gguf", alpha=0.0)) == want


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another kind": ({"peft_type": "VERA"}, {}, "'VERA', and LORA"),
    "no kind": ({"peft_type": None}, {}, "peft_type"),
    "alpha": ({"lora_alpha": "x"}, {}, "lora_alpha"),
    "infinite alpha": ({"lora_alpha": 1e999}, {}, "lora_alpha"),
    "a pattern": ({"alpha_pattern": {"(": 3}}, {}, "alpha_pattern"),
    "a slow pattern": ({"alpha_pattern": {r"(\w+)+x": 3}}, {}, "very long"),
    "one that is slow by its length": ({"alpha_pattern": {r"\w*\w*\w*\w*\w*x": 3}}, {}, "very long"),
    "alora": ({"alora_invocation_tokens": [1]}, {}, "alora_invocation_tokens"),
    "replicated layers": ({"layer_replication": [[0, 2], [0, 2]]}, {}, "layer_replication"),
    "a changed base": ({"init_lora_weights": "pissa_niter_4"}, {}, "path_initial_model_for_weight_conversion"),
    "tokens": ({"trainable_token_indices": [-1]}, {}, "trainable_token_indices"),
    "shape of A": (
        {},
        {"o_proj__lora_A__weight": lambda t: t[:, :-1].copy()},
        r"lora_A.weight has the shape \[8, 63\]",
    ),
    "shape of B": ({}, {"o_proj__lora_B__weight": lambda t: t[:-1].copy()}, r"expected: \[64, 8\]"),
    "not finite": ({}, {"o_proj__lora_B__weight": lambda t: t * np.float32(np.inf)}, "not finite"),
    "a rank": (
        {},
        {"o_proj__lora_A__weight": lambda t: t.repeat(3, 0), "o_proj__lora_B__weight": lambda t: t.repeat(3, 1)},
        "max_lora_rank=16",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(llm: LLM, name: str, tmp_path: Path) -> None:
    config, tensors, says = REFUSED[name]
    before = bits(llm, None)
    with pytest.raises(InvalidRequestError, match=says):
        bits(llm, saved(tmp_path / "bad", config, **tensors))
    assert bits(llm, None) == before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "base_model.model."),
        ("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", "no layer of this model"),
        ("base_model.model.model.layers.0.self_attn.q_proj.oft_r", "oft_r"),
        ("base_model.model.model.layers.0.self_attn.rotary.inv_freq", "no layer of this model"),
    ],
)
def test_tensors_that_nothing_has(llm: LLM, name: str, says: str, tmp_path: Path) -> None:
    tensors = adapter_tensors(CASE, "all")
    tensors[name] = np.zeros((8, 64), np.float32)
    if name.endswith("lora_A.weight"):
        tensors[name.replace("lora_A", "lora_B")] = np.zeros((64, 8), np.float32)
    save_adapter(tmp_path / "bad", CASE["adapters"]["all"]["adapter_config"], tensors)
    with pytest.raises(InvalidRequestError, match=says):
        bits(llm, LoRARequest("bad", 1, str(tmp_path / "bad")))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"peft_type": "LORA", "lora_alpha": NaN}', '"LORA"'])
def test_damaged_configs(llm: LLM, text: str, tmp_path: Path) -> None:
    request = saved(tmp_path / "bad")
    (tmp_path / "bad" / "adapter_config.json").write_text(text)
    with pytest.raises(InvalidRequestError, match=r"adapter_config.json"):
        bits(llm, request)


def test_a_base_model_as_gguf_is_no_adapter(llm: LLM, tmp_path: Path) -> None:
    file = write_gguf(CASE, tmp_path / "model.gguf")
    with pytest.raises(InvalidRequestError, match="no LoRA adapter"):
        bits(llm, LoRARequest("model", 1, str(file)))
    other = lora_gguf(lora_case("GPT2LMHeadModel--conv1d"), "a", tmp_path / "other.gguf")
    with pytest.raises(InvalidRequestError, match="'gpt2'"):
        bits(llm, other)


def test_scales() -> None:
    """A pattern is a regular expression that ends the module's name, after a dot."""
    patterns = {r"layers\.[02]\.self_attn\.q_proj": 12.0, "v_proj": 3.0}
    config = AdapterConfig(8.0, alpha_pattern=patterns)
    assert config.scale("model.layers.0.self_attn.q_proj", 4) == 3.0
    assert config.scale("model.layers.1.self_attn.q_proj", 4) == 2.0
    assert config.scale("model.layers.1.self_attn.v_proj", 2) == 1.5
    assert config.scale("model.layers.1.self_attn.uv_proj", 2) == 4.0
    usual = AdapterConfig(8.0, alpha_pattern={r".*\.layers\.[0-9]+\.self_attn.*(q|v)_proj": 2.0})
    assert [usual.scale(f"model.layers.11.self_attn.{name}_proj", 1) for name in "qk"] == [2.0, 8.0]
    assert AdapterConfig(8.0, use_rslora=True).scale("x", 16) == 2.0


@given(
    st.sampled_from(["grouped", "alternating", "second", "conv"]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 5),
)
def test_orders_of_outputs(kind: str, heads: int, group: int, dim: int) -> None:
    """What a table does to a weight, matrices of low rank follow: it is the same for their product."""
    into = {
        "grouped": grouped_qkv("x", heads, group, dim),
        "alternating": alternating("x"),
        "second": gate_second("x"),
        "conv": transposed("x"),
    }[kind]
    outputs = heads * (group + 2) * dim * (1 if kind in ("grouped", "conv") else 2)
    a, b = torch.randn(3, 7), torch.randn(outputs, 3)
    assert into.transform is not None
    order = output_order(into.transform, outputs)
    assert order is not None
    published = (b @ a).t() if kind == "conv" else b @ a
    torch.testing.assert_close(b[order] @ a, into.transform(published))


def test_changes_that_matrices_cannot_follow() -> None:
    assert output_order(lambda w: w * 2, 8) is None
    assert output_order(lambda w: w.float(), 8) is None
    assert output_order(lambda w: w.flip(1), 8) is None


def test_spellings() -> None:
    assert spellings("transformer.h.0.attn.c_attn")[0] == "transformer.h.0.attn.c_attn"
    assert "h.0.attn.c_attn" in spellings("transformer.h.0.attn.c_attn")
    assert "model.layers.0.block_sparse_moe.gate" in spellings("model.layers.0.mlp.gate")


@pytest.mark.parametrize(
    ("module", "published"),
    [
        ("model.layers.1.mlp.gate", "model.layers.1.block_sparse_moe.gate"),
        ("model.layers.1.mlp.router", "model.layers.1.block_sparse_moe.gate"),
        ("model.layers.1.block_sparse_moe.router", "model.layers.1.block_sparse_moe.router.layer"),
        ("model.layers.1.block_sparse_moe.experts.down_proj", "model.layers.1.block_sparse_moe.output_linear.weight"),
        ("lm_head", "embed_out"),
        ("layers.1.mlp.up_proj", "model.layers.1.mlp.up_proj"),
        ("transformer.h.1.attn", "h.1.attn"),
    ],
)
def test_names_of_newer_classes(module: str, published: str) -> None:
    assert published in spellings(module)


def test_config_is_read_as_json(llm: LLM, tmp_path: Path) -> None:
    """Settings that change nothing are no reason to refuse it."""
    plain = bits(llm, saved(tmp_path / "plain"))
    more = {
        "target_modules": "all-linear",
        "fan_in_fan_out": True,
        "lora_dropout": 0.1,
        "layers_to_transform": [0, 1],
        "task_type": None,
        "init_lora_weights": "gaussian",
    }
    assert bits(llm, saved(tmp_path / "more", more)) == plain
    assert json.loads((tmp_path / "more" / "adapter_config.json").read_text())["lora_dropout"] == 0.1
