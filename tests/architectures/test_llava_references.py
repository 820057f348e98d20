"""LLaVA and its kind against transformers' own modules, with settings and shapes that no golden case has."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from octavo import LLM, SamplingParams
from octavo.architectures import find_architecture
from octavo.media.feature import Processed
from octavo.media.processor import read_processor_files

pytestmark = pytest.mark.slow

IMAGE, VIDEO, SIDE = 290, 291, 56
CLIP = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
CLIP |= {"num_attention_heads": 2, "image_size": SIDE, "patch_size": 14}
SIGLIP = {**CLIP, "model_type": "siglip_vision_model", "vision_use_head": False}
TILES = [[SIDE * rows, SIDE * columns] for rows in range(1, 5) for columns in range(1, 5)]
PREPROCESSOR = {
    **dict.fromkeys(("do_resize", "do_normalize", "do_rescale"), True),
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": SIDE, "width": SIDE},
}
TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 1024}


def noise(*shape: int) -> Any:
    return np.random.default_rng(shape).integers(0, 255, shape, dtype=np.uint8)


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    return [Image.fromarray(noise(height, width, 3)) for width, height in sizes]


def inputs(processed: Processed, row: str) -> dict[str, torch.Tensor]:
    """Features as transformers' modules take them."""
    made: dict[str, torch.Tensor] = {}
    for name in ("pixel_values", "pixel_values_videos", "image_sizes"):
        arrays = [f.data[name] for f in processed.features if name in f.data]
        if arrays and name == "pixel_values" and arrays[0].ndim == 4:
            most = max(map(len, arrays))
            arrays = [np.concatenate([a, np.zeros((most - len(a), *a.shape[1:]), a.dtype)]) for a in arrays]
        if arrays:
            made[name] = torch.from_numpy(np.stack(arrays))
    if "pixel_values" in made and "Onevision" in row:
        made["batch_num_images"] = torch.tensor([len(made["pixel_values"])])
    return made


def agrees(config: Any, row: str, prompts: list[dict[str, Any]], folder: Path) -> None:
    """A random model of this config, as transformers saves it, answers as transformers' own does."""
    torch.manual_seed(1)
    reference = getattr(hf, row)(config).eval()
    for name, parameter in reference.named_parameters():
        is_norm = "norm" in name and name.endswith("weight")
        torch.nn.init.normal_(parameter, 1.0 if is_norm else 0.0, 0.1 if is_norm else 0.2)
    reference.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    llm = LLM(str(folder), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="32MiB")
    outputs = llm.generate(prompts, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    values = json.loads((folder / "config.json").read_text())
    architecture = find_architecture([row])
    processor = architecture.processor(architecture.config(values))(read_processor_files(folder, values))
    for prompt, output in zip(prompts, outputs, strict=True):
        media = prompt.get("multi_modal_data", {})
        processed = processor(prompt["prompt_token_ids"], media.get("image", ()), media.get("video", ()))
        assert output.prompt_token_ids == processed.token_ids
        with torch.inference_mode():
            logits = reference(input_ids=torch.tensor([processed.token_ids]), **inputs(processed, row)).logits
        expected = torch.log_softmax(logits[0].float(), -1)
        for i, token in enumerate(processed.token_ids[1:]):
            assert output.prompt_logprobs[i + 1][token].logprob == pytest.approx(float(expected[i, token]), abs=5e-5)


def with_pictures(*groups: list[Image.Image]) -> list[dict[str, Any]]:
    """A prompt for each group, and one of text alone."""
    prompts: list[dict[str, Any]] = [{"prompt_token_ids": [1, 5, 6, 7]}]
    for group in groups:
        places = [token for i in range(len(group)) for token in (IMAGE, 11 + i)]
        prompts.append({"prompt_token_ids": [1, 9, *places, 20], "multi_modal_data": {"image": group}})
    return prompts


@pytest.mark.parametrize(
    "text",
    [
        {"model_type": "mistral", "sliding_window": 8},
        {"model_type": "qwen2", "tie_word_embeddings": True},
        {"model_type": "phi"},
        {"model_type": "phi3", "pad_token_id": 0},
        {"model_type": "gpt_neox"},
        {"model_type": "granite", "embedding_multiplier": 3.0},
        {"model_type": "stablelm"},
    ],
    ids=lambda text: text["model_type"],
)
def test_texts(text: dict[str, Any], tmp_path: Path) -> None:
    tied = text.get("tie_word_embeddings", False)
    config = hf.LlavaConfig(
        text_config={**TEXT, **text}, vision_config=CLIP, image_token_index=IMAGE, tie_word_embeddings=tied
    )
    prompts = with_pictures(pictures((70, 50)), pictures((30, 90), (56, 56)))
    agrees(config, "LlavaForConditionalGeneration", prompts, tmp_path)


@pytest.mark.parametrize(
    ("vision", "changed"),
    [
        (CLIP, {"vision_feature_layer": [-3, -1]}),
        (CLIP, {"vision_feature_layer": 1}),
        (CLIP, {"vision_feature_select_strategy": "full"}),
        (CLIP, {"multimodal_projector_bias": False, "projector_hidden_act": "relu"}),
        (SIGLIP, {"vision_feature_layer": -1}),
    ],
)
def test_features(vision: dict[str, Any], changed: dict[str, Any], tmp_path: Path) -> None:
    text = {**TEXT, "model_type": "llama"}
    config = hf.LlavaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE, **changed)
    agrees(config, "LlavaForConditionalGeneration", with_pictures(pictures((70, 50))), tmp_path)


