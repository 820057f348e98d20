"""Ranks that share a model give the same bits whatever the batch, on the compiled core.

Every row in float32, and in one of the two rounded ways; `make parallel` has both of each.
"""

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
WAYS = ("native", "bfloat16", "int8", "q4")
AT_ONCE = 8
"""Rows that a pair of ranks has, one after the other: to start a pair takes as long as several of them."""


def leave_no_trace(backend: Backend, rows: Sequence[str], folder: Path, options: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        use_rank(backend, patch)
        for row in rows:
            own = folder / row / str(backend.place.rank)
            test_invariance.test_batch_chunks_and_preemption_leave_no_trace(row, options, own)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    is_whole = metafunc.config.getoption("--all-layouts")
    groups = [ROWS[i : i + AT_ONCE] for i in range(0, len(ROWS), AT_ONCE)]
    chosen = [(rows, way) for rows in groups for way in WAYS] if is_whole else []
    for i, rows in enumerate(() if is_whole else groups):
        chosen += [(rows, WAYS[0]), (rows, WAYS[1 + i % 3])]
    several = [pytest.param(rows, way, id=f"{way}-{rows[0]}", marks=pytest.mark.slow) for rows, way in chosen]
    metafunc.parametrize(("rows", "way"), [pytest.param(SAMPLE, WAYS[0], id="sample"), *several])


@pytest.mark.skipif(not runnable(), reason="the core was not built here")
def test_batch_chunks_and_preemption_leave_no_trace(rows: list[str], way: str, tmp_path: Path) -> None:
    rows = [row for row in rows if ranks_for(read_case(test_invariance.ROWS[row])) == 2]
    run_ranks(f"{runnable()[0]} memory", (2, 2), tmp_path, leave_no_trace, rows, tmp_path, test_invariance.WAYS[way])
