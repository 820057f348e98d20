"""Qwen2-VL and LLaVA with Pixtral's tower against transformers' own modules, with settings that no golden case has."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from octavo import LLM, SamplingParams
from octavo.architectures import find_architecture
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.media.feature import Processed
from tests.architectures.published import build
from tests.golden import case_named, prompt_of, write_model
from tests.media.cases import load as load_processor
from tests.media.cases import media

QWEN, PIXTRAL = "Qwen2VLForConditionalGeneration--7b", "LlavaForConditionalGeneration--pixtral-hf"
YARN = {"type": "yarn", "mrope_section": [2, 3, 3], "factor": 4.0, "original_max_position_embeddings": 64}
"""As Qwen2-VL's page has it for long texts."""
AXIAL = {"rope_parameters": {"rope_type": "axial", "rope_theta": 50.0}}


def changed(values: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """A config with some values changed, sections key by key."""
    sections = {k: changed(values[k], v) for k, v in change.items() if isinstance(v, dict) and k.endswith("_config")}
    return {**values, **change, **sections}


def inputs(processed: Processed, values: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Tokens and features as transformers' modules take them."""
    ids = torch.tensor([processed.token_ids])
    arrays: dict[str, list[torch.Tensor]] = {}
    for feature in processed.features:
        for name, array in feature.data.items():
            arrays.setdefault(name, []).append(torch.from_numpy(array.copy()))
    made = {name: torch.stack(each) for name, each in arrays.items() if not name.startswith("pixel_values")}
    pixels = {name: each for name, each in arrays.items() if name.startswith("pixel_values")}
    if "image_sizes" in made:
        height, width = made["image_sizes"].amax(0).tolist()
        padded = torch.zeros(len(pixels["pixel_values"]), 3, height, width)
        for place, picture in zip(padded, pixels["pixel_values"], strict=True):
            place[:, : picture.shape[1], : picture.shape[2]] = picture
        return {**made, "input_ids": ids, "pixel_values": padded}
    made |= {name: torch.cat(each) for name, each in pixels.items()}
    if "video_token_id" in values:
        made["mm_token_type_ids"] = (ids == values["image_token_id"]).long() + 2 * (ids == values["video_token_id"])
    return {**made, "input_ids": ids}


@pytest.mark.slow
@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        (QWEN, {"tie_word_embeddings": True, "vision_config": {"hidden_act": "gelu", "mlp_ratio": 3}}),
        (QWEN, {"rope_scaling": {"type": "mrope", "mrope_section": [4, 2, 2]}, "vision_config": AXIAL}),
        (QWEN, {"max_position_embeddings": 256, "rope_scaling": YARN}),
        (QWEN, {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}),
        (PIXTRAL, {"vision_feature_layer": -2, "vision_config": {"num_hidden_layers": 3, **AXIAL}}),
        (PIXTRAL, {"vision_feature_layer": [-1, 0, 1], "multimodal_projector_bias": False}),
        (PIXTRAL, {"text_config": {"model_type": "qwen2"}, "vision_config": {"hidden_act": "gelu"}}),
    ],
    ids=str,
)
def test_as_transformers_saves_them(name: str, change: dict[str, Any], original: bool, tmp_path: Path) -> None:
    case, row = case_named(name), name.split("--")[0]
    write_model(case, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    values = {k: v for k, v in changed(case["config"], change).items() if k != "architectures"}
    torch.manual_seed(0)
    reference = getattr(hf, row)(getattr(hf, row.replace("ForConditionalGeneration", "Config"))(**values)).eval()
    for path, parameter in reference.named_parameters():
        is_norm = ("norm" in path or "ln_" in path) and path.endswith("weight")
        torch.nn.init.normal_(parameter, 1.0 if is_norm else 0.0, 0.2)
    reference.save_pretrained(tmp_path, save_original_format=original)
    saved = json.loads((tmp_path / "config.json").read_text())
    processor = load_processor({**case, "config": saved}, tmp_path / "processor")
    llm = LLM(str(tmp_path), dtype="float32", kv_cache_memory="32MiB", limit_mm_per_prompt={"image": 4, "video": 4})
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    outputs = llm.generate([prompt_of(prompt) for prompt in case["cases"]], params, use_tqdm=False)
    for prompt, output in zip(case["cases"], outputs, strict=True):
        processed = processor(prompt["prompt_token_ids"], **media(prompt))
        assert output.prompt_token_ids == processed.token_ids
        with torch.inference_mode():
            logits = reference(**inputs(processed, saved)).logits
        expected = torch.log_softmax(logits[0].float(), -1)
        for i, token in enumerate(processed.token_ids[1:]):
            assert output.prompt_logprobs[i + 1][token].logprob == pytest.approx(float(expected[i, token]), abs=5e-5)


@pytest.mark.parametrize("name", [QWEN, PIXTRAL])
@pytest.mark.parametrize("rope", [{"rope_type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 2.0}])
def test_towers_have_no_stretched_rope(name: str, rope: dict[str, Any]) -> None:
    values = changed(case_named(name)["config"], {"vision_config": {"rope_parameters": rope}})
    with pytest.raises(UnsupportedModelError, match="axial"):
        build(find_architecture(values["architectures"]), values)


@pytest.mark.parametrize("layers", [3, -4, [], [-1, 3]])
def test_layers_that_a_tower_lacks(layers: Any) -> None:
    values = changed(case_named(PIXTRAL)["config"], {"vision_feature_layer": layers})
    with pytest.raises(CheckpointError, match="vision_feature_layer"):
        build(find_architecture(values["architectures"]), values)
