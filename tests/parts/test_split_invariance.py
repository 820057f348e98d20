"""Ranks that share a model give the same bits whatever the batch, on the compiled core."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from octavo.ops import Backend
from octavo.ops.native import runnable
from tests import test_invariance
from tests.golden import read_case
from tests.ops.rank_processes import run_ranks
from tests.parts.test_split import ranks_for
from tests.parts.test_split_recorded import use_rank

pytestmark = pytest.mark.alone

ROWS = list(test_invariance.ROWS)
SAMPLE = ["JambaForCausalLM", "MixtralForCausalLM"]


def leave_no_trace(backend: Backend, rows: Sequence[str], folder: Path, options: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        use_rank(backend, patch)
        for row in rows:
            own = folder / row / str(backend.place.rank)
            test_invariance.test_batch_chunks_and_preemption_leave_no_trace(row, options, own)


@pytest.mark.skipif(not runnable(), reason="the core was not built here")
@pytest.mark.parametrize(
    ("rows", "way"),
    [
        (SAMPLE, "native"),
        *(
            pytest.param(ROWS[i : i + 4], way, marks=pytest.mark.slow)
            for way in ("native", "bfloat16", "int8")
            for i in range(0, len(ROWS), 4)
        ),
    ],
)
def test_batch_chunks_and_preemption_leave_no_trace(rows: list[str], way: str, tmp_path: Path) -> None:
    rows = [row for row in rows if ranks_for(read_case(test_invariance.ROWS[row])) == 2]
    run_ranks(f"{runnable()[0]} memory", (2, 2), tmp_path, leave_no_trace, rows, tmp_path, test_invariance.WAYS[way])
