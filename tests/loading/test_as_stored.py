"""Codes of checkpoints in kinds that the core multiplies with: the rows mean what the codes do."""

import pytest
import torch
from torch import Tensor

from octavo.loading.formats.as_stored import stored_rows
from octavo.loading.formats.codes import BNB_FP4, NF4, Codes
from octavo.loading.formats.quantized_tensor import QuantizedTensor
from octavo.loading.tensor_source import TransformedTensor
from octavo.ops.native import Library, NativeBackend, runnable
from octavo.ops.stored_rows import StoredRows
from octavo.ops.weight_kinds import WeightKind
from octavo.parts.weight_slots import Shard

OUTPUTS, INPUTS = 40, 256
SCALES = torch.rand(OUTPUTS, INPUTS // 64, generator=torch.Generator().manual_seed(1)) / 100 + 0.001


def eight(dtype: torch.dtype) -> Tensor:
    return torch.arange(OUTPUTS * INPUTS).mul(37).remainder(256).to(torch.uint8).view(dtype).view(OUTPUTS, INPUTS)


def finite(dtype: torch.dtype) -> Tensor:
    numbers = eight(dtype)
    return numbers.where(numbers.float().isfinite(), torch.ones((), dtype=dtype))


ZEROS = (SCALES * 1e5).remainder(256).floor()
CODES = {
    "middle": (Codes(eight(torch.uint8), SCALES, 64, zeros=torch.full_like(SCALES, 128)), WeightKind.U8_32),
    "zeros of their own": (Codes(eight(torch.uint8), SCALES, 64, zeros=ZEROS), WeightKind.U8_MIN_32),
    "zeros that are no whole numbers": (Codes(eight(torch.uint8), SCALES, 64, zeros=ZEROS / 3), WeightKind.U8_MIN_32),
    "signed, with zeros": (Codes(eight(torch.int8), SCALES[:, :2], 128, zeros=ZEROS[:, :2]), WeightKind.U8_MIN_128),
    "signed, with something added": (
        Codes(eight(torch.int8), SCALES[:, :1], INPUTS, added=ZEROS[:, :1]),
        WeightKind.U8_MIN_128,
    ),
    "fp4": (Codes(eight(torch.uint8) % 16, SCALES, 64, table=torch.tensor(BNB_FP4)), WeightKind.FP4),
    "nf4": (Codes(eight(torch.uint8) % 16, SCALES, 64, table=torch.tensor(NF4)), WeightKind.NF4),
    "e4m3": (Codes(finite(torch.float8_e4m3fn), SCALES[:, :2], 128), WeightKind.E4M3),
    "e5m2": (Codes(finite(torch.float8_e5m2), SCALES[:, :2], 128), WeightKind.E5M2),
}


def floats(rows: StoredRows) -> Tensor:
    native = NativeBackend(Library(runnable()[0]))
    return native.stored_linear([rows]).rows(torch.arange(len(rows.data)), torch.float32)


@pytest.mark.skipif(not runnable(), reason="the core was not built here")
@pytest.mark.parametrize("name", CODES)
def test_rows_mean_what_codes_do(name: str) -> None:
    codes, kind = CODES[name]
    rows = stored_rows(codes)
    assert rows is not None
    assert rows.kind == kind
    want = codes.floats()
    assert float((floats(rows) - want).abs().max()) < 1e-6 * float(want.abs().max())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_what_is_no_number_becomes_floats(dtype: torch.dtype) -> None:
    assert stored_rows(Codes(eight(dtype), SCALES[:, :2], 128)) is None


def test_another_table_becomes_floats() -> None:
    assert stored_rows(Codes(eight(torch.uint8) % 16, SCALES, 64, table=torch.arange(16.0))) is None


def test_layers_that_are_turned_round_twice_stay_as_they_are() -> None:
    """As GPT-2's: published as [inputs, outputs], quantized as all others."""
    codes, kind = CODES["zeros of their own"]
    published = TransformedTensor(QuantizedTensor("w", (OUTPUTS, INPUTS), lambda: codes), Tensor.t)
    source = TransformedTensor(published, Tensor.t)
    assert published.stored() is None
    for each, want in ((source, codes), (source.part(Shard(rows=((16, 32),))), codes.part(Shard(rows=((16, 32),))))):
        rows, own = each.stored(), stored_rows(want)
        assert rows is not None
        assert own is not None
        assert rows.kind == kind
        assert torch.equal(rows.data, own.data)
