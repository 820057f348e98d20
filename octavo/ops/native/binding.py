"""Makes of a description (description.py) what each side needs: C++ a header of structs, Python functions that call.

Since setup.py reads it, it imports nothing that needs PyTorch.
"""

import hashlib
import typing
from collections.abc import Callable, Iterator
from ctypes import CDLL, c_char_p, c_int64, c_void_p, cast
from enum import IntEnum
from struct import Struct
from typing import Any, NamedTuple

from octavo import rank_memory
from octavo.ops.native import description

_NAMES = vars(description) | vars(rank_memory)
_NUMBERS = {"int64_t": "q", "int32_t": "i", "float": "f", "double": "d", "bool": "?"}
"""C's types by struct's letters; all others are addresses."""
_PLAIN = {int: "int64_t", float: "float", bool: "bool"}


class Field(NamedTuple):
    """An argument of a function, or a number of a record."""

    name: str
    type: str
    """C's name of it."""
    letter: str
    """struct's."""
    nullable: bool


class Signature(NamedTuple):
    """A function of the core's."""

    name: str
    fields: tuple[Field, ...]
    returns: bool
    """Whether it gives a number; operations give none."""


def header() -> str:
    """The C++ header: numbers, records, and a struct of arguments for each function."""
    lines = [
        "// Made of octavo/ops/native/description.py and octavo/rank_memory.py, which say what everything means.",
        "#pragma once",
        "",
    ]
    lines += ["#include <cstddef>", "#include <cstdint>", "", "namespace octavo {", ""]
    lines += [f"constexpr int {name} = {value};" for name, value in _NAMES.items() if type(value) is int]
    for enum in _classes(IntEnum):
        members = ", ".join(f"{member.name} = {member.value}" for member in enum)
        lines += ["", f"enum class {enum.__name__} : int32_t {{ {members} }};"]
    for record in _classes(description.Record):
        lines += _struct(record.__name__, fields_of(record))
    lines += ["", "namespace arguments {"]
    for signature in signatures():
        lines += _struct(signature.name, signature.fields)
    lines += ["", "}  // namespace arguments", "", "}  // namespace octavo", ""]
    return "\n".join([*lines, f'#define OCTAVO_DESCRIPTION "{_hash(lines)}"', ""])


def digest() -> str:
    """What `octavo_description` of a library compiled from this description gives."""
    return header().rpartition('"')[0].rpartition('"')[2]


def signatures() -> Iterator[Signature]:
    """The core's functions."""
    for name, function in vars(description.Core).items():
        if not name.startswith("_"):
            yield Signature(name, fields_of(function), function.__annotations__["return"] is int)


def fields_of(described: Any) -> tuple[Field, ...]:
    """A function's arguments, or a record's numbers, in order."""
    return tuple(_field(name, of) for name, of in described.__annotations__.items() if name != "return")


def layout(fields: tuple[Field, ...]) -> Struct:
    """As C aligns them, to a multiple of eight bytes."""
    return Struct(f"@{''.join(field.letter for field in fields)}0q")


class Bound(NamedTuple):
    """One of a library's functions."""

    signature: Signature
    call: Callable[..., Any]
    """By the names of its arguments, with None as a null address."""
    pack: Callable[..., bytes]
    """Its arguments as the core reads them."""
    address: int


def check(library: CDLL) -> None:
    """Raises OSError where a library was compiled from another description."""
    try:
        library.octavo_description.restype = c_char_p
        found = library.octavo_description().decode()
    except AttributeError:  # compiled before libraries had one
        found = None
    if found != digest():
        raise OSError("it was compiled from other sources; to compile it again: python setup.py build_ext --inplace")


def bind(library: CDLL) -> Iterator[Bound]:
    """The library's functions. Raises OSError where it was compiled from another description."""
    check(library)
    for signature in signatures():
        function = library[f"octavo_{signature.name}"]
        function.argtypes, function.restype = [c_char_p], c_int64 if signature.returns else None
        known = {"function": function, "pack": layout(signature.fields).pack}
        packed = f"pack({', '.join(f'{f.name} or 0' if f.nullable else f.name for f in signature.fields)})"
        call, pack = (_by_name(signature, result, known) for result in (f"function({packed})", packed))
        yield Bound(signature, call, pack, cast(function, c_void_p).value or 0)


def _by_name(signature: Signature, result: str, known: dict[str, Any]) -> Callable[..., Any]:
    """A function of the named arguments. Written out, it costs half of what one through **arguments does."""
    made: dict[str, Callable[..., Any]] = {}
    names = ", ".join(field.name for field in signature.fields)
    exec(f"def {signature.name}(*, {names}): return {result}", known, made)
    return made[signature.name]


def _classes(base: type) -> list[Any]:
    return [v for v in _NAMES.values() if isinstance(v, type) and issubclass(v, base) and v is not base]


def _field(name: str, of: Any) -> Field:
    options = typing.get_args(of)
    nullable = type(None) in options
    if nullable:
        of = next(option for option in options if option is not type(None))
    if metadata := getattr(of, "__metadata__", None):
        return Field(name, metadata[0], _NUMBERS.get(metadata[0], "P"), nullable)
    if issubclass(of, IntEnum):
        return Field(name, of.__name__, "i", nullable)
    return Field(name, _PLAIN[of], _NUMBERS[_PLAIN[of]], nullable)


def _struct(name: str, fields: tuple[Field, ...]) -> list[str]:
    lines = ["", f"struct alignas(8) {name} {{", *(f"    {field.type} {field.name};" for field in fields), "};"]
    return [*lines, f"static_assert(sizeof({name}) == {layout(fields).size});"]


def _hash(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
