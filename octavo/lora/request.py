"""Which adapter a request is answered with: what users say, and what the engine knows it by."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from octavo.errors import InvalidRequestError, shorten

CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class LoRARequest:
    """An adapter, by a name of the caller's choice, a number and the place of its files.

    Args:
        lora_name: in outputs, metrics and errors.
        lora_int_id: at least 1; vLLM's interface has it. Adapters are told apart by their name and files.
        lora_path: a folder as PEFT writes it, llama.cpp's adapter as a GGUF file, or a hub's name.
    """

    lora_name: str
    lora_int_id: int
    lora_path: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.lora_name, str) or not self.lora_name:
            raise InvalidRequestError("a LoRARequest needs a lora_name. Give one of your choice.")
        if type(self.lora_int_id) is not int or self.lora_int_id < 1:
            raise InvalidRequestError(f"lora_int_id={self.lora_int_id!r} must be a whole number of at least 1.")
        if isinstance(self.lora_path, os.PathLike):
            object.__setattr__(self, "lora_path", os.fspath(self.lora_path))
        if not isinstance(self.lora_path, str) or not self.lora_path:
            raise InvalidRequestError(f"the adapter {self.lora_name!r} has no lora_path. Name its folder.")

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
    path = Path(request.lora_path).expanduser()
    found = list[tuple[str, int, int]]()
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.name.startswith("adapter_"))
        found = [(p.name, s.st_size, s.st_mtime_ns) for p in files for s in [p.stat()]]
        if not (path / CONFIG).is_file():
            raise InvalidRequestError(
                f"the adapter {shorten(request.lora_name, 80)!r}: there is no {CONFIG} in {shorten(path, 200)}. "
                "Name the folder that PEFT has written."
            )
    elif path.is_file():
        status = path.stat()
        found = [(path.name, status.st_size, status.st_mtime_ns)]
    elif path.is_absolute() or request.lora_path.count("/") != 1:  # else it may be a hub's
        raise InvalidRequestError(
            f"the adapter {shorten(request.lora_name, 80)!r}: there is no {shorten(request.lora_path, 200)}. "
            f"Name a folder with {CONFIG}, a GGUF file, or a hub's adapter."
        )
    known = msgspec.json.encode([request.lora_name, request.lora_path, found])
    return AdapterRef(request.lora_name, request.lora_path, hashlib.blake2b(known, digest_size=16).digest())
