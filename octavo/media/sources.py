"""Bytes of media, wherever they are: in a value, in a file of this machine, in a tensor."""

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

from octavo.errors import InvalidRequestError, shorten
from octavo.media.limits import MediaLimits

Array = np.ndarray[Any, np.dtype[Any]]


def read_media_file(path: str | os.PathLike[str], limits: MediaLimits, name: str) -> bytes:
    """What a plain file holds. Raises InvalidRequestError where there is none, or more than the limit."""
    shown = shorten(os.fspath(path), 200)
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise InvalidRequestError(f"{name}, {shown}, is no plain file. Give the path of one.")
            return check_bytes(file.read(limits.max_bytes + 1), limits, f"{name}, {shown},")
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidRequestError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidRequestError(f"{name} cannot be read from {shown}: {reason}. Check the path.") from error


def check_length(length: int, limits: MediaLimits, name: str) -> None:
    """Raises InvalidRequestError for no bytes, or more than the limit."""
    if not length:
        raise InvalidRequestError(f"{name} is empty. Send the file's own bytes.")
    if length > limits.max_bytes:
        limit = f"the {limits.max_bytes:,} bytes allowed"
        raise InvalidRequestError(f"{name} is larger than {limit}. Compress it, or send a part of it.")


def check_bytes(data: bytes, limits: MediaLimits, name: str) -> bytes:
    """`data`. Raises InvalidRequestError for none, or more than the limit."""
    check_length(len(data), limits, name)
    return data


def as_bytes(value: object, limits: MediaLimits, name: str) -> bytes | None:
    """The bytes that `value` is, or that the file has whose path it is; None for anything else."""
    if isinstance(value, str | Path):
        return read_media_file(value, limits, name)
    if isinstance(value, bytes | bytearray | memoryview):
        check_length(memoryview(value).nbytes, limits, name)
        return bytes(value)
    return None


def as_array(value: object) -> Array | None:
    """The array that a numpy array, or a tensor of another library, is; None for anything else."""
    if isinstance(value, np.ndarray):
        return value
    if not (hasattr(value, "detach") and hasattr(value, "cpu")):
        return None
    tensor: Any = value
    tensor = tensor.detach().cpu()
    if "bfloat16" in str(tensor.dtype):
        tensor = tensor.float()
    return np.asarray(tensor)
