"""Jais without ALiBi: what no published checkpoint of the golden cases has."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from octavo import LLM, SamplingParams
from tests.golden import case_named, tensors, write_model


def test_the_embedding_scale_is_of_tokens_and_positions(tmp_path: Path) -> None:
    """The same answers as from tables that hold the scale already, under a head that does not."""
    case = case_named("JAISLMHeadModel--13b")
    case["config"] |= {"position_embedding_type": "learned", "embeddings_scale": 3.0, "tie_word_embeddings": False}
    table = case["tensors"]["transformer.wte.weight"]
    case["tensors"] |= {"lm_head.weight": table, "transformer.wpe.weight": {**table, "shape": [256, 64]}}
    scaled = tensors(case)
    for name in ("transformer.wte.weight", "transformer.wpe.weight"):
        scaled[name] = scaled[name] * np.float32(3.0)
    found = []
    for folder in (tmp_path / "config", tmp_path / "tables"):
        write_model(case, folder)
        if folder.name == "tables":
            save_file(scaled, folder / "model.safetensors", metadata={"format": "pt"})
        options = {"hf_overrides": {"embeddings_scale": 1.0}} if folder.name == "tables" else {}
        llm = LLM(str(folder), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="16MiB", **options)
        params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
        answer = llm.generate([{"prompt_token_ids": [5, 17, 200, 9]}], params, use_tqdm=False)[0].outputs[0]
        found.append([step[token].logprob for step, token in zip(answer.logprobs, answer.token_ids, strict=True)])
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
