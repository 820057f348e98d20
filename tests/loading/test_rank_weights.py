"""Two ranks hold half of the weights each, however they are stored, and answer as one does."""

from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.ops.native import runnable
from octavo.ops.weight_kinds import WeightKind
from tests.loading.test_shards import llama, stored_llama

PROMPT = {"prompt_token_ids": [5, 7, 11, 13, 17, 19, 23, 29]}
PARAMS = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
TOLERANCE = 0.05
"""Of log-probabilities: products with quantized weights round rows to 8 bits, and for values on a border the order of a
sum decides. One process differs by as much from what the same weights give in floats."""
slow = pytest.mark.slow
MORE = ("int8", "q4", "q4_0", "q4_k", "q6_k", "iq2_xs", "bfloat16")
STORED = ["q8_0", *(pytest.param(kind, marks=slow) for kind in MORE)]


def answer(path: Path, **options: Any) -> tuple[list[float], list[int]]:
    """Log-probabilities of the prompt, and the bytes of weights by rank."""
    llm = LLM(str(path), skip_tokenizer_init=True, kv_cache_memory="16MiB", **options)
    entries = llm.generate(PROMPT, PARAMS, use_tqdm=False)[0].prompt_logprobs
    ids = PROMPT["prompt_token_ids"]
    return [e[i].logprob for e, i in zip(entries[1:], ids[1:], strict=True)], llm.rank_weight_bytes()


@pytest.mark.skipif(not runnable(), reason="the reference computes with floats")
@pytest.mark.parametrize("stored", STORED)
def test_two_ranks_answer_as_one(stored: str, tmp_path: Path, generator: torch.Generator) -> None:
    options = {"quantization": stored} if stored in ("int8", "q4") else {}
    if stored.upper() in WeightKind.__members__:
        path = stored_llama(tmp_path / "m.gguf", WeightKind[stored.upper()], generator)
    else:
        path = llama(tmp_path / "m", hidden_size=512, intermediate_size=1024)
        options["dtype"] = "bfloat16"
    alone, (whole,) = answer(path, **options)
    together, parts = answer(path, tensor_parallel_size=2, **options)
    assert together == pytest.approx(alone, abs=TOLERANCE)
    assert max(parts) < 0.51 * whole
    assert sum(parts) == pytest.approx(whole, rel=0.01)
