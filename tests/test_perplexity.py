"""What rounding costs: the perplexity of SmolLM2 on the beginning of Alice's Adventures in Wonderland (Carroll, 1865).

The same weights are behind every run: the GGUF file's, dequantized to float32 for the reference. Measured here, on
2,043 tokens: float32 20.68; the GGUF file as it is 20.89; --quantization int8 of a bfloat16 checkpoint 20.94, q4 20.85
(the weights came from 4 bits); int8 keys and values 20.87.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from octavo import LLM, SamplingParams
from octavo.config import EngineArgs
from octavo.loading.model import open_checkpoint

TEXT = Path(__file__).with_name("data") / "alice.txt"
OPTIONS: dict[str, Any] = {"kv_cache_memory": "128MiB", "max_model_len": 2048}


def perplexity(llm: LLM, ids: list[int]) -> float:
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    (output,) = llm.generate([ids], params, use_tqdm=False)
    logprobs = [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
    return math.exp(-sum(logprobs) / len(logprobs))


@pytest.fixture(scope="module")
def ids(smollm: LLM) -> list[int]:
    return smollm.get_tokenizer().encode(TEXT.read_text())[:2047]


@pytest.fixture(scope="module")
def reference(smollm: LLM, ids: list[int]) -> float:
    return perplexity(smollm, ids)


@pytest.fixture(scope="module")
def folder(smollm_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file's weights dequantized to bfloat16, as a checkpoint."""
    folder = tmp_path_factory.mktemp("smollm")
    checkpoint = open_checkpoint(EngineArgs(model=str(smollm_file)))
    with torch.device("meta"):
        model = checkpoint.architecture.build(checkpoint.config)
    weights = {name: source.read().bfloat16() for name, source in checkpoint.tensors(model)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**checkpoint.config.values, "torch_dtype": "bfloat16"}))
    return folder


def test_the_reference_is_sound(reference: float) -> None:
    assert 15 < reference < 25


@pytest.mark.parametrize("options", [{}, {"kv_cache_dtype": "int8"}, {"kv_cache_dtype": "float32"}], ids=str)
def test_gguf_weights_as_they_are(smollm_file: Path, ids: list[int], reference: float, options: dict[str, Any]) -> None:
    """Activations are rounded to 8 bits, keys and values to the cache's: within one percent."""
    assert perplexity(LLM(str(smollm_file), **OPTIONS, **options), ids) == pytest.approx(reference, rel=0.01)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [({}, 0.005), ({"dtype": "float16"}, 0.002), ({"quantization": "int8"}, 0.02), ({"quantization": "q4"}, 0.02)],
    ids=str,
)
def test_rounded_at_load(
    folder: Path, ids: list[int], reference: float, options: dict[str, Any], allowed: float
) -> None:
    llm = LLM(str(folder), skip_tokenizer_init=True, **OPTIONS, **options)
    assert perplexity(llm, ids) == pytest.approx(reference, rel=allowed)
