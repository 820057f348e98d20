"""Families with media against transformers' own modules: sizes, shapes and settings that no golden case has."""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from octavo import LLM, SamplingParams
from octavo.architectures import find_architecture
from octavo.errors import CheckpointError
from octavo.media.feature import Processed
from octavo.media.processor import read_processor_files
from octavo.media.sounds import Sound
from tests.architectures.published import build
from tests.architectures.test_axial_towers import AXIAL, changed
from tests.golden import case_named, write_model

pytestmark = pytest.mark.slow

Prompt = dict[str, Any]
LIMITS = dict.fromkeys(("image", "video", "audio"), 4)
ARGUMENTS = {"image_patches": "pixel_values"}
"""What transformers' modules call features."""


def noise(*shape: int) -> Any:
    return np.random.default_rng(shape).integers(0, 255, shape, dtype=np.uint8)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(noise(height, width, 3))


def prompt(*parts: int | list[int], **media: list[Any]) -> Prompt:
    ids = [token for part in parts for token in (part if isinstance(part, list) else [part])]
    return {"prompt_token_ids": ids, **({"multi_modal_data": media} if media else {})}


def inputs(processed: Processed, more: list[int], values: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Tokens and features as transformers' modules take them."""
    ids = torch.tensor([processed.token_ids + more])
    arrays: dict[str, list[torch.Tensor]] = {}
    for feature in processed.features:
        for name, array in feature.data.items():
            arrays.setdefault(ARGUMENTS.get(name, name), []).append(torch.from_numpy(array.copy()))
    made: dict[str, torch.Tensor] = {"input_ids": ids}
    for name, each in arrays.items():
        if name == "pixel_values" and "image_sizes" in arrays:
            sides = [max(pixels.shape[axis] for pixels in each) for axis in (1, 2)]
            each = [torch.nn.functional.pad(p, (0, sides[1] - p.shape[2], 0, sides[0] - p.shape[1])) for p in each]
        made[name] = torch.stack(each)
    return made


def reference_of(row: str, values: dict[str, Any]) -> Any:
    """transformers' model of a config, with random weights."""
    torch.manual_seed(0)
    config_class = getattr(hf, row).config_class
    reference = getattr(hf, row)(config_class(**values)).eval()
    for path, parameter in reference.named_parameters():
        is_norm = ("norm" in path.lower() or "ln_" in path) and path.endswith("weight")
        torch.nn.init.normal_(parameter, 1.0 if is_norm else 0.0, 0.2)
    return reference


def before_placeholders(tokens: Iterable[int], placeholders: frozenset[int]) -> Iterator[int]:
    """The tokens of an answer up to one that transformers' modules would take for a place of media."""
    return itertools.takewhile(lambda token: token not in placeholders, tokens)


def agrees(
    name: str,
    change: dict[str, Any],
    prompts: list[Prompt],
    folder: Path,
    original: bool = True,
    settings: dict[str, Any] | None = None,
) -> None:
    """A golden case's model with a changed config and random weights answers as transformers' does."""
    case, row = case_named(name), name.split("--")[0]
    write_model(case, folder)
    (folder / "model.safetensors").unlink()
    values = {k: v for k, v in changed(case["config"], change).items() if k != "architectures"}
    reference = reference_of(row, values)
    if name == MLLAMA:  # whose layers' states transformers takes behind the layer, and all others before it
        tower = reference.model.vision_model
        tower.intermediate_layers_indices = [i - 1 for i in tower.intermediate_layers_indices]
    reference.save_pretrained(folder, save_original_format=original)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | (settings or {})))
    saved = json.loads((folder / "config.json").read_text())
    llm = LLM(str(folder), dtype="float32", kv_cache_memory="32MiB", limit_mm_per_prompt=LIMITS)
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=0, ignore_eos=True)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    architecture = find_architecture([row])
    assert architecture.processor is not None
    processor = architecture.processor(architecture.config(saved))(
        read_processor_files(folder, saved), llm.get_tokenizer()
    )
    for given, output in zip(prompts, outputs, strict=True):
        media = {f"{kind}s": items for kind, items in given.get("multi_modal_data", {}).items()}
        processed, answer = processor(given["prompt_token_ids"], **media), output.outputs[0]
        more = list(before_placeholders(answer.token_ids, processor.placeholders()))
        assert output.prompt_token_ids == processed.token_ids
        with torch.inference_mode():
            arguments = INPUTS.get(name, inputs)(processed, more, saved)
            model = reference.language_model if name == BLIP2 and not media else reference
            logits = model(**arguments).logits
        expected = torch.log_softmax(logits[0].float(), -1)
        for i, token in enumerate(processed.token_ids[1:]):
            if token >= expected.shape[1]:
                continue
            assert output.prompt_logprobs[i + 1][token].logprob == pytest.approx(
                float(expected[i, token]), rel=3e-5, abs=1e-4
            )
        for row_of, step in zip(expected[len(processed.token_ids) - 1 :], answer.logprobs, strict=False):
            for token, entry in step.items():
                assert entry.logprob == pytest.approx(float(row_of[token]), rel=3e-5, abs=1e-4)


