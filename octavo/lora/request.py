"""Which adapter a request is answered with: what users say, and what the engine knows it by."""

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from octavo.errors import InvalidRequestError, names_closest, shorten

CONFIG = "adapter_config.json"

_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]{1,200}))?", re.ASCII)


def hub_name(path: str) -> tuple[str, str | None] | None:
    """Repository and revision of what may be a name on a hub (`owner/name`, `owner/name@revision`), else None."""
    match = _HUB_NAME.fullmatch(path)
    return None if match is None else (match[1], match[2])


class AdapterNotFoundError(InvalidRequestError):
    """An adapter's path where nothing is."""


def _said(default: Any = None) -> Any:
    """A keyword of vLLM's, which does not tell adapters apart."""
    return field(default=default, kw_only=True, repr=False, compare=False)


@names_closest
@dataclass(frozen=True)
class LoRARequest:
    """An adapter, by a name of the caller's choice, a number and the place of its files.

    Args:
        lora_name: in outputs, metrics and errors.
        lora_int_id: at least 1; vLLM's interface has it. Adapters are told apart by their name and files.
        lora_path: a folder as PEFT writes it, llama.cpp's adapter as a GGUF file, or a hub's name.
        base_model_name: what the adapter was made for; a server tells clients.
        lora_local_path: vLLM's former name of lora_path.
        load_inplace: no effect: files that were replaced are read anew by themselves.
        is_3d_lora_weight: no effect: the tensors' shapes say it.
        long_lora_max_len: refused; no adapter has scaling factors of its own.
        tensorizer_config_dict: refused; adapters are read from safetensors, .bin and GGUF files.
    """

    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    base_model_name: str | None = _said()
    lora_local_path: str | None = _said()
    load_inplace: bool = _said(False)
    is_3d_lora_weight: bool = _said(False)
    long_lora_max_len: int | None = _said()
    tensorizer_config_dict: dict[str, Any] | None = _said()

    def __post_init__(self) -> None:
        if not isinstance(self.lora_name, str) or not self.lora_name:
            raise InvalidRequestError("a LoRARequest needs a lora_name. Give one of your choice.")
        if type(self.lora_int_id) is not int or self.lora_int_id < 1:
            raise InvalidRequestError(f"lora_int_id={self.lora_int_id!r} must be a whole number of at least 1.")
        given = self.lora_path or self.lora_local_path or ""
        object.__setattr__(self, "lora_path", os.fspath(given) if isinstance(given, os.PathLike) else given)
        if not isinstance(self.lora_path, str) or not self.lora_path:
            raise InvalidRequestError(f"the adapter {shorten(self.lora_name, 80)!r} has no lora_path. Name its folder.")
        if self.long_lora_max_len is not None:
            raise InvalidRequestError("long_lora_max_len is not supported: no adapter has scaling factors of its own.")
        if self.tensorizer_config_dict is not None:
            raise InvalidRequestError(
                "tensorizer_config_dict is not supported: adapters are read from safetensors, .bin and GGUF files."
            )

    @property
    def name(self) -> str:
        return self.lora_name

    @property
    def adapter_id(self) -> int:
        return self.lora_int_id

    @property
    def path(self) -> str:
        return self.lora_path


class AdapterRef(msgspec.Struct, frozen=True):
    """An adapter as the engine and its executor know it: plain data."""

    name: str
    path: str
    """A folder, a GGUF file, or a hub's name."""
    digest: bytes
    """Of its name, its place and its files as they are now: what is replaced under the same name is another adapter."""


def refer(request: LoRARequest) -> AdapterRef:
    """What the engine knows a request's adapter by.

    Raises InvalidRequestError where its files are not there.
    """
    name = shorten(request.lora_name, 80)
    try:
        known = msgspec.json.encode([request.lora_name, request.lora_path, _files(name, request.lora_path)])
    except (OSError, ValueError, RuntimeError) as error:  # it goes while one looks, or could be no path at all
        if isinstance(error, InvalidRequestError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidRequestError(
            f"the adapter {name!r}: {shorten(request.lora_path, 200)} cannot be read: {reason}."
        ) from error
    return AdapterRef(request.lora_name, request.lora_path, hashlib.blake2b(known, digest_size=16).digest())


UNSEEN = os.urandom(16).hex()
"""Stands for a hub's files, which nobody has looked at yet: another process may be given others."""


def _files(name: str, given: str) -> list[tuple[str | int, ...]]:
    """Names, sizes and times of an adapter's files; of one that may be a hub's what no other process knows."""
    path = Path(given).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.name.startswith("adapter_"))
        if not (path / CONFIG).is_file():
            raise InvalidRequestError(
                f"the adapter {name!r}: there is no {CONFIG} in {shorten(path, 200)}. "
                "Name the folder that PEFT has written."
            )
        return [(p.name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for p in files for s in [p.stat()]]
    if path.is_file():
        status = path.stat()
        return [(path.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)]
    if hub_name(given) is None:
        raise AdapterNotFoundError(
            f"the adapter {name!r}: there is no {shorten(given, 200)}. "
            f"Name a folder with {CONFIG}, a GGUF file, or a hub's adapter."
        )
    return [(UNSEEN,)]
