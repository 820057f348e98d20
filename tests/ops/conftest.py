"""Every implementation of the operations that this machine can run, each as a test of its own."""

from pathlib import Path

import pytest
import torch

import octavo.ops.native as native_module
from octavo.ops import Kernels, choose_kernels
from octavo.ops.native import NativeKernels

CPU = torch.device("cpu")
RUNNABLE = {"AVX512": ("base", "avx2", "avx512"), "AVX2": ("base", "avx2")}


def libraries() -> dict[str, Path]:
    """The compiled libraries whose instructions this processor has."""
    folder = Path(native_module.__file__).parent
    names = RUNNABLE.get(torch.backends.cpu.get_cpu_capability(), ("base",))
    return {n: p for n in names for p in folder.glob(f"_kernels_{n}*.so")}


@pytest.fixture(params=["torch", *libraries()])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    if request.param == "torch":
        return choose_kernels(torch.float32, CPU, "torch")
    library = NativeKernels(libraries()[request.param], request.param)
    monkeypatch.setattr("octavo.ops.kernels.load", lambda: library)
    chosen = choose_kernels(torch.float32, CPU)
    assert chosen.name == f"native ({request.param})"
    return chosen
