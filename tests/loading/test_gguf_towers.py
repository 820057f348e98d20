"""Towers in GGUF files of their own, family by family: answers as of the published checkpoint."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.errors import CheckpointError, OctavoError, UnsupportedModelError
from tests.golden import case_named, prompt_of, write_model
from tests.loading import mmproj_models as towers
from tests.loading.test_gguf_mmproj import differences, load
from tests.test_golden import TOLERANCE, answers

QWEN2_VL, PIXTRAL = "Qwen2VLForConditionalGeneration--7b", "LlavaForConditionalGeneration--pixtral-hf"
QWEN2_AUDIO, ULTRAVOX = "Qwen2AudioForConditionalGeneration--7b", "UltravoxModel--v0_3"
LLAVA, NEXT = "LlavaForConditionalGeneration--1.5-7b", "LlavaNextForConditionalGeneration--v1.6-mistral-7b"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """For the files; the tokenizer lies beside it."""
    (folder := tmp_path / "gguf").mkdir()
    return folder


def written(case: dict[str, Any], row: str, folder: Path, **options: Any) -> dict[str, Any]:
    write_model(case, folder.parent / "published")
    towers.write_text(case, row, folder / "model.gguf", **options)
    return case


@pytest.mark.parametrize("swapped", [True, False], ids=["old", "new"])
@pytest.mark.parametrize("name", [LLAVA, NEXT])
def test_llava(name: str, swapped: bool, folder: Path) -> None:
    case = written(case_named(name), "LlamaForCausalLM", folder)
    towers.write(folder / "mmproj-F32.gguf", *towers.llava(case, swapped))
    assert differences(load(folder), case) < TOLERANCE


@pytest.mark.parametrize("name", [LLAVA, NEXT])
def test_llava_with_layers_that_are_named(name: str, folder: Path) -> None:
    case = written(case_named(name), "LlamaForCausalLM", folder)
    layers = case["config"]["vision_config"]["num_hidden_layers"] - 1
    towers.write(folder / "mmproj-F32.gguf", *towers.llava(case, **{"vision.feature_layer": [layers]}))
    assert differences(load(folder), case) < TOLERANCE


def test_llava_of_a_text_without_the_token(folder: Path) -> None:
    case = case_named(LLAVA)
    token, files = case["config"]["image_token_index"], dict(case["files"])
    files["tokenizer.json"] = files["tokenizer.json"].replace('"<image>"', '"<nothing>"')
    written({**case, "files": files}, "LlamaForCausalLM", folder)
    towers.write(folder / "mmproj-F32.gguf", *towers.llava(case))
    llm = load(folder)
    spare = case["config"]["text_config"]["vocab_size"] - 1
    for prompt in case["cases"]:
        ids = [spare if i == token else i for i in prompt.get("expanded_token_ids", prompt["prompt_token_ids"])]
        pictures = prompt_of(prompt).get("multi_modal_data", {})
        params = SamplingParams(temperature=0, max_tokens=len(prompt["output_token_ids"]), ignore_eos=True)
        asked = {"prompt": prompt["prompt"], "multi_modal_data": pictures}
        (got,) = llm.generate(asked if pictures else prompt["prompt"], params, use_tqdm=False)
        assert got.prompt_token_ids == ids
        assert list(got.outputs[0].token_ids) == prompt["output_token_ids"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vision.image_grid_pinpoints": [56, 112, 56]}, "cannot be used"),
        ({"vision.image_grid_pinpoints": [1 << 20, 1 << 20]}, "whole numbers up to"),
        ({"vision.image_grid_pinpoints": [1.5, 2.5]}, "whole numbers up to"),
        ({"vision.image_grid_pinpoints": [56] * 200}, "at most 128 numbers"),
        ({"vision.image_grid_pinpoints": 56}, "at most 128 numbers"),
        ({"vision.feature_layer": [9]}, "no hidden states 9"),
        ({"vision.image_size": 0}, "must be in 1 to"),
        ({"vision.image_size": 1 << 13}, "."),
        ({"vision.attention.head_count": 7}, "."),
        ({"vision.embedding_length": 1 << 19}, "."),
        ({"vision.image_mean": [0.5]}, "three numbers"),
    ],
)
def test_what_llava_cannot_be(changed: dict[str, Any], message: str, folder: Path) -> None:
    case = written(case_named(NEXT), "LlamaForCausalLM", folder)
    file = towers.write(folder / "mmproj-F32.gguf", *towers.llava(case, **changed))
    with pytest.raises(CheckpointError, match=message):
        load(folder / "model.gguf", mmproj=str(file))


def test_other_projectors_of_the_kind(folder: Path) -> None:
    case = written(case_named(LLAVA), "LlamaForCausalLM", folder)
    metadata, arrays = towers.llava(case)
    more = {**arrays, "mm.3.weight": arrays["mm.2.weight"]}
    with pytest.raises(CheckpointError, match=r"mm\.3"):
        load(folder / "model.gguf", mmproj=str(towers.write(folder / "norms.gguf", metadata, more)))
    del arrays["v.class_embd"]
    with pytest.raises(UnsupportedModelError, match="of the kind 'mlp'"):
        load(folder / "model.gguf", mmproj=str(towers.write(folder / "siglip.gguf", metadata, arrays)))


@pytest.mark.parametrize("old", [True, False], ids=["old", "new"])
def test_qwen2_vl(old: bool, folder: Path) -> None:
    case = written(case_named(QWEN2_VL), "Qwen2VLForConditionalGeneration", folder, prefix="", skip=("visual.",))
    towers.write(folder / "mmproj-F32.gguf", *towers.qwen2_vl(case, old))
    assert differences(load(folder), case) < TOLERANCE


def test_qwen2_vl_without_its_tower(folder: Path) -> None:
    case = written(case_named(QWEN2_VL), "Qwen2VLForConditionalGeneration", folder, prefix="", skip=("visual.",))
    case["cases"] = [prompt for prompt in case["cases"] if not prompt_of(prompt).get("multi_modal_data")]
    assert case["cases"]
    assert differences(load(folder), case) < TOLERANCE


def test_what_qwen2_vl_cannot_be(folder: Path) -> None:
    case = written(case_named(QWEN2_VL), "Qwen2VLForConditionalGeneration", folder, prefix="", skip=("visual.",))
    metadata, arrays = towers.qwen2_vl(case)
    for change in ({"v.patch_embd.weight.1": arrays["v.patch_embd.weight.1"][:, :2]}, {"v.patch_embd.weight": None}):
        changed = {name: value for name, value in {**arrays, **change}.items() if value is not None}
        with pytest.raises(CheckpointError, match=r"v\.patch_embd"):
            load(folder / "model.gguf", mmproj=str(towers.write(folder / "other.gguf", metadata, changed)))
    towers.write_text(case, "Qwen2ForCausalLM", folder / "plain.gguf", prefix="", skip=("visual.",))
    tower = str(towers.write(folder / "other.gguf", metadata, arrays))
    with pytest.raises(CheckpointError, match="mrope_section"):
        load(folder / "plain.gguf", mmproj=tower)


def test_pixtral(folder: Path) -> None:
    case = written(case_named(PIXTRAL), "LlamaForCausalLM", folder)
    metadata, arrays = towers.pixtral(case)
    towers.write(folder / "mmproj-F32.gguf", metadata, arrays)
    assert differences(load(folder), case) < TOLERANCE
    merged = {**arrays, "mm.patch_merger.weight": arrays["mm.1.weight"]}
    with pytest.raises(UnsupportedModelError, match="of the kind 'pixtral'"):
        load(folder / "model.gguf", mmproj=str(towers.write(folder / "other.gguf", metadata, merged)))


def test_qwen2_audio(folder: Path) -> None:
    case = written(case_named(QWEN2_AUDIO), "Qwen2ForCausalLM", folder)
    towers.write(folder / "mmproj-F32.gguf", *towers.whisper(case, "qwen2a"))
    assert differences(load(folder), case) < TOLERANCE


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"audio.num_mel_bins": None}, "num_mel_bins is missing"),
        ({"audio.block_count": 5000}, "must be in 1 to"),
        ({"audio.attention.head_count": 5}, "."),
    ],
)
def test_what_qwen2_audio_cannot_be(changed: dict[str, Any], message: str, folder: Path) -> None:
    case = written(case_named(QWEN2_AUDIO), "Qwen2ForCausalLM", folder)
    metadata, arrays = towers.whisper(case, "qwen2a", **changed)
    with pytest.raises(CheckpointError, match=message):
        load(folder / "model.gguf", mmproj=str(towers.write(folder / "other.gguf", metadata, arrays)))


def test_ultravox(folder: Path) -> None:
    """Of version 0.5, whose second norm is inside: files cannot name that of before."""
    case = case_named(ULTRAVOX)
    config, specs = case["config"], dict(case["tensors"])
    text = {key: value for key, value in config["text_config"].items() if key != "rope_scaling"}
    case["config"] = {**config, "projector_ln_mid": True, "text_config": text}
    spec = specs.pop("multi_modal_projector.ln_post.weight")
    specs["multi_modal_projector.ln_mid.weight"] = {**spec, "shape": [config["hidden_size"] // 2]}
    case["tensors"] = specs
    written(case, "LlamaForCausalLM", folder)
    stack = {"audio.projector.stack_factor": config["stack_factor"]}
    towers.write(folder / "mmproj-F32.gguf", *towers.whisper(case, "ultravox", **stack))
    published = LLM(str(folder.parent / "published"), dtype="float32", kv_cache_memory="32MiB")
    for prompt, output in zip(case["cases"], answers(published, case), strict=True):
        ids = output.prompt_token_ids
        assert ids == prompt.get("expanded_token_ids", prompt["prompt_token_ids"])
        each = enumerate(ids[1:], start=1)
        prompt["prompt_logprobs"] = [output.prompt_logprobs[i][token].logprob for i, token in each]
        prompt["output_token_ids"] = list(output.outputs[0].token_ids)
    assert differences(load(folder), case) < TOLERANCE


@pytest.mark.parametrize("said", [True, False], ids=["size", "usual size"])
def test_idefics3(said: bool, folder: Path) -> None:
    case = case_named("Idefics3ForConditionalGeneration--8b-llama3")
    written(case, "Idefics3ForConditionalGeneration", folder, prefix=towers.IDEFICS3)
    metadata, arrays = towers.idefics3(case)
    if said:
        towers.write(folder / "mmproj-F32.gguf", metadata, arrays)
        assert differences(load(folder), case) < TOLERANCE
    else:
        metadata["vision.preproc_image_size"] = None
        towers.write(folder / "mmproj-F32.gguf", metadata, arrays)
        assert load(folder).engine.executor.info.media is not None


def test_minicpm_v_2_6(folder: Path) -> None:
    case = written(case_named("MiniCPMV--minicpm-v-2_6"), "Qwen2ForCausalLM", folder, prefix="llm.")
    metadata, arrays = towers.minicpmv(case)
    towers.write(folder / "mmproj-F32.gguf", metadata, arrays)
    slices = {key: case["config"]["slice_config"][key] for key in ("max_slice_nums",)}
    assert differences(load(folder, hf_overrides={"slice_config": slices}), case) < TOLERANCE
    other = towers.write(folder / "other.gguf", {**metadata, "minicpmv_version": 4}, arrays)
    with pytest.raises(UnsupportedModelError, match="of the kind 'resampler'"):
        load(folder / "model.gguf", mmproj=str(other))


FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llava": (NEXT, "LlamaForCausalLM", {}),
    "qwen2_vl": (QWEN2_VL, "Qwen2VLForConditionalGeneration", {"prefix": "", "skip": ("visual.",)}),
    "pixtral": (PIXTRAL, "LlamaForCausalLM", {}),
    "idefics3": (
        "Idefics3ForConditionalGeneration--8b-llama3",
        "Idefics3ForConditionalGeneration",
        {"prefix": towers.IDEFICS3},
    ),
    "minicpmv": ("MiniCPMV--minicpm-v-2_6", "Qwen2ForCausalLM", {"prefix": "llm."}),
}
"""Writers of towers, and of each a case, its text's row and how that is written."""


