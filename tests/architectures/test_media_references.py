"""Families with media against transformers' own modules: sizes, shapes and settings that no golden case has."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.architectures import find_architecture
from octavo.errors import CheckpointError
from octavo.media.sounds import Sound
from tests.architectures.media_references import (
    BLIP2,
    IDEFICS3,
    MLLAMA,
    QWEN2_VL,
    Prompt,
    agrees,
    noise,
    picture,
    prompt,
)
from tests.architectures.published import build
from tests.architectures.test_axial_towers import AXIAL, changed
from tests.golden import case_named

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize(
    ("change", "settings", "tokens"),
    [
        ({}, {}, 4),
        ({}, {"do_image_splitting": False}, 4),
        ({"scale_factor": 4}, {"size": {"longest_edge": 84}}, 1),
        ({"scale_factor": 1, "tie_word_embeddings": True}, {}, 16),
        ({"scale_factor": 3, "vision_config": {"image_size": 42}}, {"max_image_size": {"longest_edge": 42}}, 4),
        ({"vision_config": {"num_attention_heads": 4, "hidden_act": "gelu", "layer_norm_eps": 0.01}}, {}, 4),
        ({"text_config": {"model_type": "mistral", "sliding_window": 9}}, {}, 4),
        ({"text_config": {"num_key_value_heads": 2, "tie_word_embeddings": True}}, {}, 4),
        ({"text_config": {"model_type": "qwen2"}}, {"size": {"longest_edge": 28}}, 4),
    ],
    ids=str,
)
def test_idefics3(
    change: dict[str, Any], settings: dict[str, Any], tokens: int, original: bool, tmp_path: Path
) -> None:
    pictures = [picture(*size) for size in ((28, 28), (120, 30), (20, 90), (57, 56))]
    prompts = [
        prompt(0, 80, 81, 82),
        *(prompt(0, 80, 274, 81 + i, 30, image=[each]) for i, each in enumerate(pictures)),
        prompt(0, 274, 81, 274, 30, image=pictures[1:3]),
    ]
    agrees(IDEFICS3, change, prompts, tmp_path, original, settings, {"image_seq_len": tokens})


CHAMELEON = "ChameleonForConditionalGeneration--7b"


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"swin_norm": True},
        {"attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 1, "num_attention_heads": 4},
        {"vq_config": {"attn_resolutions": [8]}},
        {"vq_config": {"num_res_blocks": 2, "channel_multiplier": [1, 2, 2], "embed_dim": 8}},
        {"vq_config": {"latent_channels": 24, "attn_resolutions": [16, 4]}},
        {"vq_config": {"attn_type": "none", "attn_resolutions": [8]}},
        {"tie_word_embeddings": True, "rope_theta": 50.0, "rms_norm_eps": 0.01},
    ],
    ids=str,
)
def test_chameleon(change: dict[str, Any], original: bool, tmp_path: Path) -> None:
    pictures = [picture(*size) for size in ((28, 28), (120, 30), (20, 90))]
    prompts = [
        prompt(0, 80, 81, 82),
        *(prompt(0, 80, 39, 81 + i, 90, image=[each]) for i, each in enumerate(pictures)),
        prompt(0, 39, 81, 39, 100, image=pictures[1:3]),
    ]
    agrees(CHAMELEON, change, prompts, tmp_path, original)