def qwen2_vl_inputs(processed: Processed, more: list[int], values: dict[str, Any]) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = {"input_ids": torch.tensor([processed.token_ids + more])}
    for name in ("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw"):
        arrays = [torch.from_numpy(f.data[name].copy()) for f in processed.features if name in f.data]
        if arrays:
            made[name] = torch.cat(arrays) if name.startswith("pixel") else torch.stack(arrays)
    ids = torch.tensor([processed.token_ids + [0] * len(more)])
    made["mm_token_type_ids"] = (ids == values["image_token_id"]).long() + 2 * (ids == values["video_token_id"])
    return made


def mllama_inputs(processed: Processed, more: list[int], values: dict[str, Any]) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = {"input_ids": torch.tensor([processed.token_ids + more])}
    features = processed.features
    if not features:
        return made
    for name in features[0].data:
        made[name] = torch.from_numpy(np.stack([f.data[name] for f in features])).unsqueeze(0)
    made["aspect_ratio_ids"] = made["aspect_ratio_ids"].squeeze(-1)
    sees = torch.zeros(1, made["input_ids"].shape[1], len(features), len(features[0].data["aspect_ratio_mask"]))
    for i, feature in enumerate(features):
        begin, end = feature.visible
        sees[:, begin:end, i, : int(feature.data["aspect_ratio_mask"].sum())] = 1
    return {**made, "cross_attention_mask": sees.long()}


QWEN2_VL = "Qwen2VLForConditionalGeneration--7b"
SEEN = [5, 8, 6]
FILM = [5, 9, 6]


