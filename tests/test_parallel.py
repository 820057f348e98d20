"""Every row, computed by several processes, answers as its reference does.

A case a row in two ranks that share its layers, and in two stages; `make parallel` has all cases, in more layouts.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import octavo.launch
from octavo.config import EngineArgs
from octavo.errors import ConfigError
from octavo.executor.rank_executor import RankExecutor
from octavo.executor.rank_processes import LocalRanks
from tests.golden import CASES, read_case
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
        metafunc.parametrize(
            ("layout", "path"), [pytest.param(n, p, id=f"{n}-{p.stem}") for n in layouts for p in paths], scope="module"
        )


class Processes:
    """Those of a layout, which load one model after the other. Such as could not load one are ended by that."""

    def __init__(self, args: EngineArgs) -> None:
        self._args = args
        self._ranks: LocalRanks | None = None

    def load(self, args: EngineArgs) -> RankExecutor:
        size, tensor_size = self._args.num_ranks, self._args.tensor_parallel_size
        self._ranks = self._ranks or LocalRanks(size, tensor_size, args.distributed_timeout_seconds, len(CASES))
        try:
            return RankExecutor(self._ranks, args)
        except BaseException:
            self._ranks = None
            raise

    def close(self) -> None:
        if self._ranks is not None:
            self._ranks.close()


@pytest.fixture(scope="module")
def processes(layout: str) -> Iterator[Processes]:
    processes = Processes(EngineArgs(**LAYOUTS[layout]))
    yield processes
    processes.close()


@pytest.mark.slow
def test_every_row(
    layout: str, path: Path, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(octavo.launch, "load_ranks", processes.load)
    try:
        agrees(read_case(path), tmp_path, **LAYOUTS[layout], threads=1)
    except ConfigError as error:
        assert "cannot be divided among" in str(error)  # noqa: PT017
        pytest.skip(str(error))
