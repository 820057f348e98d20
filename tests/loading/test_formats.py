"""A format of several tensors a weight, written as any other would be: nothing outside its class knows of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from octavo import LLM, SamplingParams
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.loading.formats import QUANTIZED, PlainWeights
from octavo.loading.tensor_source import TensorSource
from octavo.ops import StoredRows
from octavo.ops.weight_kinds import WeightKind
from tests.golden import case_named, write_model

GROUP = 32


class Toy(PlainWeights):
    """Codes `[inputs, outputs]` int8 and scales `[inputs / 32, outputs]` float16; a layer may be plain."""

    name = "toy"
    as_stored = True
    suffixes = ("qweight", "scales")

    def weight(self, module: str, tensors: Mapping[str, TensorSource]) -> TensorSource:
        for suffix in self.suffixes:
            if suffix not in tensors:
                raise CheckpointError(f"{self.folder}: {module}.{suffix} is missing.")
        return ToyWeight(tensors["qweight"], tensors["scales"])


class ToyWeight(TensorSource):
    def __init__(self, codes: TensorSource, scales: TensorSource) -> None:
        self.codes, self.scales = codes, scales
        self.shape = codes.shape[::-1]

    def read(self) -> Tensor:
        return (self.codes.read().float() * self.scales.read().float().repeat_interleave(GROUP, 0)).T

    def stored(self) -> StoredRows:
        outputs, inputs = self.shape
        codes = self.codes.read().T.contiguous().view(torch.uint8).view(outputs, -1, GROUP)
        scales = self.scales.read().T.contiguous().view(torch.uint8).view(outputs, -1, 2)
        return StoredRows(WeightKind.Q8_0, inputs, torch.cat([scales, codes], dim=2).flatten(1))


def is_quantized(name: str, weight: np.ndarray) -> bool:
    layers = ("proj", "query_key_value", "dense", "4h", "h_to")
    return weight.ndim == 2 and weight.shape[1] % GROUP == 0 and any(layer in name for layer in layers)


def write_toy(case: dict[str, Any], folder: Path, *, plainly: bool = False) -> Path:
    """A case with its layers rounded: as codes and scales, or as the floats that these mean."""
    write_model(case, folder)
    written = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if not is_quantized(name, weight):
            written[name] = weight
            continue
        blocks = weight.astype(np.float32).reshape(len(weight), -1, GROUP)
        scales = (np.abs(blocks).max(2, keepdims=True) / 127).astype(np.float16)
        codes = np.rint(blocks / np.maximum(scales.astype(np.float32), 1e-8)).clip(-127, 127).astype(np.int8)
        if plainly:
            written[name] = (codes * scales.astype(np.float32)).reshape(weight.shape)
        else:
            module = name.removesuffix(".weight")
            written[f"{module}.qweight"] = np.ascontiguousarray(codes.reshape(weight.shape).T)
            written[f"{module}.scales"] = np.ascontiguousarray(scales[..., 0].T)
    assert len(written) > len(case["tensors"]) or plainly
    save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
    if not plainly:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "toy"}}))
    return folder


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUANTIZED, "toy", lambda folder, load_format, settings: Toy(folder, load_format))


def logprobs(folder: Path, case: dict[str, Any], **options: Any) -> tuple[list[int], list[float]]:
    llm = LLM(str(folder), skip_tokenizer_init=True, kv_cache_memory="16MiB", **options)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
    prompt = {"prompt_token_ids": case["cases"][-1]["prompt_token_ids"]}
    answer = llm.generate(prompt, params, use_tqdm=False)[0].outputs[0]
    return answer.token_ids, [step[t].logprob for step, t in zip(answer.logprobs or [], answer.token_ids, strict=True)]


CASES = ["LlamaForCausalLM--gqa-tied", "GPTNeoXForCausalLM--parallel", "MixtralForCausalLM--8x7b"]


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("name", CASES)
def test_answers_as_what_its_numbers_mean(name: str, tmp_path: Path) -> None:
    """Merged, fused and regrouped layers included: in floats to the last bit, and kept as they are closely."""
    case = case_named(name)
    toy, plain = write_toy(case, tmp_path / "toy"), write_toy(case, tmp_path / "plain", plainly=True)
    want = logprobs(plain, case, dtype="float32", ops="torch")
    assert logprobs(toy, case, dtype="float32", ops="torch") == want
    tokens, kept = logprobs(toy, case)
    assert tokens[0] == want[0][0]  # later ones differ by what rows are rounded to in such products
    assert abs(kept[0] - want[1][0]) < 0.05


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("suffix", Toy.suffixes)
def test_a_missing_companion_is_named(suffix: str, tmp_path: Path) -> None:
    folder = write_toy(case_named("LlamaForCausalLM--gqa-tied"), tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = f"model.layers.0.self_attn.q_proj.{suffix}"
    save_file({n: w for n, w in weights.items() if n != name}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=name):
        LLM(str(folder), skip_tokenizer_init=True, kv_cache_memory="8MiB")


def test_it_is_unknown_without_its_class(tmp_path: Path) -> None:
    folder = write_toy(case_named("LlamaForCausalLM--gqa-tied"), tmp_path)
    with pytest.raises(UnsupportedModelError, match="'toy'"):
        LLM(str(folder), skip_tokenizer_init=True, kv_cache_memory="8MiB")
