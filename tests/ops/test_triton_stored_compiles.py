"""Kernels of stored weights, experts and adapters compile for a GPU: what the interpreter cannot tell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.stored import QUANTIZED

pytest.importorskip("triton")

SAMPLE = ["Q4_K", "NVFP4"]


@pytest.mark.parametrize(
    "kinds", [SAMPLE, pytest.param([kind.name for kind in QUANTIZED], marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_products_are_the_matrix_units(kinds: list[str], tmp_path: Path) -> None:
    """Few rows, and experts', by the instruction that many rows have, whose order of sums is a row's."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.ops.triton_compiled", *kinds],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert {found[f"{kind} {of}"] for kind in kinds for of in ("alone", "experts")} == {"wgmma"}
    assert found["inner"] == "mma.sync"  # of 16 values at a time, whatever the rows
    assert found["change"] == "wgmma"
    assert found["amd"] == "v_mfma_f32_16x16x16_bf16"
