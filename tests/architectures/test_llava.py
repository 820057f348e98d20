"""LLaVA and its kind beyond the golden cases: other spellings of names and configs, other texts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import LlavaConfig, LlavaNextConfig, LlavaNextVideoConfig, LlavaOnevisionConfig, PaliGemmaConfig

from octavo import LLM, SamplingParams
from octavo.architectures import find_architecture
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.tools.recipe import spec
from tests.architectures.published import build
from tests.golden import case_named, prompt_of, write_model
from tests.test_golden import agrees, load

PALIGEMMA = "PaliGemmaForConditionalGeneration--3b"
LLAVA = "LlavaForConditionalGeneration--1.5-7b"
SAVED: dict[str, dict[str, str]] = {
    "4.52": {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "image_newline": "model.image_newline",
    },
    "5": {"vision_tower.vision_model.": "vision_tower."},
    "5, in memory": {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.vision_model.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "image_newline": "model.image_newline",
    },
}
"""How releases of transformers save what is published: beginnings of names."""


def renamed(folder: Path, beginnings: dict[str, str]) -> None:
    """Write the checkpoint of a folder under other names."""
    path = folder / "model.safetensors"
    tensors = {}
    for name, tensor in load_file(path).items():
        begin = next((b for b in beginnings if name.startswith(b)), "")
        tensors[beginnings.get(begin, "") + name.removeprefix(begin)] = tensor
    save_file(tensors, path)


def greedy(folder: Path, case: dict[str, Any]) -> list[list[int]]:
    llm = LLM(str(folder), dtype="float32", kv_cache_memory="16MiB")
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    outputs = llm.generate([prompt_of(c) for c in case["cases"]], params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("release", SAVED)
@pytest.mark.parametrize("name", [LLAVA, "LlavaOnevisionForConditionalGeneration--qwen2-7b-ov", PALIGEMMA])
def test_names_that_transformers_saves(name: str, release: str, tmp_path: Path) -> None:
    case = case_named(name)
    folder = write_model(case, tmp_path)
    renamed(folder, SAVED[release])
    expected = [c["output_token_ids"][:4] for c in case["cases"]]
    assert greedy(folder, case) == expected


def test_a_head_that_is_not_stored_is_the_table(tmp_path: Path) -> None:
    case = case_named(LLAVA)
    folder = write_model(case, tmp_path)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tied = {**tensors, "language_model.lm_head.weight": tensors["language_model.model.embed_tokens.weight"]}
    save_file(tied, path)
    expected = greedy(folder, case)
    save_file({name: tensor for name, tensor in tied.items() if "lm_head" not in name}, path)
    assert greedy(folder, case) == expected


@pytest.mark.parametrize("whole", [False, None])
def test_a_stored_head_counts_where_the_whole_model_is_not_tied(whole: bool | None, tmp_path: Path) -> None:
    case = case_named(LLAVA)
    config = {**case["config"], "tie_word_embeddings": whole}
    config["text_config"] = {**config["text_config"], "tie_word_embeddings": True}
    folder = write_model({**case, "config": config}, tmp_path)
    expected = [c["output_token_ids"][:4] for c in case["cases"]]
    assert (greedy(folder, case) == expected) == (whole is False)


def test_a_head_may_lack_the_bias_of_the_text_family(tmp_path: Path) -> None:
    """As transformers saves LLaVA with Phi since 4.52; before, the head was Phi's own."""
    text = {"model_type": "phi", "vocab_size": 264, "hidden_size": 64, "intermediate_size": 96}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 512}
    case = case_named(LLAVA)
    config = {**case["config"], "text_config": text}
    shapes = {"lm_head": [264, 64], "model.embed_tokens": [264, 64], "model.final_layernorm": [64]}
    for i in range(2):
        layer = {"input_layernorm": [64], "mlp.fc1": [96, 64], "mlp.fc2": [64, 96], "self_attn.dense": [64, 64]}
        layer |= {f"self_attn.{x}_proj": [64, 64] for x in "qkv"}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    tensors = {name: of for name, of in case["tensors"].items() if not name.startswith("language_model.")}
    for name, shape in shapes.items():
        tensors[f"language_model.{name}.weight"] = spec(f"{name}.weight", shape)
        if "embed" not in name:
            tensors[f"language_model.{name}.bias"] = spec(f"{name}.bias", shape[:1])
    folder = write_model({**case, "config": config, "tensors": tensors}, tmp_path)
    path = folder / "model.safetensors"
    stored, bias = load_file(path), "language_model.lm_head.bias"
    stored[bias] *= 50
    save_file(stored, path)
    with_bias = greedy(folder, case)
    save_file({**stored, bias: np.zeros_like(stored[bias])}, path)
    without = greedy(folder, case)
    save_file({name: tensor for name, tensor in stored.items() if name != bias}, path)
    assert greedy(folder, case) == without != with_bias


