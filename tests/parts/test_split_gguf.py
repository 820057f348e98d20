"""GGUF files of models that ranks share: each rank reads its part, and the answers are the published checkpoint's."""

from pathlib import Path

import pytest

from tests.golden import case_named
from tests.loading import test_gguf
from tests.parts.test_split import ranks_for
from tests.rank_threads import ThreadBackend, run_ranks

SAMPLE = {"FalconForCausalLM--40b", "MixtralForCausalLM--8x7b"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SAMPLE else pytest.mark.slow) for n in test_gguf.CASES]
)
def test_ranks_answer_as_the_published_checkpoint(name: str, tmp_path: Path) -> None:
    def work(backend: ThreadBackend) -> None:
        folder = tmp_path / str(backend.place.rank)
        folder.mkdir()
        test_gguf.test_answers_as_the_published_checkpoint(name, folder)

    run_ranks(ranks_for(case_named(name)), work)
