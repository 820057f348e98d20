"""Every implementation of the operations that this machine can run, each as a test of its own."""

import pytest
import torch

from octavo.ops import Backend, select_backend
from octavo.ops.native import Library, NativeBackend, runnable
from octavo.ops.torch import TorchBackend

REFERENCE = TorchBackend(torch.device("cpu"))


def native_backend(name: str) -> NativeBackend:
    """With two threads, that rows and columns be shared among them."""
    backend = NativeBackend(Library(name))
    backend.set_threads(2)
    return backend


@pytest.fixture(params=runnable())
def native(request: pytest.FixtureRequest) -> NativeBackend:
    return native_backend(request.param)


@pytest.fixture(params=["torch", *runnable()])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "torch":
        return select_backend("cpu", "torch")
    return native_backend(request.param)
