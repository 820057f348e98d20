"""Every row, computed by several processes, answers as its reference does.

A case a row in two ranks that share its layers, and in two stages; `make parallel` has all cases, in more layouts.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.config import EngineArgs
from octavo.errors import ConfigError
from octavo.executor import rank_executor
from tests.golden import CASES, read_case
from tests.loaded_ranks import LoadedRanks
from tests.test_golden import agrees

pytestmark = pytest.mark.alone

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor_parallel_size": 2},
    "pp2": {"pipeline_parallel_size": 2},
    "tp2pp2": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
    "tp3": {"tensor_parallel_size": 3},
    "pp3": {"pipeline_parallel_size": 3},
}
SAMPLED = ("tp2", "pp2")
SAMPLE = {p.stem.split("--")[0]: p for p in CASES}.values()
"""One case of each row: the last one, which is the fullest of most."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "layout" in metafunc.fixturenames:
        is_whole = metafunc.config.getoption("--all-layouts")
        layouts, paths = (list(LAYOUTS), CASES) if is_whole else (SAMPLED, SAMPLE)
        # Of these only the layout is the module's: with the path, ranks would be started anew for each case.
        metafunc.parametrize("layout", layouts, scope="module")
        metafunc.parametrize("path", paths, ids=lambda p: p.stem)


@pytest.fixture(scope="module")
def ranks(layout: str) -> Iterator[LoadedRanks]:
    ranks = LoadedRanks(EngineArgs(**LAYOUTS[layout]), len(CASES))
    yield ranks
    ranks.close()


@pytest.mark.slow
def test_every_row(
    layout: str, path: Path, ranks: LoadedRanks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_executor, "load_ranks", ranks.load)
    try:
        agrees(read_case(path), tmp_path, **LAYOUTS[layout], threads=1)
    except ConfigError as error:
        assert "cannot be divided among" in str(error)  # noqa: PT017
        pytest.skip(str(error))
