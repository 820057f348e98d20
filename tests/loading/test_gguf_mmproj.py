"""Models of two GGUF files: the text model's, and its tower's as llama.cpp's converter writes it."""

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from octavo import LLM
from octavo.errors import CheckpointError, ConfigError, ModelNotFoundError, UnsupportedModelError
from tests.golden import case_named, tensors, write_model
from tests.loading.gguf_models import write_gguf
from tests.test_golden import TOLERANCE, answers

CASES = {
    "InternLM2ForCausalLM": "InternVLChatModel--internvl2-internlm2",
    # Without use_msac it is InternVL2 in all but its name, on Llama.
    "LlamaForCausalLM": "H2OVLChatModel--mississippi-800m",
}
NAMES = {
    "vision_model.encoder.layers.": "v.blk.",
    "vision_model.embeddings.class_embedding": "v.class_embd",
    "vision_model.embeddings.position_embedding": "v.position_embd.weight",
    "vision_model.embeddings.patch_embedding": "v.patch_embd",
    "mlp1.": "mm.model.mlp.",
    ".attn.proj": ".attn_out",
    ".mlp.fc1": ".ffn_up",
    ".mlp.fc2": ".ffn_down",
    ".norm": ".ln",
}


def write_mmproj(case: dict[str, Any], path: Path, **changed: Any) -> Path:
    """The tower of an InternVL2 case, its matrices in half precision with `half`."""
    config, half = case["config"], changed.pop("half", False)
    vision = config["vision_config"]
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", changed.pop("kind", "internvl"))
    sizes = {
        "embedding_length": vision["hidden_size"],
        "feed_forward_length": vision["intermediate_size"],
        "block_count": vision["num_hidden_layers"],
        "attention.head_count": vision["num_attention_heads"],
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "projector.scale_factor": int(1 / config["downsample_ratio"]),
        "preproc_max_tiles": config["max_dynamic_patch"],
        **changed,
    }
    for key, value in sizes.items():
        if value is not None:
            writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", vision["layer_norm_eps"])
    writer.add_array("clip.vision.image_mean", [0.485, 0.456, 0.406])
    writer.add_array("clip.vision.image_std", [0.229, 0.224, 0.225])
    writer.add_bool("clip.use_gelu", True)
    for name, value in tensors(case).items():
        if name.startswith("language_model."):
            continue
        for published, stored in NAMES.items():
            name = name.replace(published, stored)
        if name.endswith((".ls1", ".ls2")):
            name += ".weight"
        value = value.squeeze()
        if half and value.ndim >= 2:
            value = value.astype(np.float16)
        if ".attn.qkv." in name:
            for letter, part in zip("qkv", np.split(value, 3), strict=True):
                writer.add_tensor(name.replace("attn.qkv", f"attn_{letter}"), np.ascontiguousarray(part))
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(params=["InternLM2ForCausalLM"])
def text(request: pytest.FixtureRequest) -> str:
    """The row of the text model."""
    return str(request.param)


@pytest.fixture
def case(text: str) -> dict[str, Any]:
    return case_named(CASES[text])


@pytest.fixture
def folder(case: dict[str, Any], text: str, tmp_path: Path) -> Path:
    """Both files, and beside them a folder with the tokenizer."""
    write_model(case, tmp_path / "published")
    (folder := tmp_path / "gguf").mkdir()
    own = {name: w for name, w in tensors(case).items() if name.startswith("language_model.")}
    stripped = {name.removeprefix("language_model."): w for name, w in own.items()}
    write_gguf({"row": text, "config": case["config"]["llm_config"]}, folder / "model.gguf", arrays=stripped)
    write_mmproj(case, folder / "mmproj-F16.gguf")
    return folder


def load(model: Path, **options: Any) -> LLM:
    tokenizer = str(next(p for p in (model.parent, model.parent.parent) if (p / "published").exists()) / "published")
    return LLM(str(model), tokenizer=tokenizer, dtype="float32", kv_cache_memory="32MiB", **options)