@pytest.mark.parametrize("family", list(FAMILIES))
def test_damaged_towers_load_or_are_errors(family: str, folder: Path) -> None:
    name, row, options = FAMILIES[family]
    metadata, arrays = getattr(towers, family)(written(case_named(name), row, folder, **options))
    sizes = [key for key, value in metadata.items() if isinstance(value, int) and not isinstance(value, bool)]
    changes = [({key: value}, {}) for key in sizes for value in (None, 3, 8000)]
    first = [key for key in arrays if ".1." not in key]
    changes += [({}, {key: arrays[key].reshape(-1)[:1]}) for key in first]
    refused = 0
    for keys, values in changes:
        file = towers.write(folder / "other.gguf", {**metadata, **keys}, {**arrays, **values})
        try:
            load(folder / "model.gguf", mmproj=str(file))
        except OctavoError:
            refused += 1
    assert refused > len(changes) // 2


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q8_0], ids=["f16", "q8_0"])
@pytest.mark.parametrize("family", ["qwen2_vl", "pixtral", "minicpmv"])
def test_quantized_towers(family: str, kind: gguf.GGMLQuantizationType, folder: Path) -> None:
    name, row, options = FAMILIES[family]
    case = written(case_named(name), row, folder, **options)
    towers.write(folder / "mmproj.gguf", *getattr(towers, family)(case), kind=kind)
    overrides = {"slice_config": {"max_slice_nums": 4}} if family == "minicpmv" else {}
    off = []
    for output, want in zip(answers(load(folder, hf_overrides=overrides), case), case["cases"], strict=True):
        ids = output.prompt_token_ids
        got = [output.prompt_logprobs[i + 1][token].logprob for i, token in enumerate(ids[1:])]
        off += [abs(a - b) for a, b in zip(got, want["prompt_logprobs"], strict=True) if b is not None]
    assert 0 < np.mean(off) < 0.1
