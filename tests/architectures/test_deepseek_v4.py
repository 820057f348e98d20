"""DeepSeek-V4's layers that a table routes, and what its config may not say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from octavo import LLM, SamplingParams
from octavo.errors import CheckpointError, UnsupportedModelError
from tests.golden import CASES, read_case, write_model
from tests.test_golden import agrees

PATHS = {path.stem.partition("--")[2]: path for path in CASES if path.stem.startswith("DeepseekV4")}
PROMPT = [5, 300, 17, 17, 9, 250, 31, 8, 5, 64, 99, 101]


def write(folder: Path, config: dict[str, Any], hashed: int, wrong: int | None = None) -> Path:
    """The published case, with tables of experts by token in its first layers; an expert of a wrong number in one."""
    case = read_case(PATHS["flash"])
    case["config"] |= {"num_hash_layers": hashed, **config}
    write_model(case, folder)
    tensors, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(3)
    for layer in range(hashed):
        table = torch.stack([torch.randperm(8, generator=generator)[:2] for _ in range(320)])
        if wrong is not None:
            table[7, 1] = wrong
        del tensors[f"layers.{layer}.ffn.gate.bias"]
        tensors[f"layers.{layer}.ffn.gate.tid2eid"] = table
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("options", [{}, {"ops": "torch"}, {"max_num_batched_tokens": 3, "block_size": 4}])
def test_layers_whose_experts_a_table_chooses(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = write(tmp_path, {}, hashed=2)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    llm = LLM(str(folder), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="32MiB", **options)
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=1, prompt_logprobs=0, ignore_eos=True)
    (output,) = llm.generate([{"prompt_token_ids": PROMPT}], params, use_tqdm=False)
    ids = PROMPT + output.outputs[0].token_ids
    with torch.inference_mode():
        want = torch.log_softmax(reference(torch.tensor([ids]), use_cache=False).logits[0], -1)
    for place, token in enumerate(ids[1:]):
        step = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs][place]
        assert step[token].logprob == pytest.approx(float(want[place, token]), abs=5e-5)


def test_a_table_of_unknown_experts_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, {}, hashed=1, wrong=8)
    with pytest.raises(CheckpointError, match="tid2eid"):
        LLM(str(folder), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="32MiB")


def test_names_as_transformers_writes_them(tmp_path: Path) -> None:
    """It puts `model.` before most, and calls the norm of keys `norm`."""
    case = read_case(PATHS["transformers-keys"])
    folder = write_model(case, tmp_path / "published")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["compress_rates"]
    names = load_file(tmp_path / "saved" / "model.safetensors")
    assert "model.layers.0.attn.norm.weight" in names
    llm = LLM(str(tmp_path / "saved"), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="32MiB")
    want = case["cases"][-1]
    params = SamplingParams(temperature=0, max_tokens=len(want["output_token_ids"]), ignore_eos=True)
    (output,) = llm.generate([{"prompt_token_ids": want["prompt_token_ids"]}], params, use_tqdm=False)
    assert output.outputs[0].token_ids == want["output_token_ids"]


@pytest.mark.parametrize(
    ("said", "named", "error"),
    [
        ({"compress_ratios": [0, 4, 64]}, "compress_ratios has 64", UnsupportedModelError),
        ({"compress_ratios": [0, 4]}, "2 types for 3 layers", CheckpointError),
        ({"layer_types": ["full_attention"] * 3}, "full_attention", UnsupportedModelError),
        ({"mlp_layer_types": ["moe", "dense", "moe"]}, "dense", UnsupportedModelError),
        ({"compress_rates": {"heavily_compressed_attention": 0}}, "heavily_compressed_attention", CheckpointError),
        ({"scoring_func": "softmax"}, "scoring_func", UnsupportedModelError),
        ({"n_shared_experts": 2}, "n_shared_experts", UnsupportedModelError),
        ({"o_groups": 3}, "4 heads cannot be in 3 groups", CheckpointError),
    ],
)
def test_what_the_config_may_not_say(tmp_path: Path, said: dict[str, Any], named: str, error: type) -> None:
    case = read_case(PATHS["flash"])
    case["config"] |= said
    with pytest.raises(error, match=named):
        LLM(str(write_model(case, tmp_path)), skip_tokenizer_init=True, kv_cache_memory="32MiB")


def test_ratios_may_go_on_for_layers_that_predict_more_tokens(tmp_path: Path) -> None:
    case = read_case(PATHS["flash"])
    case["config"]["compress_ratios"] = [0, 4, 128, 0]
    case["tensors"]["mtp.0.attn_norm.weight"] = {"shape": [64], "center": 1.0, "scale": 0.1}
    case["cases"] = case["cases"][1:2]
    agrees(case, tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).layer_types[:3]
