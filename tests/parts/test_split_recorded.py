"""The compiled core's decode steps of a model that ranks share are recorded, meetings of ranks with the rest.

Every case in float32, and every other sixteen in bfloat16; `make parallel` has both of each.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from octavo import SamplingParams, launch
from octavo.config import EngineArgs
from octavo.loading import model as loading
from octavo.loading.model import LoadedModel, load_model
from octavo.ops import Backend
from octavo.ops.native import runnable
from tests.golden import CASES, case_named, prompt_of
from tests.ops.rank_processes import run_ranks
from tests.parts.test_split import ranks_for
from tests.rank_threads import ThreadPlace
from tests.test_golden import agrees, load

pytestmark = pytest.mark.alone

GENERATING = [path.stem for path in CASES if "output_token_ids" in case_named(path.stem)["cases"][0]]
SAMPLE = [
    "DeepseekV2ForCausalLM--lite",
    "JambaForCausalLM--mini",
    "MPTForCausalLM--qk-ln",
    "MiniCPMForCausalLM--2b",
    "Phi3SmallForCausalLM--8k",
]
AT_ONCE = 16
"""Cases that a pair of ranks has, one after the other: to start a pair takes as long as several of them."""


class JoinedBackend:
    """A backend whose ranks have met already, and stay together when a model is loaded."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.place = ThreadPlace(backend.place.rank, backend.place.size, backend.place.tensor_size)

    def join(self, *place: object) -> None:
        """They have."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def use_rank(backend: Backend, patch: pytest.MonkeyPatch) -> None:
    """Have models loaded be this rank's, each with an engine of its own; all engines do the same."""
    joined: Any = JoinedBackend(backend)

    def load_of_rank(args: EngineArgs) -> LoadedModel:
        return load_model(args, joined.place)

    patch.setattr(loading, "select_backend", lambda device, preference: joined)
    patch.setattr(launch, "load_model", load_of_rank)


def torch_calls(backend: Backend, names: Sequence[str], folder: Path, options: dict[str, Any]) -> dict[str, list[Any]]:
    """What PyTorch computes in recorded steps of cases, whose answers in float32 are held to the references."""
    found = dict[str, list[Any]]()
    with pytest.MonkeyPatch.context() as patch:
        use_rank(backend, patch)
        for name in names:
            own, case = folder / str(backend.place.rank) / name, case_named(name)
            if not options:
                agrees(case, own)
            llm = load(case, own, **options)
            params = SamplingParams(max_tokens=3, ignore_eos=True)
            llm.generate([prompt_of(case["cases"][0])], params, use_tqdm=False)
            programs = llm.engine.executor.runner._recorded.programs.values()
            found[name] = [None if program is None else program.torch_calls for program in programs]
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    is_whole = metafunc.config.getoption("--all-layouts")
    chosen = [pytest.param(SAMPLE, "float32", id="sample")]
    for i in range(0, len(GENERATING), AT_ONCE):
        dtypes = ("float32", "bfloat16") if is_whole or i // AT_ONCE % 2 == 0 else ("float32",)
        names = GENERATING[i : i + AT_ONCE]
        chosen += [pytest.param(names, dtype, id=f"{dtype}-{names[0]}", marks=pytest.mark.slow) for dtype in dtypes]
    metafunc.parametrize(("names", "dtype"), chosen)


@pytest.mark.skipif(not runnable(), reason="the core was not built here")
def test_decode_steps_are_the_core_alone(names: list[str], dtype: str, tmp_path: Path) -> None:
    names = [name for name in names if ranks_for(case_named(name)) == 2]
    options = {} if dtype == "float32" else {"dtype": dtype}
    for found in run_ranks(f"{runnable()[0]} memory", (2, 2), tmp_path, torch_calls, names, tmp_path, options):
        assert found == {name: [[]] for name in names}
