"""gpt-oss as it is released: experts in MXFP4, of a golden case whose tensors of codes are bytes."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import tests.golden
from octavo import LLM, SamplingParams
from octavo.errors import CheckpointError
from octavo.loading.formats.mxfp4 import MXFP4Stack
from octavo.loading.tensor_source import TensorInMemory
from octavo.tools.recipe import values
from tests.golden import read_case

CASE = read_case(Path(tests.golden.__file__).parent / "mxfp4" / "GptOssForCausalLM--20b-mxfp4.json")


def tensor(name: str, spec: dict[str, Any]) -> np.ndarray:
    if "bytes" not in spec:
        return values(name, spec)
    low, high = spec["bytes"]
    words = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(int(np.prod(spec["shape"])))
    return (low + (words >> np.uint64(40)) % np.uint64(high - low + 1)).astype(np.uint8).reshape(spec["shape"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CASE["config"]))
    save_file({name: tensor(name, spec) for name, spec in CASE["tensors"].items()}, tmp_path / "model.safetensors")
    return tmp_path


def load(folder: Path, **options: Any) -> LLM:
    return LLM(str(folder), skip_tokenizer_init=True, kv_cache_memory="8MiB", **options)


def test_dequantized() -> None:
    blocks = torch.zeros(1, 1, 2, 16, dtype=torch.uint8)
    blocks[0, 0, 0, 0], blocks[0, 0, 1, 15] = 0x9F, 0x21  # -6 and -0.5, 0.5 and 1
    scales = torch.tensor([[[127, 130]]], dtype=torch.uint8)
    got = MXFP4Stack("experts", TensorInMemory(blocks), TensorInMemory(scales)).read()[0].t()
    assert got[0, :2].tolist() == [-6.0, -0.5]
    assert got[0, -2:].tolist() == [4.0, 8.0]
    assert int(got.count_nonzero()) == 4


@pytest.mark.parametrize("options", [{"dtype": "float32"}, {"dtype": "float32", "tensor_parallel_size": 2}], ids=str)
def test_answers_of_the_reference(folder: Path, options: dict[str, Any]) -> None:
    llm = load(folder, **options)
    params = SamplingParams(temperature=0, max_tokens=len(CASE["cases"][0]["output_token_ids"]), ignore_eos=True)
    prompts = [{"prompt_token_ids": case["prompt_token_ids"]} for case in CASE["cases"]]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in outputs] == [case["output_token_ids"] for case in CASE["cases"]]


@pytest.mark.parametrize(
    ("name", "edit", "match"),
    [
        ("down_proj_scales", lambda t: None, "lacks .*down_proj_scales"),
        ("down_proj_scales", lambda t: t[:, :-1], "down_proj.*not those of one weight"),
        ("gate_up_proj_blocks", lambda t: t[..., :8], "gate_up_proj.*not those of one weight"),
    ],
)
def test_a_half_that_does_not_fit(folder: Path, name: str, edit: Any, match: str) -> None:
    file = folder / "model.safetensors"
    tensors, name = dict(load_file(file)), f"model.layers.0.mlp.experts.{name}"
    changed = edit(tensors.pop(name))
    if changed is not None:
        tensors[name] = np.ascontiguousarray(changed)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=match):
        load(folder)