def differences(llm: LLM, case: dict[str, Any]) -> float:
    """The largest of a prompt's log-probabilities."""
    most = 0.0
    for output, want in zip(answers(llm, case), case["cases"], strict=True):
        ids = output.prompt_token_ids
        assert ids == want.get("expanded_token_ids", want["prompt_token_ids"])
        got = [output.prompt_logprobs[i + 1][token].logprob for i, token in enumerate(ids[1:])]
        most = max(most, *(abs(a - b) for a, b in zip(got, want["prompt_logprobs"], strict=True) if b is not None))
        assert list(output.outputs[0].token_ids) == want["output_token_ids"]
    return most


@pytest.mark.parametrize("text", list(CASES), indirect=True)
@pytest.mark.parametrize("how", ["folder", "file"])
def test_answers_as_the_published_checkpoint(how: str, case: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    if how == "folder":
        llm = load(folder)
    else:
        other = shutil.move(folder / "mmproj-F16.gguf", tmp_path / "tower.gguf")
        llm = load(folder / "model.gguf", mmproj=str(other))
    assert differences(llm, case) < TOLERANCE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_a_tower_in_half_precision_and_a_quantized_text(
    dtype: str, case: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    arrays = {n.removeprefix("language_model."): w for n, w in tensors(case).items() if n.startswith("language_model.")}
    text = {"row": "InternLM2ForCausalLM", "config": case["config"]["llm_config"]}
    write_gguf(text, folder / "model.gguf", gguf.GGMLQuantizationType.Q8_0, arrays)
    write_mmproj(case, folder / "mmproj-F16.gguf", half=True)
    llm = LLM(str(folder), tokenizer=str(tmp_path / "published"), dtype=dtype, kv_cache_memory="32MiB")
    for output, want in zip(answers(llm, case), case["cases"], strict=True):
        ids = output.prompt_token_ids
        got = [output.prompt_logprobs[i + 1][token].logprob for i, token in enumerate(ids[1:])]
        off = [abs(a - b) for a, b in zip(got, want["prompt_logprobs"], strict=True) if b is not None]
        assert np.mean(off) < 0.1


def test_a_file_that_is_named_is_a_text_model(folder: Path) -> None:
    assert load(folder / "model.gguf").engine.executor.info.media is None


def test_texts_without_the_tower(case: dict[str, Any], folder: Path) -> None:
    llm = load(folder, limit_mm_per_prompt={"image": 0})
    assert llm.engine.executor.runner.model.media is None
    case["cases"] = [prompt for prompt in case["cases"] if "images" not in prompt]
    assert differences(llm, case) < TOLERANCE


def test_of_several_the_one_in_half_precision(case: dict[str, Any], folder: Path) -> None:
    (folder / "mmproj-BF16.gguf").write_bytes(b"GGUF")
    assert differences(load(folder), case) < TOLERANCE
    (folder / "mmproj-BF16.gguf").rename(folder / "mmproj-Q8_0.gguf")
    (folder / "mmproj-F16.gguf").rename(folder / "mmproj-F32.gguf")
    with pytest.raises(CheckpointError, match=r"several files for pictures .* name one with mmproj"):
        load(folder)


def test_what_cannot_be_read(case: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    published, model = str(tmp_path / "published"), folder / "model.gguf"
    with pytest.raises(ConfigError, match="goes with a GGUF model"):
        LLM(published, mmproj=str(folder / "mmproj-F16.gguf"))
    with pytest.raises(ModelNotFoundError, match="there is no file"):
        load(model, mmproj=str(folder / "none.gguf"))
    with pytest.raises(UnsupportedModelError, match="architecture 'internlm2', and no tower"):
        load(model, mmproj=str(model))
    strange = write_mmproj(case, tmp_path / "strange.gguf", kind="glasses")
    with pytest.raises(UnsupportedModelError, match="of the kind 'glasses'"):
        load(model, mmproj=str(strange))
    without = write_mmproj(case, tmp_path / "without.gguf", block_count=None)
    with pytest.raises(CheckpointError, match=r"clip\.vision\.block_count is missing"):
        load(model, mmproj=str(without))
    huge = write_mmproj(case, tmp_path / "huge.gguf", embedding_length=1 << 25)
    with pytest.raises(CheckpointError, match=r"must be in 1 to"):
        load(model, mmproj=str(huge))
    other = write_mmproj(case, tmp_path / "other.gguf", block_count=3)
    with pytest.raises(CheckpointError):
        load(model, mmproj=str(other))
