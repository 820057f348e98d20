"""PyTorch's files, read without running what is pickled in them.

A state dict is names, shapes and places of storages, and needs some thirty of pickle's instructions. They are carried
out here on plain values: nothing is called, and nothing is made before its size is known to be in the file. torch.load
does more, some of it without bounds (a tuple of tuples as a key is hashed for ever), and takes a storage's bytes from
wherever the file goes on.
"""

import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from octavo.errors import CheckpointError, shorten
from octavo.files import open_file
from octavo.loading.pickled_tensor import PickledTensor, Storage, View

PICKLE_MAX = 32 << 20
"""Bytes of a pickle, beside the storages."""
STEPS_MAX = 1_000_000
"""Instructions of a pickle: a tensor takes some 25."""
RECORDS_MAX = 200_000
"""Records of a zip file."""
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}
_LEFT_OUT = (
    "_codecs.encode",
    "torch.device",
    "collections.Counter",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "bytearray", "complex")),
)
"""Values beside the weights, which nobody here asks for."""
_PUSHED = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING")
_BYTES = ("BINBYTES", "SHORT_BINBYTES")


class DamagedError(Exception):
    """A pickle, or the file around it, that is not whole."""


@dataclass(frozen=True)
class _Global:
    """A name in a module. It is never looked up."""

    name: str


def pickled_tensors(path: Path) -> Iterator[tuple[str, PickledTensor]]:
    """Name and source of every tensor of a state dict. Raises CheckpointError for what is none, or not whole."""
    try:
        with open_file(path) as file:
            is_zip = file.read(2) == b"PK"
            file.seek(0)
            state, starts = _zipped(file) if is_zip else _legacy(file)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors (pickled Python code: {shorten(error)}), and is refused. Convert it to "
            "safetensors in a place you trust."
        ) from error
    except (DamagedError, ValueError, struct.error, zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged or cut short ({shorten(error, 200)}). Download it again.") from error
    except (LookupError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path} is damaged (its pickle is none of a state dict). Download it again.") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a dictionary of tensors.")
    for name, view in state.items():
        if isinstance(view, View) and isinstance(name, str):
            if view.storage not in starts:
                raise CheckpointError(f"{path} lacks the numbers of {shorten(name)}. Download it again.")
            yield name, PickledTensor(path, view, starts[view.storage])


def _zipped(file: BinaryIO) -> tuple[Any, dict[Storage, int]]:
    """The object of a file as torch.save writes it since 1.6, and where its storages' bytes begin."""
    if _num_records(file) > RECORDS_MAX:
        raise DamagedError(f"more than {RECORDS_MAX} records")
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
        if len(records) != len(archive.infolist()):
            raise DamagedError("two records have one name")
        pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise DamagedError("it has no data.pkl, or several")
        prefix = pickles[0].removesuffix("data.pkl")
        if records[pickles[0]].file_size > PICKLE_MAX:
            raise DamagedError(f"its pickle is larger than {PICKLE_MAX >> 20} MiB")
        machine = _Machine(_Bounded(archive.open(pickles[0])))
        state = machine.run()
        order = records.get(f"{prefix}byteorder")
        if order is not None and order.file_size < 10 and archive.read(order) != b"little":
            raise DamagedError("its numbers are not little-endian")
    starts = {}
    for storage in machine.storages.values():
        record = records.get(f"{prefix}data/{storage.key}")
        if record is None:
            continue
        if record.compress_type != zipfile.ZIP_STORED:
            raise DamagedError("its numbers are compressed")
        if record.file_size < storage.numel * storage.dtype.itemsize:
            raise DamagedError(f"storage {shorten(storage.key)} is larger than its record")
        file.seek(record.header_offset)
        header = file.read(30)
        starts[storage] = record.header_offset + 30 + sum(struct.unpack("<26xHH", header))
    return state, starts


def _num_records(file: BinaryIO) -> int:
    """How many records a zip file can have by the size of its directory, without reading it."""
    size = file.seek(0, 2)
    file.seek(max(0, size - (1 << 16) - 22))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0:
        raise DamagedError("a zip file's end is missing")
    (directory,) = struct.unpack_from("<12xI", tail, at)
    at = tail.rfind(b"PK\6\6")
    if at >= 0:
        directory = max(directory if directory != 0xFFFFFFFF else 0, *struct.unpack_from("<40xQ", tail, at))
    file.seek(0)
    return int(directory) // 46  # the least that a record takes in it


def _legacy(file: BinaryIO) -> tuple[Any, dict[Storage, int]]:
    """The object of a file as torch.save wrote it before 1.6: pickles, then each storage's length and bytes."""
    size = file.seek(0, 2)
    file.seek(0)
    bounded = _Bounded(file)
    if _Machine(bounded).run() != LEGACY_MAGIC:
        raise DamagedError("it is no file of PyTorch's")
    _Machine(bounded).run()  # the format's version
    system = _Machine(bounded).run()
    if not system.get("little_endian", True):
        raise DamagedError("its numbers are not little-endian")
    machine = _Machine(bounded)
    state, keys = machine.run(), _Machine(bounded).run()
    starts = {}
    for key in keys:
        (numel,) = struct.unpack("<q", file.read(8))
        storage, start = machine.storages[key], file.tell()
        if numel < storage.numel or start + numel * storage.dtype.itemsize > size:
            raise DamagedError(f"storage {shorten(key)} is longer than the file")
        starts[storage] = start
        file.seek(start + numel * storage.dtype.itemsize)
    return state, starts


