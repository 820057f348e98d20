"""What rounding costs: SmolLM2's log-probabilities on the beginning of Alice's Adventures in Wonderland (Carroll 1865).

The same weights are behind every run: the GGUF file's, dequantized to float32 for the reference. `bench/accuracy.py`
measures more types and the peers.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from octavo import LLM, SamplingParams
from octavo.config import EngineArgs
from octavo.loading.checkpoint import open_checkpoint

TEXT = Path(__file__).with_name("data") / "alice.txt"
OPTIONS: dict[str, Any] = {"kv_cache_memory": "128MiB", "max_model_len": 2048}


def logprobs(llm: LLM, ids: list[int]) -> np.ndarray:
    """Of each token but the first, given those before it."""
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    (output,) = llm.generate([ids], params, use_tqdm=False)
    entries = zip(output.prompt_logprobs[1:], ids[1:], strict=True)
    return np.array([entry[token].logprob for entry, token in entries])


def perplexity(of: np.ndarray) -> float:
    return float(np.exp(-of.mean()))


@pytest.fixture(scope="module")
def ids(smollm: LLM) -> list[int]:
    return smollm.engine.tokenizer.encode(TEXT.read_text())[:2047]


@pytest.fixture(scope="module")
def reference(smollm: LLM, ids: list[int]) -> np.ndarray:
    return logprobs(smollm, ids)


@pytest.fixture(scope="module")
def folder(smollm_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file's weights dequantized to bfloat16, as a checkpoint."""
    folder = tmp_path_factory.mktemp("smollm")
    checkpoint = open_checkpoint(EngineArgs(model=str(smollm_file)))
    with torch.device("meta"):
        names = checkpoint.weights.names(checkpoint.architecture.build(checkpoint.config).names)
    weights = {name: source.read().bfloat16() for name, source in checkpoint.weights.weights(names)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**checkpoint.config.values, "torch_dtype": "bfloat16"}))
    return folder


def test_the_reference_is_sound(reference: np.ndarray) -> None:
    assert 15 < perplexity(reference) < 25


def hold(given: np.ndarray, reference: np.ndarray, mean: float, most: float, of_perplexity: float) -> None:
    """The mean and the 99th percentile of the differences, and the perplexity's relative one."""
    off = np.abs(given - reference)
    figures = f"{off.mean():.4f}, {np.quantile(off, 0.99):.3f}, {perplexity(given) / perplexity(reference) - 1:+.2%}"
    assert off.mean() < mean, figures
    assert np.quantile(off, 0.99) < most, figures
    assert perplexity(given) == pytest.approx(perplexity(reference), rel=of_perplexity), figures


@pytest.mark.parametrize(
    ("cache", "mean", "most", "of_perplexity"),
    [
        ("auto", 0.06, 0.33, 0.006),
        ("float32", 0.06, 0.33, 0.006),
        ("int8", 0.06, 0.33, 0.006),
        ("int4", 0.27, 1.4, 0.05),
    ],
)
def test_gguf_weights_as_they_are(
    smollm_file: Path,
    ids: list[int],
    reference: np.ndarray,
    cache: str,
    mean: float,
    most: float,
    of_perplexity: float,
) -> None:
    """Activations are rounded to 8 bits, keys and values to the cache's."""
    llm = LLM(str(smollm_file), kv_cache_dtype=cache, **OPTIONS)
    hold(logprobs(llm, ids), reference, mean, most, of_perplexity)


@pytest.mark.parametrize(
    ("options", "mean", "most", "of_perplexity"),
    [
        ({}, 0.04, 0.17, 0.003),
        ({"dtype": "float16"}, 0.01, 0.05, 0.001),
        ({"quantization": "int8"}, 0.07, 0.35, 0.008),
        ({"quantization": "q4"}, 0.06, 0.3, 0.006),
    ],
    ids=str,
)
def test_rounded_at_load(
    folder: Path,
    ids: list[int],
    reference: np.ndarray,
    options: dict[str, Any],
    mean: float,
    most: float,
    of_perplexity: float,
) -> None:
    llm = LLM(str(folder), skip_tokenizer_init=True, **OPTIONS, **options)
    hold(logprobs(llm, ids), reference, mean, most, of_perplexity)
