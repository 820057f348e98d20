"""Text encoders: prompts come whole into steps, and pairs of texts with their types."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from octavo import LLM, PoolerConfig, PoolingParams
from octavo.errors import CheckpointError, ConfigError, InvalidRequestError
from tests.golden import CASES, read_case, write_model
from tests.test_golden import load

CASE = next(path for path in CASES if path.stem == "BertModel--minilm-mean")


def embeddings(llm: LLM, prompts: list[dict[str, list[int]]]) -> list[list[float]]:
    return [output.outputs.embedding for output in llm.embed(prompts, use_tqdm=False)]


def test_a_prompt_comes_whole_and_alone_or_with_others_gives_the_same_bits(tmp_path: Path) -> None:
    case = read_case(CASE)
    prompts = [{"prompt_token_ids": c["prompt_token_ids"]} for c in case["cases"]] * 3
    llm = load(case, tmp_path, max_num_batched_tokens=16)
    together = embeddings(llm, prompts)
    assert [embeddings(llm, [prompt])[0] for prompt in prompts] == together
    assert embeddings(load(case, tmp_path), prompts) == together


def test_types_of_tokens_count(tmp_path: Path) -> None:
    case = read_case(CASE)
    ids = case["cases"][1]["prompt_token_ids"]
    llm = load(case, tmp_path)
    plain, zeros, pair = embeddings(
        llm,
        [
            {"prompt_token_ids": ids},
            {"prompt_token_ids": ids, "token_type_ids": [0] * len(ids)},
            {"prompt_token_ids": ids, "token_type_ids": [0] * 3 + [1] * (len(ids) - 3)},
        ],
    )
    assert plain == zeros
    assert np.abs(np.array(plain) - np.array(pair)).max() > 1e-3
    with pytest.raises(InvalidRequestError, match="token_type_ids"):
        llm.embed({"prompt_token_ids": ids, "token_type_ids": [2] * len(ids)})


def test_nothing_is_cached(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing between steps"):
        load(read_case(CASE), tmp_path, enable_prefix_caching=True)


def with_heads(folder: Path, sparse: bool = True) -> LLM:
    """XLM-R's tiny model as bge-m3's folder has it: heads of tokens in files of PyTorch's."""
    case = read_case(next(path for path in CASES if path.stem == "XLMRobertaModel--bge-m3"))
    case["config"].update(bos_token_id=7, eos_token_id=2)
    size = case["config"]["hidden_size"]
    write_model(case, folder)
    generator = torch.Generator().manual_seed(5)
    for name, count in (("sparse", 1), ("colbert", 48)) if sparse else (("colbert", 48),):
        state = {
            "weight": torch.randn(count, size, generator=generator),
            "bias": torch.randn(count, generator=generator),
        }
        torch.save(state, folder / f"{name}_linear.pt")
    return LLM(str(folder), task="embedding", dtype="float32", skip_tokenizer_init=True, kv_cache_memory="8MiB")


def test_heads_of_tokens(tmp_path: Path) -> None:
    """bge-m3's: weights of tokens between the first and the last, vectors of those behind the first."""
    llm = with_heads(tmp_path)
    prompts = [[7, 30, 31, 32, 2], [40, 41, 42]]

    def asked(task: str, **options: Any) -> list[torch.Tensor]:
        params = PoolingParams(**options)
        return [o.outputs.data for o in llm.encode(prompts, params, pooling_task=task, use_tqdm=False)]

    llm_rows = LLM(
        str(tmp_path),
        task="embedding",
        dtype="float32",
        skip_tokenizer_init=True,
        kv_cache_memory="8MiB",
        override_pooler_config=PoolerConfig("ALL", normalize=False),
    )
    rows = [o.outputs.data.double() for o in llm_rows.encode(prompts, use_tqdm=False)]
    sparse, colbert = (torch.load(tmp_path / f"{name}_linear.pt") for name in ("sparse", "colbert"))
    dense, weights, vectors, both = (
        asked(task) for task in ("embed", "token_classify", "token_embed", "embed&token_classify")
    )
    for i, (given, kept) in enumerate(zip(rows, (slice(1, -1), slice(None)), strict=True)):
        want = torch.relu(given @ sparse["weight"].double().t() + sparse["bias"].double())[kept, 0]
        torch.testing.assert_close(weights[i].double(), want, rtol=1e-4, atol=1e-4)
        after_first = given[1:] if i == 0 else given
        want = functional.normalize(after_first @ colbert["weight"].double().t() + colbert["bias"].double(), dim=-1)
        torch.testing.assert_close(vectors[i].double(), want, rtol=1e-4, atol=1e-4)
        assert torch.equal(both[i], torch.cat([dense[i], weights[i]]))
    assert sum(len(w) for w in weights) == 6
    assert any((w == 0).any() for w in weights) or all((w > 0).all() for w in weights)


def test_heads_that_are_not_there(tmp_path: Path) -> None:
    llm = with_heads(tmp_path, sparse=False)
    with pytest.raises(InvalidRequestError, match="this engine pools for embed, token_embed"):
        llm.encode([[5, 6]], pooling_task="token_classify", use_tqdm=False)
    with pytest.raises(InvalidRequestError, match="it is one of embed, classify"):
        llm.encode([[5, 6]], pooling_task="sparse", use_tqdm=False)
    (tmp_path / "colbert_linear.pt").write_bytes(b"no state dict")
    with pytest.raises(CheckpointError, match="colbert_linear"):
        LLM(str(tmp_path), task="embedding", skip_tokenizer_init=True)


def test_embeddings_are_cut_where_the_model_was_trained_for_it(tmp_path: Path) -> None:
    case = read_case(CASE)
    cut, prompt = PoolingParams(dimensions=8), {"prompt_token_ids": [5, 6, 7]}
    with pytest.raises(InvalidRequestError, match="not trained for embeddings that are cut"):
        load(case, tmp_path).embed(prompt, cut, use_tqdm=False)
    (output,) = load(case, tmp_path, hf_overrides={"is_matryoshka": True}).embed(prompt, cut, use_tqdm=False)
    assert len(output.outputs.embedding) == 8
    llm = load(case, tmp_path, hf_overrides={"matryoshka_dimensions": [16, 32]})
    with pytest.raises(InvalidRequestError, match="trained for 16, 32"):
        llm.embed(prompt, cut, use_tqdm=False)
    assert len(llm.embed(prompt, PoolingParams(dimensions=16), use_tqdm=False)[0].outputs.embedding) == 16