def qwen2_vl_prompts() -> list[Prompt]:
    pictures = [picture(70, 50), picture(200, 31), picture(28, 28), picture(33, 140)]
    films = [noise(frames, height, width, 3) for frames, height, width in ((3, 60, 80), (1, 56, 112), (4, 100, 90))]
    return [
        prompt(30, 31, 32, 33),
        prompt(SEEN, 40, image=pictures[:1]),
        prompt(31, SEEN, SEEN, 40, SEEN, 41, SEEN, image=pictures),
        prompt(31, FILM, 40, FILM, video=films[:2]),
        prompt(FILM, 40, SEEN, FILM, SEEN, 33, 34, image=pictures[1:3], video=films[1:]),
    ]


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize(
    ("change", "settings"),
    [
        ({"vision_config": {"spatial_merge_size": 1}}, {"merge_size": 1, "min_pixels": 784}),
        ({"vision_config": {"spatial_merge_size": 3, "patch_size": 10}}, {"merge_size": 3, "patch_size": 10}),
        ({"vision_config": {"temporal_patch_size": 1}}, {"temporal_patch_size": 1}),
        ({"vision_config": {"temporal_patch_size": 4, "depth": 1}}, {"temporal_patch_size": 4}),
        ({"vision_config": {"num_heads": 1, "embed_dim": 48, "mlp_ratio": 2}}, {"max_pixels": 6000}),
        ({"num_key_value_heads": 4, "rope_scaling": {"type": "mrope", "mrope_section": [1, 3, 4]}}, {}),
        ({"num_key_value_heads": 1, "rope_scaling": {"type": "mrope", "mrope_section": [6, 1, 1]}}, {}),
        ({"num_attention_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}, {}),
        ({"tie_word_embeddings": True, "rope_theta": 100.0}, {"image_mean": [0.1] * 3}),
        ({"rope_scaling": {"rope_type": "default", "type": "default", "mrope_section": [2, 3, 3]}}, {}),
    ],
    ids=str,
)
def test_qwen2_vl(change: dict[str, Any], settings: dict[str, Any], original: bool, tmp_path: Path) -> None:
    agrees(QWEN2_VL, change, qwen2_vl_prompts(), tmp_path, original, settings)


QWEN2_AUDIO = "Qwen2AudioForConditionalGeneration--7b"


def sound(samples: int) -> Any:
    return Sound(np.random.default_rng(samples).standard_normal(samples).astype(np.float32), 16000)


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize(
    ("change", "settings"),
    [
        ({}, {}),
        ({"audio_config": {"max_source_positions": 50}}, {"chunk_length": 1, "n_samples": 16000, "nb_max_frames": 100}),
        ({"audio_config": {"num_mel_bins": 20, "d_model": 48, "encoder_layers": 1}}, {"feature_size": 20}),
        ({"audio_config": {"encoder_attention_heads": 4, "activation_function": "relu"}}, {}),
        ({"audio_config": {"scale_embedding": True}}, {}),
        ({"text_config": {"num_key_value_heads": 2, "rope_theta": 50.0}}, {}),
        ({"text_config": {"num_attention_heads": 2, "num_key_value_heads": 1}}, {}),
        ({"text_config": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}}, {}),
    ],
    ids=str,
)
def test_qwen2_audio(change: dict[str, Any], settings: dict[str, Any], original: bool, tmp_path: Path) -> None:
    bos, heard = 9, [9, 8, 10]
    sounds = [sound(n) for n in (4000, 15999, 16000, 480, 3200)]
    prompts = [
        prompt(30, 31, 32, 33),
        prompt(bos, 8, 10, 40, audio=sounds[:1]),
        prompt(31, heard, 40, heard, 41, heard, 42, heard, 33, audio=sounds[1:]),
    ]
    agrees(QWEN2_AUDIO, change, prompts, tmp_path, original, settings)


BLIP2 = "Blip2ForConditionalGeneration--opt-2.7b"


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize(
    ("change", "settings"),
    [
        ({"qformer_config": {"cross_attention_frequency": 1}}, {}),
        ({"qformer_config": {"cross_attention_frequency": 4, "num_hidden_layers": 6}}, {}),
        ({"qformer_config": {"hidden_size": 48, "num_attention_heads": 3, "layer_norm_eps": 0.01}}, {}),
        ({"num_query_tokens": 1, "vision_config": {"num_attention_heads": 4, "intermediate_size": 80}}, {}),
        ({"vision_config": {"image_size": 84, "patch_size": 28}}, {"size": {"height": 84, "width": 84}}),
        ({"vision_config": {"qkv_bias": False}, "text_config": {"enable_bias": False}}, {}),
        ({"text_config": {"do_layer_norm_before": False, "ffn_dim": 80}}, {}),
        ({"text_config": {"activation_function": "gelu", "layer_norm_elementwise_affine": False}}, {}),
    ],
    ids=str,
)
def test_blip2(change: dict[str, Any], settings: dict[str, Any], original: bool, tmp_path: Path) -> None:
    shapes = [(91, 50), (20, 300), (57, 56)]
    prompts = [prompt(2, 30, 31, 32), *(prompt(2, 30, 40 + n, image=[picture(n, m)]) for n, m in shapes)]
    agrees(BLIP2, change, prompts, tmp_path, original, settings)


FUYU = "FuyuForCausalLM--8b"


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize(
    ("change", "settings"),
    [
        ({}, {}),
        ({"patch_size": 7}, {"patch_size": {"height": 7, "width": 7}}),
        ({"rope_theta": 100.0, "num_attention_heads": 4}, {"size": {"height": 25, "width": 25}}),
        ({"partial_rotary_factor": 0.25}, {}),
        ({"qk_layernorm": False, "hidden_act": "gelu"}, {"padding_value": 0}),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "layer_norm_eps": 0.01}, {}),
        ({"tie_word_embeddings": True}, {}),
    ],
    ids=str,
)
def test_fuyu(change: dict[str, Any], settings: dict[str, Any], original: bool, tmp_path: Path) -> None:
    shapes = [(60, 40), (61, 41), (9, 33), (300, 20), (11, 290), (120, 80)]
    prompts = [prompt(1, 30, 31, 32), *(prompt(1, 30, 40 + n % 50, image=[picture(n, m)]) for n, m in shapes)]
    agrees(FUYU, change, prompts, tmp_path, original, settings)


