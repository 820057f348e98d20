"""Quantized weights as rows of the kinds that backends multiply with, where one has all of their numbers."""

from dataclasses import replace

import torch
from torch import Tensor

from octavo.loading.formats.codes import BNB_FP4, FP4, NF4, Codes
from octavo.ops.stored_rows import StoredRows
from octavo.ops.weight_kinds import WeightKind

GROUPED = {128: WeightKind.U4_128, 64: WeightKind.U4_64, 32: WeightKind.U4_32}
"""Kinds of 4-bit codes by the columns that share a scale."""
BYTES = {128: WeightKind.U8_128, 32: WeightKind.U8_32}
"""Kinds of 8-bit codes whose zero is the middle."""
BYTES_WITH_MINS = {128: WeightKind.U8_MIN_128, 32: WeightKind.U8_MIN_32}
TABLES = {NF4: WeightKind.NF4, BNB_FP4: WeightKind.FP4}
FLOATS8 = {torch.float8_e4m3fn: WeightKind.E4M3, torch.float8_e5m2: WeightKind.E5M2}
NOT_FINITE = {torch.float8_e4m3fn: 0x7F, torch.float8_e5m2: 0x7C}
"""Bits that are all set in what is no number."""
MXFP4_GROUP = 32
FP4_GROUP = 16
"""Columns of e2m1 that share a scale in NVFP4."""


def stored_rows(codes: Codes) -> StoredRows | None:
    """The rows of a weight, each number as it is; None where no kind has them."""
    if not codes.shape[0]:
        return None
    if codes.groups is not None:
        ordered, order = codes.in_order()
        rows = None if ordered is None else stored_rows(ordered)
        return None if rows is None else replace(rows, order=order)
    if codes.table is not None:
        return _mxfp4(codes) or _nvfp4(codes) if codes.table.tolist() == list(FP4) else _of_table(codes)
    if codes.numbers.dtype in FLOATS8:
        return _floats8(codes)
    if codes.numbers.dtype == torch.uint8:
        return _four_bits(codes) if int(codes.numbers.max()) < 16 else _eight_bits(codes)
    return _eight_bits(codes) if codes.numbers.dtype == torch.int8 else None


def _mins(codes: Codes, zeros: Tensor, scales: Tensor) -> Tensor:
    """[outputs, groups] what is added to a code times its scale."""
    mins = -zeros.float() * scales
    return (mins if codes.added is None else mins + codes.added).expand(scales.shape)


def _four_bits(codes: Codes) -> StoredRows | None:
    size = _columns(codes, GROUPED)
    if size is None:
        return None
    scales = codes.row_scales()
    mins = _mins(codes, torch.zeros(()) if codes.zeros is None else codes.zeros, scales)
    header = torch.stack([_spread(codes, values, size) for values in (scales, mins)], dim=-1)
    numbers = _padded(codes.numbers, size)
    return _rows(GROUPED[size], codes, header, numbers[..., 0::2] | numbers[..., 1::2] << 4)


def _eight_bits(codes: Codes) -> StoredRows | None:
    size = _columns(codes, BYTES)
    if size is None:
        return None
    is_signed = codes.numbers.dtype == torch.int8
    zeros = torch.zeros(1) if codes.zeros is None else codes.zeros.float()
    zeros = zeros + 128 if is_signed else zeros
    numbers = _padded(codes.numbers.view(torch.uint8) ^ 128 if is_signed else codes.numbers, size)
    scales = codes.row_scales()
    if codes.added is None and bool((zeros == 128).all()):
        return _rows(BYTES[size], codes, _spread(codes, scales, size).unsqueeze(-1), numbers)
    header = torch.stack([_spread(codes, values, size) for values in (scales, _mins(codes, zeros, scales))], dim=-1)
    return _rows(BYTES_WITH_MINS[size], codes, header, numbers)


