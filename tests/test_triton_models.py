"""Golden cases answered by Triton's kernels under its interpreter: one, and with --interpreted of every text row.

Of each prompt, the first tokens of the answer: those of a prefill, and of steps that are recorded and run again. With
--interpreted, the one case's whole answers.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.golden import CASES, case_named, has_media, read_case
from tests.test_golden import agrees

pytest.importorskip("triton")

SAMPLE = "LlamaForCausalLM--llama1-keys"
TOKENS = 4


def shortest() -> list[Path]:
    """Of each row, the case of text with the fewest tokens to compute."""
    by_row = dict[str, tuple[int, Path]]()
    for path in CASES:
        case = read_case(path)
        if not has_media(case):
            size = sum(
                len(c.get("prompt_token_ids", ())) + 4 * len(c.get("output_token_ids", ())) for c in case["cases"]
            )
            row = path.stem.partition("--")[0]
            by_row[row] = min(by_row.get(row, (size, path)), (size, path))
    return [path for _, path in sorted(by_row.values())]


def shortened(case: dict[str, Any]) -> dict[str, Any]:
    """The case, with TOKENS tokens of each answer."""
    cut = ("output_token_ids", "top_logprobs")
    return {
        **case, "cases": [{k: v[:TOKENS] if k in cut else v for k, v in each.items()} for each in case["cases"]]
    }  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "row" in metafunc.fixturenames:
        chosen = shortest() if metafunc.config.getoption("--interpreted") else []
        metafunc.parametrize("row", chosen, ids=lambda path: path.stem)


def test_a_golden_case(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    case = case_named(SAMPLE)
    agrees(case if pytestconfig.getoption("--interpreted") else shortened(case), tmp_path, ops="triton", device="cpu")


@pytest.mark.interpreted
def test_a_case_of_each_row(row: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program goes over all of a row's keys: a recorded step has one for each 512 that there is room for, else."""
    monkeypatch.setattr("octavo.ops.triton.attention_launch.ENOUGH_PROGRAMS", 0)
    agrees(shortened(read_case(row)), tmp_path, ops="triton", device="cpu")
