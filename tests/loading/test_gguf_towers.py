"""Towers in GGUF files of their own, family by family: answers as of the published checkpoint."""

from pathlib import Path
from typing import Any

import pytest

from octavo import SamplingParams
from octavo.errors import CheckpointError, UnsupportedModelError
from tests.golden import case_named, prompt_of, write_model
from tests.loading import mmproj_models as towers
from tests.loading.test_gguf_mmproj import differences, load
from tests.test_golden import TOLERANCE

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
