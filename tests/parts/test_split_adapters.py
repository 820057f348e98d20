"""Adapters of models that ranks share: each rank has its part of them, and the answers are the references'."""

from pathlib import Path

import pytest

from tests.adapters import LORA_CASES
from tests.golden import read_case
from tests.parts.test_split import ranks_for
from tests.rank_threads import ThreadBackend, run_ranks
from tests.test_lora import agrees

SAMPLE = {"LlamaForCausalLM--added-tokens", "LlamaForCausalLM--dora", "JambaForCausalLM--mixed"}


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=[] if p.stem in SAMPLE else pytest.mark.slow, id=p.stem) for p in LORA_CASES]
)
def test_ranks_give_reference_answers(path: Path, tmp_path: Path) -> None:
    case = read_case(path)

    def work(backend: ThreadBackend) -> None:
        folder = tmp_path / str(backend.place.rank)
        folder.mkdir()
        agrees(case, folder)

    run_ranks(ranks_for(case), work)
