"""Text encoders: prompts come whole into steps, and pairs of texts with their types."""

from pathlib import Path

import numpy as np
import pytest

from octavo import LLM
from octavo.errors import ConfigError, InvalidRequestError
from tests.golden import CASES, read_case
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
