"""Ultravox beyond its golden case."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from octavo.architectures import find_architecture
from octavo.errors import CheckpointError
from octavo.parts import SpanBatch
from octavo.tools.recipe import spec
from tests.architectures.published import build
from tests.golden import case_named
from tests.test_golden import load

ULTRAVOX = "UltravoxModel--v0_3"


def with_activation(name: str) -> dict[str, Any]:
    case = case_named(ULTRAVOX)
    down = {"multi_modal_projector.linear_2.weight": spec("linear_2.weight", [64, 48])}
    config = {**case["config"], "projector_act": name}
    return {**case, "config": config, "tensors": {**case["tensors"], **down}}


@pytest.mark.parametrize("name", ["gelu", "relu", "silu"])
def test_activations_without_a_gate(name: str, tmp_path: Path) -> None:
    tower = load(with_activation(name), tmp_path).engine.executor.runner.model.media
    stored = load_file(tmp_path / "model.safetensors")
    of = {key.removeprefix("multi_modal_projector."): w for key, w in stored.items()}
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))

    def rms_norm(rows: torch.Tensor, norm: str) -> torch.Tensor:
        return rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + 1e-6) * of[f"{norm}.weight"]

    inner = getattr(functional, name)(rms_norm(x, "ln_pre") @ of["linear_1.weight"].t())
    expected = rms_norm(inner @ of["linear_2.weight"].t(), "ln_post")
    torch.testing.assert_close(tower._project(x, SpanBatch([(0, 5)])), expected, atol=1e-5, rtol=1e-4)


def test_a_norm_inside_the_projector(tmp_path: Path) -> None:
    """Since v0.5: norm, product, swiglu, norm, product; nothing behind it."""
    case = case_named(ULTRAVOX)
    tensors = {k: v for k, v in case["tensors"].items() if k != "multi_modal_projector.ln_post.weight"}
    tensors["multi_modal_projector.ln_mid.weight"] = spec("ln_mid.weight", [24])
    case = {**case, "config": {**case["config"], "projector_ln_mid": True}, "tensors": tensors}
    tower = load(case, tmp_path).engine.executor.runner.model.media
    stored = load_file(tmp_path / "model.safetensors")
    of = {key.removeprefix("multi_modal_projector."): w for key, w in stored.items()}
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))

    def rms_norm(rows: torch.Tensor, norm: str) -> torch.Tensor:
        return rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + 1e-6) * of[f"{norm}.weight"]

    up, gate = (rms_norm(x, "ln_pre") @ of["linear_1.weight"].t()).chunk(2, dim=-1)
    inner = rms_norm(functional.silu(gate) * up, "ln_mid")
    expected = inner @ of["linear_2.weight"].t()
    torch.testing.assert_close(tower._project(x, SpanBatch([(0, 5)])), expected, atol=1e-5, rtol=1e-4)


def test_an_unknown_activation_is_refused() -> None:
    values = with_activation("swishy")["config"]
    with pytest.raises(CheckpointError, match="swishy"):
        build(find_architecture(values["architectures"]), values)


def test_a_window_longer_than_the_positions_is_refused(tmp_path: Path) -> None:
    case = case_named(ULTRAVOX)
    settings = json.loads(case["files"]["preprocessor_config.json"])
    files = {**case["files"], "preprocessor_config.json": json.dumps({**settings, "chunk_length": 3})}
    with pytest.raises(CheckpointError, match=r"chunk_length.* 300 frames.*max_source_positions 100"):
        load({**case, "files": files}, tmp_path)
