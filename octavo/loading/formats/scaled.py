"""Weights of 8-bit floats and integers, which are stored beside their scales; and 4-bit floats, two a byte."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from octavo.errors import CheckpointError, shorten
from octavo.loading.formats.codes import FP4, Codes
from octavo.loading.formats.unpacking import nibbles
from octavo.loading.tensor_source import TensorSource

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
PLAIN = (torch.float32, torch.bfloat16, torch.float16)


def scaled(
    name: str, weight: TensorSource, scales: TensorSource, block: tuple[int, int], zeros: TensorSource | None = None
) -> Callable[[], Codes]:
    """What reads a weight `[outputs, inputs]` whose values are times a scale.

    Args:
        name: of the weight, for messages.
        scales: of any shape that holds one for each block.
        block: outputs and inputs that share a scale; the last ones may be cut.
        zeros: of the same blocks, subtracted before.

    Raises CheckpointError for scales of another number.
    """
    outputs, inputs = two_dimensions(name, weight)
    grid = (math.ceil(outputs / block[0]), math.ceil(inputs / block[1]))
    for what, source in (("scales", scales), ("zeros", zeros)):
        if source is not None and math.prod(source.shape) != math.prod(grid):
            raise CheckpointError(
                f"{shorten(name)} {list(weight.shape)} has {what} {list(source.shape)} (expected: {list(grid)}, for "
                f"blocks of {list(block)}). Is config.json its own?"
            )

    def make() -> Codes:
        means = None if zeros is None else zeros.read().float().reshape(grid)
        if means is not None and block[0] > 1:
            means = means.repeat_interleave(block[0], 0)[:outputs]
        return Codes(numbers_of(name, weight), scales.read().float().reshape(grid), block[1], block[0], means)

    return make


def numbers_of(name: str, weight: TensorSource) -> Tensor:
    """Numbers of 8 bits. Raises CheckpointError where the tensor holds others."""
    numbers = weight.read()
    if numbers.dtype not in (*FLOAT8, torch.int8):
        raise CheckpointError(
            f"{shorten(name)} is {str(numbers.dtype).removeprefix('torch.')}, and has scales as if it were of 8 bits. "
            "Is config.json its own?"
        )
    return numbers


def two_dimensions(name: str, source: TensorSource) -> tuple[int, int]:
    """The shape of a matrix. Raises CheckpointError for another."""
    if len(source.shape) != 2:
        raise CheckpointError(f"{shorten(name)} is {list(source.shape)} (expected: [outputs, inputs]).")
    return source.shape[0], source.shape[1]


def fp4_pairs(
    name: str, packed: TensorSource, scales: TensorSource, group: int, factor: Callable[[], float] | None = None
) -> tuple[tuple[int, int], Callable[[], Codes]]:
    """The shape of a weight of e2m1 numbers, two a byte, the low half first; and what reads it.

    Args:
        packed: [outputs, inputs / 2] uint8.
        scales: [outputs, inputs / group] float8, or uint8 for exponents plus 127.
        factor: gives what all scales are multiplied with.

    Raises CheckpointError for scales of another shape.
    """
    outputs, halves = two_dimensions(name, packed)
    if scales.shape != (outputs, 2 * halves // group):
        raise CheckpointError(
            f"{shorten(name)} {list(packed.shape)} has scales {list(scales.shape)} (expected: "
            f"{[outputs, 2 * halves // group]}). Is config.json its own?"
        )
    return (outputs, 2 * halves), partial(_fp4, name, packed, scales, group, factor)


def _fp4(
    name: str, packed: TensorSource, scales: TensorSource, group: int, factor: Callable[[], float] | None
) -> Codes:
    codes, stored = packed.read(), scales.read()
    if codes.dtype != torch.uint8 or stored.dtype not in (torch.uint8, *FLOAT8, *PLAIN):
        raise CheckpointError(f"{shorten(name)} is not of bytes with scales of floats. Is config.json its own?")
    if stored.dtype == torch.uint8:
        values = torch.ldexp(torch.ones(stored.shape), stored.int() - 127)
    else:
        values = stored.float()
    whole = None if factor is None else factor()
    if whole is not None:
        values = values * whole
    return Codes(nibbles(codes), values, group, table=torch.tensor(FP4), factor=whole)


def single(name: str, source: TensorSource) -> float:
    """A number that is stored as a tensor. Raises CheckpointError where it is not one, finite and above zero."""
    value = float(source.read().float().flatten()[0]) if math.prod(source.shape) == 1 else math.nan
    if not 0 < value < math.inf:
        raise CheckpointError(f"{shorten(name)} must be one number above zero. Download the file again.")
    return value
