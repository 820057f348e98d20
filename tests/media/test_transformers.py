"""Where transformers has a processor that needs no torchvision, ours gives the same on sizes that no case has."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from octavo.media.mel import LogMel
from octavo.media.pictures import decode_picture
from octavo.media.sounds import Sound
from tests.media.cases import load, media, path_of, read_case

CASES = {
    "Blip2ForConditionalGeneration": ("blip", "Blip"),
    "ChameleonForConditionalGeneration": ("chameleon", "Chameleon"),
    "FuyuForCausalLM": ("fuyu", "Fuyu"),
    "Idefics3ForConditionalGeneration": ("idefics3", "Idefics3"),
    "LlavaForConditionalGeneration--1.5-7b": ("clip", "CLIP"),
    "LlavaForConditionalGeneration--interleave-qwen": ("siglip", "Siglip"),
    "LlavaForConditionalGeneration--pixtral-hf": ("pixtral", "Pixtral"),
    "LlavaNextForConditionalGeneration--v1.6": ("llava_next", "LlavaNext"),
    "LlavaOnevisionForConditionalGeneration": ("llava_onevision", "LlavaOnevision"),
    "MllamaForConditionalGeneration--11b": ("mllama", "Mllama"),
    "PaliGemmaForConditionalGeneration": ("siglip", "Siglip"),
    "Qwen2VLForConditionalGeneration--7b": ("qwen2_vl", "Qwen2VL"),
    "Qwen2_5_VLForConditionalGeneration--7b": ("qwen2_vl", "Qwen2VL"),
}
SIZES = [
    (1, 1), (1, 9), (7, 5), (13, 200), (200, 13), (28, 28), (29, 56), (56, 29), (57, 55), (64, 64), (97, 101),
    (120, 33), (33, 120), (55, 56), (111, 113), (168, 56), (169, 57), (250, 250), (300, 200), (31, 240),
]  # fmt: skip


def reference(row: str) -> Any:
    module, name = CASES[row]
    made = getattr(
        importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}"),
        f"{name}ImageProcessorPil",
    )
    return made.from_dict(read_case_preprocessor(row))


def read_case_preprocessor(row: str) -> dict[str, Any]:
    text = read_case(path_of(row))["files"]["preprocessor_config.json"]
    config: dict[str, Any] = json.loads(text) if isinstance(text, str) else text
    return config


def noisy(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(size[0] * 1000 + size[1])
    picture = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    return picture if mode == "RGB" else picture.convert(mode)


def first(value: Any) -> Any:
    """The only item of a batch, whatever it is nested in."""
    value = np.asarray(value)
    while value.ndim and value.shape[0] == 1:
        value = value[0]
    return value


@pytest.mark.parametrize("row", CASES)
def test_pictures_of_all_sizes(row: str, tmp_path: Path) -> None:
    ours, theirs = load(read_case(path_of(row)), tmp_path), reference(row)
    key = "image_patches" if row.startswith("Fuyu") else "pixel_values"
    for size in SIZES:
        if row.startswith("Fuyu"):
            size = max(size[0], 2), max(size[1], 2)  # below, theirs rounds a shrunk edge to nothing
        picture = noisy(size)
        got, _ = ours.image(picture, 0, 1)
        if key == "image_patches":
            want = fuyu_patches(theirs, picture)
        else:
            want = theirs(picture, return_tensors="np")[key]
        assert first(got[key]).shape == first(want).shape, size
        np.testing.assert_allclose(first(got[key]), first(want), atol=2e-6, err_msg=str(size))


def fuyu_patches(theirs: Any, picture: Image.Image) -> Any:
    """Theirs are padded to the largest size, and cut to patches only with a tokenizer at hand."""
    encoded = theirs(picture)
    pixels = np.asarray(encoded["images"][0][0])
    edge = theirs.patch_size["height"]
    height, width = (int(-(-int(encoded[f"image_unpadded_{e}s"][0][0]) // edge) * edge) for e in ("height", "width"))
    return theirs.patchify_image(pixels[None, :, :height, :width])


def test_several_pictures_of_onevision(tmp_path: Path) -> None:
    row = "LlavaOnevisionForConditionalGeneration"
    ours, theirs = load(read_case(path_of(row)), tmp_path), reference(row)
    pictures = [noisy(s) for s in ((48, 84), (99, 55), (20, 21))]
    want = theirs([pictures], return_tensors="np")["pixel_values"]
    got = [ours.image(p, i, 3)[0]["pixel_values"] for i, p in enumerate(pictures)]
    for one, other in zip(got, np.asarray(want).reshape(3, 1, 3, 46, 46), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_mllama_beyond_pixels(tmp_path: Path) -> None:
    row = "MllamaForConditionalGeneration--11b"
    ours, theirs = load(read_case(path_of(row)), tmp_path), reference(row)
    for size in SIZES:
        got, want = ours.image(noisy(size), 0, 1)[0], theirs(noisy(size), return_tensors="np")
        assert got["aspect_ratio_ids"] == first(want["aspect_ratio_ids"])
        np.testing.assert_array_equal(got["aspect_ratio_mask"], first(want["aspect_ratio_mask"]))


@pytest.mark.parametrize(
    "changes", [{"do_image_splitting": False}, {"size": {"longest_edge": 28}}, {"size": {"longest_edge": 300}}]
)
def test_idefics3_settings(changes: dict[str, Any], tmp_path: Path) -> None:
    row = "Idefics3ForConditionalGeneration"
    ours = load(read_case(path_of(row)), tmp_path, changes)
    theirs = type(reference(row)).from_dict({**read_case_preprocessor(row), **changes})
    for size in SIZES:
        got, want = ours.image(noisy(size), 0, 1)[0], theirs(noisy(size), return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(first(got["pixel_values"]), first(want), atol=2e-6)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr", "LA", "RGBA", "I;16"])
def test_modes_become_rgb(mode: str) -> None:
    from transformers.image_transforms import convert_to_rgb

    picture = noisy((9, 8))
    if mode == "I;16":
        picture = Image.fromarray(np.arange(72, dtype=np.uint16).reshape(9, 8) * 900)
    else:
        picture = picture.convert(mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(Image.fromarray(np.arange(72, dtype=np.uint8).reshape(9, 8) * 3))
    want = convert_to_rgb(picture, return_numpy=True)
    np.testing.assert_array_equal(np.asarray(decode_picture(picture)), want)


@pytest.mark.parametrize("samples", [401, 5003, 16000, 31999, 32000])
def test_log_mel(samples: int) -> None:
    from transformers import WhisperFeatureExtractor

    theirs = WhisperFeatureExtractor(feature_size=80, chunk_length=2)
    ours = LogMel({"chunk_length": 2}, 80)
    wave = (0.2 * np.random.default_rng(samples).standard_normal(samples)).astype(np.float32)
    got = ours(ours.samples(Sound(wave, 16000)))
    want = theirs(wave, sampling_rate=16000, return_tensors="np", padding="longest")["input_features"][0]
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("places", [[0], [3], [0, 1], [2, 5], [0, 1, 4], [1, 4, 5], [1, 2, 3, 7, 9, 10], [6, 7, 8, 11]])
def test_mllama_which_tokens_see_a_picture(places: list[int], tmp_path: Path) -> None:
    from transformers.models.mllama.processing_mllama import get_cross_attention_token_mask

    ours = load(read_case(path_of("MllamaForConditionalGeneration--11b")), tmp_path)
    ids = [288 if i in places else 50 for i in range(12)]
    got = [f.visible for f in ours(ids, images=[noisy((20, 20))] * len(places)).features]
    want = [(start, None if end in (-1, 12) else end) for start, end in get_cross_attention_token_mask(ids, 288)]
    assert got == want


def test_qwen2_vl_positions(tmp_path: Path) -> None:
    import torch
    from transformers import Qwen2VLConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

    case = read_case(path_of("Qwen2VLForConditionalGeneration--7b"))
    ours = load(case, tmp_path)
    with torch.device("meta"):
        theirs = Qwen2VLModel(Qwen2VLConfig.from_dict(case["config"]))
    for want in case["cases"]:
        processed = ours(want["prompt_token_ids"], **media(want))
        if not processed.features:
            assert processed.positions is None
            continue
        grids = {
            kind: torch.tensor(np.array([f.data[f"{kind}_grid_thw"] for f in processed.features if f.kind == kind]))
            for kind in {f.kind for f in processed.features}
        }
        ids = torch.tensor([processed.token_ids])
        kinds = (ids == 8) + 2 * (ids == 9).int()
        answer, delta = theirs.get_rope_index(
            ids, mm_token_type_ids=kinds, image_grid_thw=grids.get("image"), video_grid_thw=grids.get("video")
        )
        assert processed.positions is not None
        np.testing.assert_array_equal(processed.positions, answer[:, 0].numpy())
        assert processed.positions.max() + 1 - len(processed.token_ids) == int(delta)
