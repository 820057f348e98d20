"""Every implementation of the operations that this machine can run, each as a test of its own."""

import pytest
import torch

from octavo.ops import Kernels, choose_kernels
from octavo.ops.native import Library, runnable
from octavo.ops.native.kernels import NativeKernels

REFERENCE = Kernels(torch.device("cpu"))


@pytest.fixture(params=runnable())
def native(request: pytest.FixtureRequest) -> NativeKernels:
    return NativeKernels(Library(request.param))


@pytest.fixture(params=["torch", *runnable()])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    if request.param == "torch":
        return choose_kernels(torch.device("cpu"), "torch")
    return NativeKernels(Library(request.param))