PIXTRAL = "LlavaForConditionalGeneration--pixtral-hf"


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize(
    ("change", "settings"),
    [
        (
            {"vision_config": {"num_attention_heads": 1, "head_dim": 32, "patch_size": 8}},
            {"patch_size": {"height": 8, "width": 8}},
        ),
        ({"vision_config": {"image_size": 96, **AXIAL}}, {"size": {"longest_edge": 96}}),
        ({"vision_feature_select_strategy": "full", "projector_hidden_act": "relu"}, {}),
        ({"text_config": {"model_type": "llama", "head_dim": 32, "tie_word_embeddings": True}}, {}),
        ({"text_config": {"model_type": "mistral", "sliding_window": 7}}, {}),
        ({"text_config": {"model_type": "gemma", "head_dim": 16}}, {}),
    ],
    ids=str,
)
def test_pixtral(change: dict[str, Any], settings: dict[str, Any], original: bool, tmp_path: Path) -> None:
    pictures = [picture(*size) for size in ((64, 64), (65, 17), (300, 20), (15, 90), (1, 1), (48, 33))]
    prompts = [
        prompt(1, 30, 31, 32),
        prompt(1, 10, 40, image=pictures[:1]),
        prompt(1, 10, 10, 41, 10, 42, 10, image=pictures[1:5]),
        prompt(1, 33, 10, 10, image=pictures[4:]),
    ]
    agrees(PIXTRAL, change, prompts, tmp_path, original, settings)


MLLAMA = "MllamaForConditionalGeneration--11b-vision"
INPUTS = {QWEN2_VL: qwen2_vl_inputs, MLLAMA: mllama_inputs}


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize(
    ("change", "settings"),
    [
        ({}, {}),
        ({"vision_config": {"num_global_layers": 1, "num_hidden_layers": 4, "norm_eps": 0.01}}, {}),
        ({"vision_config": {"intermediate_layers_indices": [3], "vision_output_dim": 64}}, {}),
        ({"vision_config": {"intermediate_layers_indices": [3, 1, 2], "vision_output_dim": 128}}, {}),
        (
            {"vision_config": {"image_size": 42, "hidden_act": "gelu_pytorch_tanh"}},
            {"size": {"height": 42, "width": 42}},
        ),
        ({"vision_config": {"attention_heads": 4, "intermediate_size": 80}}, {}),
        (
            {"vision_config": {"max_num_tiles": 2, "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]}},
            {"max_image_tiles": 2},
        ),
        ({"text_config": {"cross_attention_layers": [0, 4], "num_key_value_heads": 4}}, {}),
        ({"text_config": {"cross_attention_layers": [2], "num_attention_heads": 2, "num_key_value_heads": 1}}, {}),
        ({"text_config": {"hidden_act": "gelu", "rms_norm_eps": 0.01, "rope_theta": 50.0}}, {}),
    ],
    ids=str,
)
def test_mllama(change: dict[str, Any], settings: dict[str, Any], original: bool, tmp_path: Path) -> None:
    pictures = [picture(*size) for size in ((28, 28), (120, 30), (20, 90), (57, 56), (1, 1), (200, 210))]
    prompts = [
        prompt(1, 30, 31, 32),
        *(prompt(288, 1, 40 + i, 30, image=[each]) for i, each in enumerate(pictures)),
        prompt(288, 1, 30, 288, 31, 32, image=pictures[1:3]),
        prompt(288, 288, 1, 288, 31, 32, image=pictures[2:5]),
    ]
    agrees(MLLAMA, change, prompts, tmp_path, original, settings)


@pytest.mark.parametrize(
    "vision",
    [{"intermediate_layers_indices": [1, 4]}, {"intermediate_layers_indices": [1]}, {"vision_output_dim": 64}],
    ids=str,
)
def test_states_that_a_tower_lacks(vision: dict[str, Any]) -> None:
    values = changed(case_named(MLLAMA)["config"], {"vision_config": vision})
    with pytest.raises(CheckpointError, match=r"intermediate_layers_indices|vision_output_dim"):
        build(find_architecture(values["architectures"]), values)
