"""Which backend serves."""

import logging
from importlib.util import find_spec

import torch

from octavo.errors import ConfigError
from octavo.ops.backend import Backend
from octavo.ops.native import NativeBackend, load
from octavo.ops.torch import TorchBackend

log = logging.getLogger("octavo")


def select_backend(device: str = "auto", preference: str = "auto") -> Backend:
    """The fastest backend for `device` (auto, cpu, cuda, cuda:1).

    `preference="torch"` forces the reference, `"triton"` the kernels for GPUs, which a processor interprets. On a GPU
    "auto" is the reference too, until a GPU has run the kernels: right answers go before quick ones.

    Raises ConfigError for a device that is unknown or not there, and for kernels that cannot run.
    """
    place = _device(device)
    if preference == "triton":
        return _triton(place)
    if preference == "auto" and place.type == "cpu" and (library := load()) is not None:
        return NativeBackend(library)
    return TorchBackend(place)


def device_of_rank(name: str, rank: int, num_ranks: int, replicas: int = 1) -> str:
    """The device of one of the processes of this machine that compute at a time: of GPUs, each has one of its own.

    Args:
        name: as of `select_backend`.
        rank: which process it is, replica by replica.
        num_ranks: processes of a replica, which compute one model together.
        replicas: how many there are, which may share a GPU.

    Raises ConfigError for more ranks of a replica than GPUs.
    """
    if num_ranks * replicas == 1 or not name.startswith(("auto", "cuda")) or not torch.cuda.is_available():
        return name
    count = torch.cuda.device_count()
    if num_ranks > (1 if ":" in name else count):
        raise ConfigError(
            f"device={name!r}: {num_ranks} ranks need a GPU each, and there "
            f"{'is one in that name' if ':' in name else f'are {count}'}. Lower tensor_parallel_size or "
            "pipeline_parallel_size, or set device='cuda' where there are more, or 'cpu'."
        )
    return name if ":" in name else f"cuda:{rank % count}"


def _triton(place: torch.device) -> Backend:
    if find_spec("triton") is None:
        raise ConfigError("ops='triton' needs the triton package, which is not installed: pip install triton.")
    from octavo.ops.triton import TritonBackend
    from octavo.ops.triton.launching import INTERPRETED

    if place.type == "cpu" and not INTERPRETED:
        raise ConfigError(
            "ops='triton' is for GPUs, and the device is the processor. For tests, Triton's interpreter runs the "
            "kernels there, very slowly: set TRITON_INTERPRET=1 in the environment."
        )
    return TritonBackend(place)


def _device(name: str) -> torch.device:
    if name == "auto":
        if not torch.cuda.is_available():
            log.info("device='auto' takes the processor: PyTorch sees no GPU here.")
            return torch.device("cpu")
        log.info(
            "device='auto' takes the GPU, %s. ops='triton' has kernels for it, which no GPU has run yet (docs/gpu.md); "
            "device='cpu' may be faster for small models.",
            torch.cuda.get_device_name(),
        )
        return torch.device("cuda")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name!r} is unknown; give cpu, cuda or cuda:1.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name!r}: PyTorch sees no GPU here. Use device='cpu'.")
    return device