def test_what_hidden_states_do_not_need_may_be_stored(tmp_path: Path) -> None:
    case = case_named("LlavaForConditionalGeneration--interleave-qwen")
    folder = write_model(case, tmp_path)
    path = folder / "model.safetensors"
    begin = "vision_tower.vision_model."
    more = [
        f"{begin}head.{n}" for n in ("probe", "attention.in_proj_weight", "attention.out_proj.bias", "mlp.fc1.bias")
    ]
    more.append(f"{begin}embeddings.position_ids")
    save_file({**load_file(path), **{name: np.zeros(3, np.float32) for name in more}}, path)
    assert greedy(folder, case) == [c["output_token_ids"][:4] for c in case["cases"]]


@pytest.mark.parametrize("states", [[-2, -1], [1, -2, 3], 0])
def test_other_layers_and_several(states: Any, tmp_path: Path) -> None:
    """Several lie side by side: projected by the sum of each one's share of the first layer."""
    case = case_named(LLAVA)
    config = {**case["config"], "vision_feature_layer": states}
    count = len(states) if isinstance(states, list) else 1
    tensors = dict(case["tensors"])
    first = tensors["multi_modal_projector.linear_1.weight"]
    tensors["multi_modal_projector.linear_1.weight"] = {**first, "shape": [64, 32 * count]}
    llm = load({**case, "config": config, "tensors": tensors}, tmp_path)
    assert llm.generate([prompt_of(case["cases"][0])], SamplingParams(max_tokens=1), use_tqdm=False)[0].outputs


def test_a_layer_that_the_tower_lacks() -> None:
    config = {**case_named(LLAVA)["config"], "vision_feature_layer": -5}
    with pytest.raises(CheckpointError, match="a tower of 3 layers has no hidden states -5"):
        build(find_architecture(config["architectures"]), config)


def test_an_unknown_tower_is_refused_by_name() -> None:
    config = case_named(LLAVA)["config"]
    changed = {**config, "vision_config": {**config["vision_config"], "model_type": "swin"}}
    with pytest.raises(UnsupportedModelError, match=r"vision_config\.model_type is 'swin'"):
        build(find_architecture(config["architectures"]), changed)


def test_a_config_that_leaves_out_what_the_classes_have(tmp_path: Path) -> None:
    """As llava-1.5-7b-hf's does: the class has num_key_value_heads, hidden_act, norms and more."""
    case = case_named(LLAVA)
    left_out = {"vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act", "model_type"}
    config = {key: value for key, value in case["config"].items() if key not in left_out}
    config["text_config"] = {k: v for k, v in config["text_config"].items() if k not in ("architectures", "model_type")}
    config["vision_config"] = {k: v for k, v in config["vision_config"].items() if k != "model_type"}
    agrees({**case, "config": config}, tmp_path)


@pytest.mark.parametrize(
    ("row", "config_class"),
    [
        ("LlavaForConditionalGeneration", LlavaConfig),
        ("LlavaNextForConditionalGeneration", LlavaNextConfig),
        ("LlavaNextVideoForConditionalGeneration", LlavaNextVideoConfig),
        ("LlavaOnevisionForConditionalGeneration", LlavaOnevisionConfig),
        ("PaliGemmaForConditionalGeneration", PaliGemmaConfig),
    ],
)
def test_defaults_are_the_config_class_s(row: str, config_class: Any) -> None:
    whole, defaults = config_class().to_dict(), dict(find_architecture([row]).defaults)
    for section in ("vision_config", "text_config"):
        inside = defaults.pop(section, {})
        assert {key: whole[section][key] for key in inside} == inside
    assert {key: whole[key] for key in defaults} == defaults
