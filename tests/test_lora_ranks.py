"""Adapters on several ranks: the reference's answers, and refusals that leave the engine as it was."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo import SamplingParams
from octavo.config import EngineArgs
from octavo.errors import InvalidRequestError
from octavo.executor import rank_executor
from tests.adapters import LORA_CASES, adapter_tensors, lora_case, requests_of, save_adapter
from tests.golden import prompt_of, read_case
from tests.loaded_ranks import LoadedRanks
from tests.test_lora import agrees, load_case

pytestmark = pytest.mark.alone

SAMPLE = ("LlamaForCausalLM--dora", "GraniteMoeForCausalLM--parameters")
"""Those that every run has."""
CASES = [pytest.param(path, id=path.stem, marks=[] if path.stem in SAMPLE else pytest.mark.slow) for path in LORA_CASES]


@pytest.fixture(scope="module")
def ranks() -> Iterator[LoadedRanks]:
    ranks = LoadedRanks(EngineArgs(tensor_parallel_size=2), len(CASES))
    yield ranks
    ranks.close()


@pytest.mark.parametrize("path", CASES)
def test_reference_answers(path: Path, ranks: LoadedRanks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_executor, "load_ranks", ranks.load)
    agrees(read_case(path), tmp_path, tensor_parallel_size=2)


def test_an_adapter_that_is_refused_leaves_the_others(tmp_path: Path) -> None:
    case = lora_case("LlamaForCausalLM--all-linear")
    tensors = adapter_tensors(case, "all")
    key = next(name for name in tensors if name.endswith("down_proj.lora_A.weight"))
    tensors[key] = tensors[key][:, :-1]
    requests = requests_of(case, tmp_path)
    save_adapter(tmp_path / "all", case["adapters"]["all"]["adapter_config"], tensors)
    broken = requests["all"]
    llm = load_case(case, tmp_path / "base", tensor_parallel_size=2)
    params, prompt = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True), prompt_of(case["cases"][0])
    before = llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].token_ids
    with pytest.raises(InvalidRequestError, match=r"down_proj\.lora_A\.weight has the shape"):
        llm.generate(prompt, params, use_tqdm=False, lora_request=broken)
    assert llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].token_ids == before