TALL_AND_FLAT = [(200, 30), (31, 300), (57, 55), (113, 111), (1, 50), (640, 480), (225, 224)]


@pytest.mark.parametrize("changed", [{}, {"vision_feature_layer": [-2, -1]}, {"image_grid_pinpoints": TILES[3:9]}])
def test_tiles(changed: dict[str, Any], tmp_path: Path) -> None:
    text, tiles = {**TEXT, "model_type": "llama"}, {"image_grid_pinpoints": TILES[1:6], **changed}
    config = hf.LlavaNextConfig(text_config=text, vision_config=CLIP, image_token_index=IMAGE, **tiles)
    groups = [pictures(size) for size in TALL_AND_FLAT]
    prompts = with_pictures(*groups, groups[0] + groups[3])
    agrees(config, "LlavaNextForConditionalGeneration", prompts, tmp_path)


FILMS = [
    {"prompt_token_ids": [1, 9, VIDEO, 7, 8], "multi_modal_data": {"video": [noise(frames, height, width, 3)]}}
    for frames, height, width in ((3, 60, 80), (1, 56, 56), (7, 100, 40))
]


@pytest.mark.parametrize("changed", [{"spatial_pool_mode": "max"}, {"spatial_pool_stride": 3}])
def test_pooled_films(changed: dict[str, Any], tmp_path: Path) -> None:
    tokens = {"image_token_index": IMAGE, "video_token_index": VIDEO}
    config = hf.LlavaNextVideoConfig(
        text_config={**TEXT, "model_type": "llama"}, vision_config=CLIP, **tokens, **changed
    )
    agrees(config, "LlavaNextVideoForConditionalGeneration", FILMS, tmp_path)


@pytest.mark.parametrize("most", [1, 4])
def test_grids_that_are_made_smaller(most: int, tmp_path: Path) -> None:
    tokens = {"image_token_index": IMAGE, "video_token_index": VIDEO}
    config = hf.LlavaOnevisionConfig(
        text_config={**TEXT, "model_type": "qwen2"},
        vision_config=SIGLIP,
        vision_aspect_ratio=f"anyres_max_{most}",
        image_grid_pinpoints=TILES,
        **tokens,
    )
    prompts = [*with_pictures(*(pictures(size) for size in TALL_AND_FLAT)), *FILMS]
    agrees(config, "LlavaOnevisionForConditionalGeneration", prompts, tmp_path)
