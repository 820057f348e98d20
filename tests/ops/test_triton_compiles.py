"""Triton's kernels compile for GPUs that are not here, within what these have of shared memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.stored import QUANTIZED

pytest.importorskip("triton")

TARGETS = ["sm_80", "sm_90", "gfx942"]
PARTS = [
    *("choices", "products", "rows", "streams", "rotations", "pooled", "attention", "recurrences", "around_stored"),
    "adapters",
]
KINDS = [kind.name for kind in QUANTIZED]
SAMPLES = {
    "sm_80": ["choices", "rows", "streams", "rotations", "pooled", "Q4_K"],
    "sm_90": [*PARTS, "Q4_K", "NVFP4"],
    "gfx942": ["choices", "rows", "streams", "rotations", "pooled", "recurrences", "adapters", "Q4_K"],
}
"""What the suite's every run compiles; `make triton` compiles all."""


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        *(pytest.param(target, parts, id=f"{target}-some") for target, parts in SAMPLES.items()),
        *(
            pytest.param(target, [*PARTS, *KINDS], marks=pytest.mark.interpreted, id=f"{target}-all")
            for target in TARGETS
        ),
    ],
)
def test_kernels_compile(target: str, parts: list[str], tmp_path: Path) -> None:
    """Products of few rows, of experts' and of many by one instruction, as the program asserts."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.ops.compile_triton", target, *parts],
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr[-2000:]
    compiled = {line.split()[0] for line in done.stdout.splitlines()}
    assert {"route_kernel", "sample_kernel", "each_kernel", "product_kernel", "group_kernel"} <= compiled
    if "attention" in parts:
        assert {"rms_norm_kernel", "attend_kernel", "heads_kernel", "delta_rule_kernel", "inner_kernel"} <= compiled
