"""Every implementation of the operations that this machine can run, each as a test of its own."""

import pytest
import torch

from octavo.ops import Backend, select_backend
from octavo.ops.native import Library, NativeBackend, runnable
from octavo.ops.torch import TorchBackend

REFERENCE = TorchBackend(torch.device("cpu"))


@pytest.fixture(params=runnable())
def native(request: pytest.FixtureRequest) -> NativeBackend:
    return NativeBackend(Library(request.param))


@pytest.fixture(params=["torch", *runnable()])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "torch":
        return select_backend("cpu", "torch")
    return NativeBackend(Library(request.param))
