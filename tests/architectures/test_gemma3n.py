"""Gemma 3n as released: its text beside towers, under the names of the whole; and configs that cannot be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from octavo.architectures import all_architectures
from octavo.errors import CheckpointError
from tests.architectures.published import build
from tests.golden import case_named, write_model
from tests.test_golden import answers, opened

CASE = case_named("Gemma3nForCausalLM--e2b")
WHOLE = "Gemma3nForConditionalGeneration"


@pytest.mark.parametrize("beginning", ["model.language_model.", "language_model.model."])
def test_text_beside_towers(beginning: str, tmp_path: Path) -> None:
    plain, whole = (write_model(CASE, tmp_path / name) for name in ("plain", "whole"))
    weights = {
        beginning + name.removeprefix("model."): tensor
        for name, tensor in load_file(whole / "model.safetensors").items()
    }
    weights["model.vision_tower.timm_model.conv_stem.weight"] = np.zeros((2, 2), np.float32)
    weights["model.embed_audio.embedding.weight"] = np.zeros((2, 2), np.float32)
    save_file(weights, whole / "model.safetensors")
    config = {"architectures": [WHOLE], "model_type": "gemma3n", "text_config": CASE["config"], "vision_config": {}}
    (whole / "config.json").write_text(json.dumps(config))
    one, other = (
        [(o.outputs[0].token_ids, o.outputs[0].logprobs) for o in answers(opened(CASE, folder), CASE)]
        for folder in (plain, whole)
    )
    assert one == other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intermediate_size": [96] * 4}, "intermediate_size has 4 values for 5 layers"),
        ({"intermediate_size": [96, 96, "x", 96, 96]}, "intermediate_size is 'x', and must be"),
        ({"activation_sparsity_pattern": [0.5]}, "activation_sparsity_pattern has 1 values for 5 layers"),
        ({"activation_sparsity_pattern": [1.0] * 5}, "activation_sparsity_pattern is .* and must be"),
        ({"altup_active_idx": 3}, "altup_active_idx 3 is none of 3 streams"),
        ({"num_kv_shared_layers": 5}, "num_kv_shared_layers leaves no layer"),
    ],
)
def test_configs_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        build(all_architectures()["Gemma3nForCausalLM"], {**CASE["config"], **change})
