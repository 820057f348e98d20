"""Embeddings as bytes, in the number types and orders that clients ask for."""

import base64
import functools
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

FP8 = {"fp8_e4m3": (4, 7, 0x7E, 0x7E), "fp8_e5m2": (5, 15, 0x7B, 0x7C)}
"""Types of eight bits: bits of the exponent, its bias, the code of the largest number, and what is beyond it."""
NAN = 0x7F


@functools.cache
def _values(kind: str) -> Array:
    """The numbers that the codes from 0 to the largest stand for, and what would follow them."""
    exponent_bits, bias, largest, _ = FP8[kind]
    mantissa_bits = 7 - exponent_bits
    codes = np.arange(largest + 2)
    exponent, mantissa = codes >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    fraction = mantissa / (1 << mantissa_bits) + (exponent > 0)
    values: Array = np.ldexp(fraction, np.maximum(exponent, 1) - bias)
    return values


def _as_fp8(array: Array, kind: str) -> Array:
    """The nearest code of each float32; of two that are equally near the even one."""
    _, _, largest, beyond = FP8[kind]
    values, size = _values(kind), np.abs(array.astype(np.float64))
    high = np.clip(np.searchsorted(values, size), 1, largest + 1)
    low = high - 1
    middle = (values[low] + values[high]) / 2
    codes = np.where((size > middle) | ((size == middle) & (high % 2 == 0)), high, low)
    codes = np.where(codes > largest, beyond, codes)
    codes = np.where(np.isnan(size), NAN, codes)
    return (codes | np.where(np.signbit(array), 0x80, 0)).astype(np.uint8)


def _as_bfloat16(array: Array) -> Array:
    """The nearest of each float32, as 16 bits."""
    bits = array.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(array), np.uint16(0x7FC0), rounded)


def as_bytes(array: Array, dtype: str, endianness: str) -> bytes:
    """The values of an array of float32, one after the other."""
    array = np.ascontiguousarray(array, dtype=np.float32)
    if dtype in FP8:
        return _as_fp8(array, dtype).tobytes()
    if dtype == "float16":
        with np.errstate(over="ignore"):  # what is beyond it is infinite
            array = array.astype(np.float16)
    made = _as_bfloat16(array) if dtype == "bfloat16" else array
    is_other = endianness not in ("native", sys.byteorder)
    return (made.byteswap() if is_other else made).tobytes()


def as_base64(array: Array, dtype: str, endianness: str) -> str:
    """The same as a text."""
    return base64.b64encode(as_bytes(array, dtype, endianness)).decode()


def bytes_body(
    arrays: Sequence[Array], dtype: str, endianness: str, about: dict[str, Any] | None
) -> tuple[bytes, dict[str, str]]:
    """All arrays one after the other, and headers that say where each lies.

    Args:
        about: what the header says beside that; None for no header.
    """
    parts = [as_bytes(array, dtype, endianness) for array in arrays]
    places, at = list[dict[str, Any]](), 0
    for index, (array, part) in enumerate(zip(arrays, parts, strict=True)):
        own = {"embed_dtype": dtype, "endianness": endianness, "start": at, "end": at + len(part)}
        places.append({"index": index, **own, "shape": list(array.shape)})
        at += len(part)
    headers = {} if about is None else {"metadata": json.dumps({**about, "data": places})}
    return b"".join(parts), headers
