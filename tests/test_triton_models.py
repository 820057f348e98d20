"""Golden cases answered by Triton's kernels under its interpreter: one, and with --interpreted of every text row."""

from pathlib import Path

import pytest

from tests.golden import CASES, has_media, read_case
from tests.test_golden import agrees

pytest.importorskip("triton")

SAMPLE = {"LlamaForCausalLM--llama1-keys"}


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
    return [path for _, path in by_row.values()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" in metafunc.fixturenames:
        sample = [path for path in CASES if path.stem in SAMPLE]
        chosen = shortest() if metafunc.config.getoption("--interpreted") else sample
        metafunc.parametrize("golden", chosen, ids=lambda path: path.stem)


def test_a_golden_case(golden: Path, tmp_path: Path) -> None:
    agrees(read_case(golden), tmp_path, ops="triton", device="cpu")
