"""Triton's kernels compile for GPUs that are not here, within what these have of shared memory."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_all_kernels_compile(target: str, tmp_path: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.compile_triton", target],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    for kernel in ("product_kernel", "rms_norm_kernel", "attend_kernel", "heads_kernel", "delta_rule_kernel"):
        assert f"{kernel} {target} shared" in done.stdout
