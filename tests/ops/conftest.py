"""Every implementation of the operations that this machine can run, each as a test of its own."""

import os

import pytest
import torch
from torch import Tensor

from octavo.ops import Backend, select_backend
from octavo.ops.native import Library, NativeBackend, runnable
from octavo.ops.paged_cache import INT4
from octavo.ops.torch import TorchBackend

REFERENCE = TorchBackend(torch.device("cpu"))


def native_backend(name: str) -> NativeBackend:
    """With two threads, that rows and columns be shared among them."""
    backend = NativeBackend(Library(name))
    backend.set_threads(2)
    return backend


def rounds_queries(backend: Backend, dtype: torch.dtype) -> bool:
    """Whether products are of queries and weights rounded as keys are, in place of float32."""
    if backend.name.startswith("triton"):
        return dtype in (torch.bfloat16, torch.float16)
    return dtype in (torch.bfloat16, INT4) and backend.name in ("native (avx512_bf16)", "native (amx)")


def rounds_to_words(backend: Backend, dtype: torch.dtype) -> bool:
    """Whether queries and weights are rounded to 15 or 16 bits, to be multiplied with codes in whole numbers."""
    words = [f"native ({name})" for name in ("avx512_vnni", "avx512_bf16", "amx", "avx_vnni")]
    return dtype == torch.int8 and backend.name in words


def assert_attended(
    got: Tensor,
    want: Tensor,
    backend: Backend,
    dtype: torch.dtype,
    *,
    exact: tuple[float, float] = (1e-4, 1e-5),
    rounded: tuple[float, float] = (4e-2, 4e-2),
    what: str = "",
) -> None:
    """Attention over a cache of `dtype`, as exact as its products are.

    Args:
        exact, rounded: the relative and the absolute bound of products of float32, and of those of 8 bits. A score of
            10, which widths of 256 reach, is then off by 10 / 512, so that a weight is by 2%.
        what: is attended, for the error.
    """
    words = (1e-3, 1e-3)
    rtol, atol = rounded if rounds_queries(backend, dtype) else words if rounds_to_words(backend, dtype) else exact
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}")


@pytest.fixture(params=runnable())
def native(request: pytest.FixtureRequest) -> NativeBackend:
    return native_backend(request.param)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With --interpreted (`make triton`), Triton's kernels too, which takes many minutes."""
    if "backend" in metafunc.fixturenames:
        triton = ["triton"] if metafunc.config.getoption("--interpreted") else []
        metafunc.parametrize("backend", ["torch", *runnable(), *triton], indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param in ("torch", "triton"):
        return select_backend("cpu", request.param)
    return native_backend(request.param)


@pytest.fixture(scope="session")
def triton_backend() -> Backend:
    """Triton's kernels, on the processor."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("this process has Triton compile for the GPU: set TRITON_INTERPRET=1")
    return select_backend("cpu", "triton")