def _mxfp4(codes: Codes) -> StoredRows | None:
    """Scales that are powers of two."""
    if codes.zeros is not None or codes.added is not None or codes.group % MXFP4_GROUP:
        return None
    scales = _spread(codes, codes.row_scales(), MXFP4_GROUP)
    mantissa, exponent = torch.frexp(scales)
    exponent = exponent + 126  # of 2 ** (exponent - 127)
    if not bool(((mantissa == 0.5) & (exponent > 1) & (exponent < 255)).all()):
        return None
    numbers = _padded(codes.numbers, MXFP4_GROUP)
    halves = numbers[..., : MXFP4_GROUP // 2] | numbers[..., MXFP4_GROUP // 2 :] << 4
    data = torch.cat([exponent.to(torch.uint8).unsqueeze(-1), halves], dim=-1).flatten(1)
    return StoredRows(WeightKind.MXFP4, codes.shape[1], data)


def _nvfp4(codes: Codes) -> StoredRows | None:
    """Scales of float16 with a factor that makes them so: a power of two, or what they have in common."""
    if codes.zeros is not None or codes.added is not None or (codes.group % FP4_GROUP and codes.scales.shape[1] > 1):
        return None
    scales = _spread(codes, codes.row_scales(), FP4_GROUP)
    factor = codes.factor if codes.factor is not None else _power_of_two(scales)
    within = (scales / factor).half()
    if not torch.equal(within.float() * factor, scales):
        return None
    four = _padded(within, 4)
    header = torch.full((*four.shape[:2], 1), factor / 2).view(torch.uint8)
    numbers = _padded(codes.numbers, 4 * FP4_GROUP)
    parts = [header, four.contiguous().view(torch.uint8), numbers[..., 0::2] | numbers[..., 1::2] << 4]
    return StoredRows(WeightKind.NVFP4, codes.shape[1], torch.cat(parts, dim=-1).flatten(1))


def _floats8(codes: Codes) -> StoredRows | None:
    kind, bits = FLOATS8[codes.numbers.dtype], NOT_FINITE[codes.numbers.dtype]
    size, numbers = _columns(codes, {128: kind}), codes.numbers.view(torch.uint8)
    if size is None or codes.zeros is not None or codes.added is not None or bool((numbers & bits == bits).any()):
        return None
    header = _spread(codes, codes.row_scales(), size).unsqueeze(-1)
    return _rows(kind, codes, header, _padded(numbers, size))


def _of_table(codes: Codes) -> StoredRows | None:
    assert codes.table is not None
    kind = TABLES.get(tuple(codes.table.tolist()))
    size = None if kind is None else _columns(codes, {64: kind})
    if kind is None or size is None or codes.zeros is not None or codes.added is not None:
        return None
    numbers = _padded(codes.numbers, size)
    header = _spread(codes, codes.row_scales(), size).unsqueeze(-1)
    return _rows(kind, codes, header, numbers[..., 0::2] | numbers[..., 1::2] << 4)


def _power_of_two(scales: Tensor) -> float:
    """Brings the largest scale near one."""
    largest = float(scales.abs().max())
    return float(2.0 ** torch.tensor(largest).log2().ceil()) if largest > 0 else 1.0


def _columns(codes: Codes, kinds: dict[int, WeightKind]) -> int | None:
    """The most columns of a kind that lie within one group each."""
    if codes.scales.shape[1] == 1:
        return max(kinds)
    return next((size for size in sorted(kinds, reverse=True) if codes.group % size == 0), None)


def _spread(codes: Codes, values: Tensor, size: int) -> Tensor:
    """[outputs, groups] values as those of every `size` columns."""
    count = -(-codes.shape[1] // size)
    if values.shape[1] == 1:
        return values.expand(-1, count)
    return values.repeat_interleave(codes.group // size, 1)[:, :count]


def _padded(numbers: Tensor, size: int) -> Tensor:
    """[outputs, columns] values as [outputs, units, size], those past the last zero."""
    return torch.nn.functional.pad(numbers, (0, -numbers.shape[1] % size)).reshape(len(numbers), -1, size)


def _rows(kind: WeightKind, codes: Codes, header: Tensor, numbers: Tensor) -> StoredRows:
    """Rows of units: each a header `[outputs, units, n]` float32, then bytes of codes."""
    data = torch.cat([header.float().contiguous().view(torch.uint8), numbers], dim=-1).flatten(1)
    return StoredRows(kind, codes.shape[1], data)
