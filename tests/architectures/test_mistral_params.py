"""Mistral's params.json, and models in that format against the same model in the usual one."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from octavo import LLM, SamplingParams
from octavo.architectures.mistral_params import mistral_config
from octavo.errors import CheckpointError, UnsupportedModelError
from tests.golden import CASES, case_named, write_model

NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "model.layers": "layers",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "block_sparse_moe.gate": "feed_forward.gate",
    "block_sparse_moe.experts": "feed_forward.experts",
}


def convert(folder: Path, into: Path, heads: dict[str, int], **params: Any) -> Path:
    """A model of the usual format in Mistral's own: other names, and rope's pairs beside each other."""
    into.mkdir()
    made = {}
    for name, value in load_file(folder / "model.safetensors").items():
        for theirs, here in NAMES.items():
            name = name.replace(theirs, here)
        if any(name.endswith(f".{which}.weight") for which in heads):
            count = heads[name.split(".")[-2]]
            value = value.reshape(count, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        made[name] = value.copy()
    save_file(made, into / "consolidated.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (into / "params.json").write_text(
        json.dumps(
            {
                "dim": config["hidden_size"],
                "n_layers": config["num_hidden_layers"],
                "head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
                "hidden_dim": config["intermediate_size"],
                "n_heads": config["num_attention_heads"],
                "n_kv_heads": config["num_key_value_heads"],
                "norm_eps": config["rms_norm_eps"],
                "vocab_size": config["vocab_size"],
                "rope_theta": config.get("rope_theta", 10000.0),
                **params,
            }
        )
    )
    return into


def answers(folder: Path, **options: Any) -> list[Any]:
    llm = LLM(str(folder), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="8MiB", **options)
    prompts = [list(range(3, 43)), [5, 4, 3]]
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, prompt_logprobs=0)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [[next(iter(p.values())).logprob for p in output.prompt_logprobs[1:]] for output in outputs]


YARN = {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 8, "beta_slow": 2}


@pytest.mark.parametrize(
    ("name", "params", "same"),
    [
        ("MistralForCausalLM", {}, {"sliding_window": None}),
        ("MistralForCausalLM", {"sliding_window": 8}, {"sliding_window": 8}),
        ("MistralForCausalLM", {"_sliding_window": [8]}, {"sliding_window": 8}),
        (
            "MistralForCausalLM",
            {"yarn": {"factor": 4.0, "original_max_position_embeddings": 16, "beta": 8, "alpha": 2}},
            {"sliding_window": None, "rope_scaling": {"rope_type": "yarn", **YARN}},
        ),
        (
            "MistralForCausalLM",
            {"yarn": {**YARN, "apply_scale": False}},
            {"sliding_window": None, "rope_scaling": {"rope_type": "yarn", **YARN, "attention_factor": 1.0}},
        ),
        ("MixtralForCausalLM", {"moe": {"num_experts": 4, "num_experts_per_tok": 2}}, {"sliding_window": None}),
    ],
    ids=str,
)
def test_both_formats_answer_alike(name: str, params: dict[str, Any], same: dict[str, Any], tmp_path: Path) -> None:
    case = case_named(next(p.stem for p in CASES if p.stem.startswith(name + "--")))
    usual = write_model({**case, "config": {**case["config"], **same}}, tmp_path / "usual")
    heads = {"wq": case["config"]["num_attention_heads"], "wk": case["config"]["num_key_value_heads"]}
    own = convert(usual, tmp_path / "own", heads, **params)
    for ours, theirs in zip(answers(own), answers(usual), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_windows_of_some_layers() -> None:
    values = mistral_config({"n_layers": 5, "_sliding_window": [None, 8, 8]})
    assert values["sliding_window"] == 8
    assert [kind.split("_")[0] for kind in values["layer_types"]] == ["full", "sliding", "sliding", "full", "sliding"]
    with pytest.raises(UnsupportedModelError, match="several"):
        mistral_config({"n_layers": 5, "sliding_window": [4, 8]})


@pytest.mark.parametrize(
    "params",
    [
        {"quantization": {"qformat_weight": "fp8_e4m3"}},
        {"llama_4_scaling": {"beta": 0.1}},
        {"vision_encoder": {"mm_projector_id": "patch_merge"}},
    ],
    ids=str,
)
def test_what_later_models_have_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="not supported"):
        mistral_config(params)


@pytest.mark.parametrize(
    "change",
    [
        {"n_layers": 10**9, "sliding_window": [4]},
        {"n_layers": "2", "sliding_window": [4]},
        {"sliding_window": [[4]]},
        {"yarn": 3},
        {"yarn": {"factor": "much"}},
        {"moe": []},
        {"vision_encoder": 7},
        {"dim": None},
    ],
    ids=str,
)
def test_damaged_files_are_errors(change: dict[str, Any], tmp_path: Path) -> None:
    case = case_named("PixtralForConditionalGeneration--mistral-native")
    folder = write_model({**case, "config": {**case["config"], **change}}, tmp_path)
    with pytest.raises(CheckpointError):
        LLM(str(folder), skip_tokenizer_init=True, kv_cache_memory="8MiB")
