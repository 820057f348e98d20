"""Quantized folders are refused by the name of their method, before a tensor is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.loading.formats.quantization_config import quantization_of
from tests.golden import case_named

METHODS = ("quanto", "eetq", "aqlm", "vptq", "higgs", "spqr", "bitnet", "quark", "of_next_year")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose weights cannot be read: whoever reads them fails with another error."""
    (tmp_path / "config.json").write_text(json.dumps(case_named("LlamaForCausalLM--gqa-tied")["config"]))
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    return tmp_path


def load(folder: Path, **options: Any) -> None:
    LLM(str(folder), skip_tokenizer_init=True, kv_cache_memory="8MiB", **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_refused_by_name(folder: Path, key: str, method: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: {"quant_method": method, "bits": 4}}))
    with pytest.raises(UnsupportedModelError, match=rf"'{method}'.*{key}.*GGUF"):
        load(folder)


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes"),
        ({"quant_algo": "FP8", "producer": {"name": "modelopt"}}, "modelopt"),
        ({"config_groups": {}, "format": "pack-quantized"}, "compressed-tensors"),
        ({"bits": 4, "group_size": 128, "desc_act": False}, "gptq"),
        ({"w_bit": 4, "zero_point": True}, "awq"),
        ({"bits": 3}, "does not name"),
        ({"quant_method": 5, "bits": 3}, "does not name"),
    ],
)
def test_without_a_name(folder: Path, settings: dict[str, Any], method: str) -> None:
    found = quantization_of({"quantization_config": settings}, folder)
    assert found is not None
    assert (found.method or "does not name") == method
    if found.method is None:
        with pytest.raises(UnsupportedModelError, match=method):
            load(folder, hf_overrides={"quantization_config": settings})


@pytest.mark.parametrize(
    ("name", "content", "method"),
    [
        (
            "hf_quant_config.json",
            {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}},
            "modelopt",
        ),
        ("quantize_config.json", {"bits": 4, "group_size": 128, "sym": True}, "gptq"),
        ("quantize_config.json", {"bits": 4, "quant_method": "marlin"}, "marlin"),
        ("quant_config.json", {"zero_point": True, "q_group_size": 128, "w_bit": 4}, "awq"),
    ],
)
def test_by_a_file_beside_the_config(folder: Path, name: str, content: dict[str, Any], method: str) -> None:
    (folder / name).write_text(json.dumps(content))
    found = quantization_of({}, folder)
    assert found is not None
    assert (found.method, found.key) == (method, name)


@pytest.mark.parametrize("wrong", ["fp8", 4, True, ["awq"], 0.5])
def test_of_a_wrong_type(folder: Path, wrong: Any) -> None:
    with pytest.raises(CheckpointError, match=r"quantization_config is .* must be an object"):
        load(folder, hf_overrides={"quantization_config": wrong})


@pytest.mark.parametrize("none", [None, {}])
def test_none_is_none(folder: Path, none: Any) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load(folder, hf_overrides={"quantization_config": none})
