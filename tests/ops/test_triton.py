"""Triton's kernels under its interpreter: a sample of what `make triton` runs, and how the backend is chosen."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from octavo.errors import ConfigError
from octavo.ops import Backend, select_backend, selection
from tests.ops.conftest import REFERENCE

pytest.importorskip("triton")


def apart(x: Tensor) -> Tensor:
    """The same rows, which do not lie one after the other."""
    return torch.cat([x, x[:, :3]], 1)[:, : x.shape[1]]


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (9, 33), (3, 5000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm(
    triton_backend: Backend, rows: int, width: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    x, weight = torch.randn(rows, width, generator=generator).to(dtype), torch.randn(width, generator=generator)
    got = triton_backend.rms_norm(apart(x), weight, 1e-5)
    torch.testing.assert_close(got, REFERENCE.rms_norm(x, weight, 1e-5))
    for row in range(rows):
        assert torch.equal(triton_backend.rms_norm(x[row : row + 1], weight, 1e-5), got[row : row + 1])
    assert triton_backend.rms_norm(x[:0], weight, 1e-5).shape == (0, width)


def test_it_is_chosen_by_name(triton_backend: Backend) -> None:
    assert triton_backend.name == "triton (interpreted)"
    assert select_backend("cpu").name != triton_backend.name


def test_the_processor_needs_the_interpreter() -> None:
    code = "from octavo.ops import select_backend; select_backend('cpu', 'triton')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"TRITON_INTERPRET": "0"}, capture_output=True, text=True, check=False
    )
    assert "ConfigError: ops='triton' is for GPUs" in done.stderr
    assert "TRITON_INTERPRET=1" in done.stderr


def test_without_triton_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install triton"):
        select_backend("cpu", "triton")


def test_what_has_no_kernel_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    from octavo.ops.triton.triton_backend import from_reference

    with caplog.at_level("INFO", "octavo"):
        select_backend("cpu", "triton")
    assert len(caplog.records) == 1
    assert "rms_norm" not in from_reference()
    assert all(name in caplog.text for name in from_reference())


def test_triton_is_imported_where_it_is_chosen_alone() -> None:
    code = "import octavo.ops, sys; octavo.ops.select_backend('cpu'); assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
