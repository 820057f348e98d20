"""Which backend serves."""

import torch

from octavo.errors import ConfigError
from octavo.ops.backend import Backend
from octavo.ops.native import NativeBackend, load
from octavo.ops.torch import TorchBackend


def select_backend(device: str = "auto", preference: str = "auto") -> Backend:
    """The fastest backend for `device` (auto, cpu, cuda, cuda:1); `preference="torch"` forces the reference.

    Raises ConfigError for a device that is unknown or not there.
    """
    place = _device(device)
    if preference == "auto" and place.type == "cpu" and (library := load()) is not None:
        return NativeBackend(library)
    return TorchBackend(place)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name!r} is unknown; give cpu, cuda or cuda:1.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name!r}: PyTorch sees no GPU here. Use device='cpu'.")
    return device