class _Bounded:
    """A file of which no more than PICKLE_MAX bytes are read, for pickletools."""

    def __init__(self, file: Any) -> None:
        self.file, self.left = file, PICKLE_MAX

    def read(self, count: int) -> bytes:
        self._take(count)
        data: bytes = self.file.read(count)
        return data

    def readline(self) -> bytes:
        line: bytes = self.file.readline(min(self.left, 1 << 16))
        self._take(len(line))
        return line

    def tell(self) -> int:
        return PICKLE_MAX - self.left

    def _take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise DamagedError(f"its pickle is larger than {PICKLE_MAX >> 20} MiB")


class _Machine:
    """Carries out a pickle on plain values. Raises pickle.UnpicklingError for what is not a state dict's."""

    def __init__(self, file: _Bounded) -> None:
        self.file = file
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self) -> Any:
        """The value of the pickle that the file goes on with."""
        for step, (code, argument, _) in enumerate(pickletools.genops(self.file)):  # type: ignore[arg-type]
            if step > STEPS_MAX:
                raise DamagedError(f"its pickle has more than {STEPS_MAX} instructions")
            if code.name == "STOP":
                break
            self._step(code.name, argument)
        return self.stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            return
        if name in _PUSHED:
            stack.append(_PUSHED[name])
        elif name in _NUMBERS or name in _TEXTS or name in _BYTES:
            stack.append(argument)
        elif name == "MARK":
            self.marks.append(stack)
            self.stack = []
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[argument])
        elif name == "GLOBAL":
            stack.append(_Global(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Global(f"{module}.{attribute}"))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._called(function, arguments))
        elif name == "BUILD":
            stack.pop()  # attributes of an OrderedDict or of a tensor's subclass
        else:
            self._collect(name)

    def _collect(self, name: str) -> None:
        """The instructions that make and fill collections."""
        if name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            self.stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[name])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            items = tuple(self.stack[-count:])
            del self.stack[-count:]
            self.stack.append(items)
        elif name in ("TUPLE", "LIST"):
            members = self._from_mark()
            self.stack.append(tuple(members) if name == "TUPLE" else members)
        elif name in ("APPEND", "APPENDS"):
            members = [self.stack.pop()] if name == "APPEND" else self._from_mark()
            self.stack[-1].extend(members)
        elif name in ("SETITEM", "SETITEMS", "DICT"):
            members = list(reversed([self.stack.pop(), self.stack.pop()])) if name == "SETITEM" else self._from_mark()
            if name == "DICT":
                self.stack.append({})
            for key, value in zip(members[::2], members[1::2], strict=True):
                if not isinstance(key, (str, int)):
                    raise pickle.UnpicklingError("a key that is no name")
                self.stack[-1][key] = value
        elif name == "POP":
            self.stack.pop()
        else:
            raise pickle.UnpicklingError(name)

    def _from_mark(self) -> list[Any]:
        members, self.stack = self.stack, self.marks.pop()
        return members

    def _storage(self, described: Any) -> Storage:
        kind, storage_type, key, _, numel, *view = described
        dtype = _STORAGES.get(storage_type.name.rpartition(".")[2])
        if kind != "storage" or dtype is None or any(v is not None for v in view):
            raise pickle.UnpicklingError(f"a storage of {shorten(storage_type.name)}")
        if type(numel) is not int or not 0 <= numel < 2**48:
            raise DamagedError("a storage's length is none")
        storage = Storage(str(key), dtype, numel)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise DamagedError(f"storage {shorten(key)} is described in two ways")
        return storage

    def _called(self, function: Any, arguments: Any) -> Any:
        """What a call that a state dict may hold stands for."""
        name = function.name if isinstance(function, _Global) else ""
        if name == "collections.OrderedDict":
            return {str(key): value for key, value in (arguments[0] if arguments else ())}
        if name in _LEFT_OUT:
            return None
        if name == "torch.Size":
            return arguments[0]
        if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
            return arguments[0]
        if name == "torch._tensor._rebuild_from_type_v2":
            return self._called(arguments[0], arguments[2])
        if name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
            storage, offset, shape, stride = arguments[:4]
            return _view(storage, storage.dtype, offset, shape, stride)
        if name == "torch._utils._rebuild_tensor_v3":
            storage, offset, shape, stride, _, _, dtype = arguments[:7]
            known = getattr(torch, dtype.name.removeprefix("torch."), None) if dtype.name.isascii() else None
            if isinstance(known, torch.dtype):
                return _view(storage, known, offset, shape, stride)
        raise pickle.UnpicklingError(name or "a call of what is no name")


def _view(storage: Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any) -> View:
    """A tensor that lies in its storage. Raises DamagedError for one that does not, or that is larger."""
    numbers = [offset, *shape, *stride]
    if len(shape) != len(stride) or len(shape) > 16:
        raise DamagedError("a tensor's shape and strides do not fit each other")
    if any(type(n) is not int or not 0 <= n < 2**48 for n in numbers):
        raise DamagedError("a tensor's shape or strides are no sizes")
    view = View(storage, dtype, offset, tuple(shape), tuple(stride))
    available = storage.numel * storage.dtype.itemsize // dtype.itemsize
    if offset + view.span > available or prod(view.shape) > available:
        raise DamagedError(f"a tensor of shape {list(shape)[:8]} is larger than its storage")
    return view
