"""Products with every kind of weight: right, and the same bits for a row whatever the rows around it."""

import itertools
from dataclasses import replace
from operator import attrgetter

import pytest
import torch
from torch import Tensor

from octavo.ops import Backend, Gate
from octavo.ops.native import NativeBackend
from octavo.ops.native.description import Arm
from octavo.ops.native.library import SETS, runnable
from octavo.ops.weight_kinds import BITS_HELD, NOT_OF_GGUF, WeightKind
from tests.ops.conftest import native_backend
from tests.ops.stored import QUANTIZED, WIDENED, random_rows, width_for

SHAPES = [(64, 96), (64, 1), (100, 37), (576, 960), (1536, 576), (2048, 512)]
SCALED = 32
WIDTHS = sorted({(kind, width_for(kind, width)) for kind in WeightKind for width in (32, 100, 256, 800)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_do_not_see_each_other(
    backend: Backend, shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator
) -> None:
    width, outputs = shape
    kernel = backend.linear(torch.randn(outputs, width, generator=generator).to(dtype))
    bias = torch.randn(outputs, generator=generator)
    x = torch.randn(300, width, generator=generator).to(dtype)
    together = kernel(x, bias)
    for rows in [*range(1, 34), 64, 100, 255]:
        assert torch.equal(kernel(x[:rows], bias), together[:rows]), rows
    for first in (1, 7, 40):
        assert torch.equal(kernel(x[first : first + 9], bias), together[first : first + 9])


@pytest.mark.parametrize("kind", QUANTIZED, ids=attrgetter("name"))
@pytest.mark.parametrize("shape", [(256, 16), (416, 33), (512, 77), (1024, 200)], ids=str)
def test_rows_do_not_see_each_other_quantized(
    native: NativeBackend, kind: WeightKind, shape: tuple[int, int], generator: torch.Generator
) -> None:
    width, outputs = width_for(kind, shape[0]), shape[1]
    kernel = native.stored_linear([random_rows(kind, outputs, width, generator)[0]])
    x = torch.randn(100, width, generator=generator)
    together = kernel(x)
    for rows in [*range(1, 18), 64, 65, 90]:
        assert torch.equal(kernel(x[:rows]), together[:rows]), rows
    assert torch.equal(kernel(x[7:16]), together[7:16])


@pytest.mark.parametrize("kind", QUANTIZED, ids=attrgetter("name"))
def test_fine_products_round_rows_to_16_bits(
    native: NativeBackend, kind: WeightKind, generator: torch.Generator
) -> None:
    width = width_for(kind, 576)
    stored, weight = random_rows(kind, 37, width, generator)
    kernel = native.stored_linear([stored], fine=True)
    x = torch.randn(70, width, generator=generator)
    together = kernel(x)
    want = x.double() @ weight.T
    size = float((x.double().abs() @ weight.abs().T).amax())
    assert float((together.double() - want).abs().amax()) < 1e-5 * size  # with 8 bits a hundred times as much
    for rows in (1, 2, 3, 4, 9, 33):
        assert torch.equal(kernel(x[:rows]), together[:rows]), rows


def as_int8(x: Tensor, library: str) -> Tensor:
    """Rows as a library's products take them: int8, with a scale for each 32 columns."""
    out = torch.empty_like(x, dtype=torch.float64)
    for first in range(0, x.shape[1], SCALED):
        part = x[:, first : first + SCALED]
        peak = part.abs().amax(1, keepdim=True)
        # Divided once: of `127.0 / peak` PyTorch makes a product with 1 / peak, which rounds twice.
        inverse = torch.where(peak > 0, torch.full_like(peak, 127.0) / peak, torch.zeros(()))
        # Multiplying and rounding are one step where there is a fused instruction.
        fused = library != "base" or SETS is Arm
        exact = part.double() * inverse.double() if fused else part * inverse
        out[:, first : first + SCALED] = torch.round(exact).double() * (peak / 127.0).double()
    return out


@pytest.mark.parametrize(("kind", "width"), WIDTHS, ids=lambda value: getattr(value, "name", value))
def test_agrees_with_float64(native: NativeBackend, kind: WeightKind, width: int, generator: torch.Generator) -> None:
    """What remains is float32's own rounding, for the reference rounds activations as the core does."""
    for outputs in (1, 16, 37):
        stored, weight = random_rows(kind, outputs, width, generator)
        bias = torch.randn(outputs, generator=generator)
        kernel = native.stored_linear([stored])
        for rows in (1, 3, 8, 21):
            x = torch.randn(rows, width, generator=generator)
            x[0, 0] = 0.0
            is_rounded = kind in QUANTIZED and kind not in WIDENED
            seen = as_int8(x, native.library.name) if is_rounded else x.double()
            want = seen @ weight.T + bias.double()
            size = float((seen.abs() @ weight.abs().T).amax()) + 1e-6
            error = float((kernel(x, bias).double() - want).abs().amax())
            assert error < 2e-6 * size, (outputs, rows)


@pytest.mark.parametrize("kind", WeightKind, ids=attrgetter("name"))
def test_rows_are_the_stored_numbers(native: NativeBackend, kind: WeightKind, generator: torch.Generator) -> None:
    width = width_for(kind, 96)
    stored, weight = random_rows(kind, 53, width, generator)
    ids = torch.tensor([0, 52, 17, 17, 31])
    got = native.stored_linear([stored]).rows(ids, torch.float32, 2.0)
    torch.testing.assert_close(got.double(), 2 * weight[ids], rtol=1e-6, atol=1e-7)
    some = native.stored_linear([stored]).rows(ids, torch.float32, 2.0, 17)  # numbers of the first are from 17 on
    assert torch.equal(some[1:], native.stored_linear([stored]).rows(ids[1:] - 17, torch.float32, 2.0))
    assert not some[0].any()


@pytest.mark.parametrize("kind", [kind for kind in WeightKind if kind < NOT_OF_GGUF], ids=attrgetter("name"))
def test_memory_is_what_the_documents_say(native: NativeBackend, kind: WeightKind, generator: torch.Generator) -> None:
    stored, _ = random_rows(kind, 16, 512, generator)
    in_file = 8 * stored.data.nbytes / (16 * 512)
    packed = native.library.core.packed_bytes(kind=kind, rows=16, inputs=512)
    assert 8 * packed / (16 * 512) == BITS_HELD.get(kind, in_file)


def test_parts_of_different_kinds(native: NativeBackend, generator: torch.Generator) -> None:
    """As where a file stores a layer's keys in 4 bits and its values in 6."""
    of = WeightKind
    shapes = [(of.Q4_K, 48), (of.Q4_K, 20), (of.Q6_K, 20), (of.F32, 3)]
    parts = [random_rows(kind, outputs, 256, generator) for kind, outputs in shapes]
    x, bias = torch.randn(5, 256, generator=generator), torch.randn(91, generator=generator)
    got = native.stored_linear([stored for stored, _ in parts])(x, bias)
    want = (
        torch.cat([as_int8(x, native.library.name) @ w.T for _, w in parts[:3]] + [x.double() @ parts[3][1].T], 1)
        + bias.double()
    )
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


def test_outputs_and_inputs_in_halves(native: NativeBackend, generator: torch.Generator) -> None:
    stored, weight = random_rows(WeightKind.Q4_1, 40, 64, generator)
    kernel = native.stored_linear([stored])
    for dtype, tolerance in ((torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
        x = torch.randn(9, 64, generator=generator).to(dtype)
        got = kernel(x)
        assert got.dtype == dtype
        torch.testing.assert_close(
            got.double(), as_int8(x.float(), native.library.name) @ weight.T, rtol=tolerance, atol=tolerance
        )


def test_rows_may_lie_apart(backend: Backend, generator: torch.Generator) -> None:
    wide = torch.randn(12, 100, generator=generator)
    kernel = backend.linear(torch.randn(20, 40, generator=generator))
    assert torch.equal(kernel(wide[:, 30:70]), kernel(wide[:, 30:70].clone()))


@pytest.mark.parametrize("kind", QUANTIZED, ids=attrgetter("name"))
def test_what_is_not_finite_stays_visible(native: NativeBackend, kind: WeightKind, generator: torch.Generator) -> None:
    """Rounding to int8 must not turn an overflow into a plausible number; other rows are not touched."""
    kernel = native.stored_linear([random_rows(kind, 20, 256, generator)[0]])
    x = torch.randn(6, 256, generator=generator)
    sound = kernel(x)
    rest = [0, 1, 3, 4, 5]
    for bad in (torch.nan, torch.inf):
        x[2, 130] = bad
        got = kernel(x)
        assert not got[2].isfinite().any(), bad
        assert torch.equal(got[rest], sound[rest]), bad


@pytest.mark.parametrize(("kind", "error"), [(WeightKind.Q8_0, 1 / 254), (WeightKind.Q4_1, 1 / 30)])
@pytest.mark.parametrize("shape", [(1, 32), (37, 100), (64, 576)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantizing_rounds_to_the_nearest(
    native: NativeBackend,
    kind: WeightKind,
    error: float,
    shape: tuple[int, int],
    dtype: torch.dtype,
    generator: torch.Generator,
) -> None:
    """Q8_0 is half a step of a block's largest value away at most; Q4_1 half a step of a block's range."""
    outputs, width = shape
    weight = torch.randn(outputs, width, generator=generator).to(dtype)
    weight[0] = 0.0
    rows = native.stored_linear([native.quantize(weight, kind)]).rows(torch.arange(outputs), torch.float32)
    weight = weight.float()
    blocks = torch.nn.functional.pad(weight, (0, -width % 32)).view(outputs, -1, 32)
    extent = blocks.abs().amax(-1) if kind == WeightKind.Q8_0 else blocks.amax(-1) - blocks.amin(-1)
    # Half a step; and the block's low and step are float16 themselves.
    of_block = extent * error + blocks.abs().amax(-1) * (5e-4 if kind == WeightKind.Q8_0 else 2e-3)
    allowed = of_block.repeat_interleave(32, 1)[:, :width]
    assert bool(((rows - weight).abs() <= allowed * 1.001 + 1e-7).all())
    assert not rows[0].any()


@pytest.mark.parametrize("kind", QUANTIZED, ids=attrgetter("name"))
def test_every_instruction_set_reads_the_same_numbers(
    native: NativeBackend, kind: WeightKind, generator: torch.Generator
) -> None:
    """Codes are summed in integers, so that instruction sets differ by a few roundings, never by a code."""
    stored, weight = random_rows(kind, 33, 512, generator)
    one_hot = torch.eye(512)
    got = native.stored_linear([stored])(one_hot)
    torch.testing.assert_close(got.double(), weight.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 33, 576])
def test_halves_by_halves(backend: Backend, dtype: torch.dtype, width: int, generator: torch.Generator) -> None:
    """Summed in float32, rounded once."""
    weight = torch.randn(50, width, generator=generator).to(dtype)
    kernel, tolerance = backend.linear(weight), {torch.float32: 4e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    for rows in (1, 5, 40):
        x = torch.randn(rows, width, generator=generator).to(dtype)
        got = kernel(x)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), x.double() @ weight.double().T, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", [None, torch.bfloat16, WeightKind.Q8_0, WeightKind.Q4_1, WeightKind.Q6_K], ids=str)
@pytest.mark.parametrize("hidden", [64, 24])  # a gate of 24 outputs shares a panel with what it gates
def test_gated_in_the_product(
    backend: Backend, hidden: int, kind: torch.dtype | WeightKind | None, generator: torch.Generator
) -> None:
    """The same as the product and the gate apart; bit for bit where nothing is rounded in between."""
    width = 256
    weight = torch.randn(2 * hidden, width, generator=generator)
    if isinstance(kind, WeightKind):
        if not backend.capabilities.weight_kinds:
            pytest.skip("the reference computes with floats")
        stored = backend.quantize(weight, kind) if kind != 14 else random_rows(kind, 2 * hidden, width, generator)[0]
        gate_up = backend.stored_linear([stored])
    else:
        gate_up = backend.linear(weight if kind is None else weight.to(kind))
    biases = None, torch.randn(2 * hidden, generator=generator)
    for rows, bias, activation in itertools.product((1, 3, 50), biases, ("silu", "gelu_pytorch_tanh", "relu")):
        x = torch.randn(rows, width, generator=generator).to(kind if isinstance(kind, torch.dtype) else torch.float32)
        gate = Gate(activation)
        got, apart = backend.gated_linear(gate_up, x, bias, gate), backend.gated(gate_up(x, bias), gate)
        assert got.shape == (rows, hidden)
        if x.dtype == torch.float32:
            assert torch.equal(got, apart), (rows, bias is None, activation)
        else:
            torch.testing.assert_close(got, apart, rtol=3e-2, atol=3.0)  # of results about a hundred in size


@pytest.mark.parametrize(("heads", "width", "outputs"), [(1, 16, 24), (5, 24, 512), (16, 40, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_head_has_its_own_weight(
    backend: Backend, heads: int, width: int, outputs: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Rows are parts of wider ones, as in latent attention; a row's result does not depend on the others."""
    weight = torch.randn(heads, outputs, width, generator=generator)
    x = torch.randn(20, heads, width + 3, generator=generator).to(dtype)[..., :width]
    linear = backend.head_linear(weight)
    got = linear(x, dtype)
    assert got.dtype == dtype
    want = torch.einsum("rhi,hoi->rho", x.double(), weight.double())
    tolerance = 4e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    for rows in (1, 3, 11):
        assert torch.equal(linear(x[:rows], dtype), got[:rows])


@pytest.mark.parametrize("kind", [WeightKind.U4_32, WeightKind.Q8_0, WeightKind.E4M3], ids=attrgetter("name"))
def test_columns_in_another_order(native: NativeBackend, kind: WeightKind, generator: torch.Generator) -> None:
    """As if rows came in the weight's order; experts' orders differ."""
    width = width_for(kind, 192)
    weights, x = (
        [random_rows(kind, 24, width, generator)[0] for _ in range(3)],
        torch.randn(9, width, generator=generator),
    )
    orders = [torch.randperm(width, generator=generator) for _ in weights]
    ordered = [native.stored_linear([replace(w, order=o)]) for w, o in zip(weights, orders, strict=True)]
    for weight, order, of in zip(weights, orders, ordered, strict=True):
        plain = native.stored_linear([weight])
        assert torch.equal(of(x), plain(x[:, order]))
        rows = of.rows(torch.arange(24), torch.float32)
        assert torch.equal(rows[:, order], plain.rows(torch.arange(24), torch.float32))
    chosen = torch.randint(0, 3, (9, 2), generator=generator)
    together = native.experts(ordered)(x, chosen)
    want = torch.stack([ordered[int(e)](x[i : i + 1])[0] for i, each in enumerate(chosen) for e in each])
    assert torch.equal(together, want)
    merged = native.stored_linear([replace(w, order=o) for w, o in zip(weights, orders, strict=True)])
    assert torch.equal(merged(x), torch.cat([of(x) for of in ordered], dim=1))


FUSED = tuple(name for name in runnable() if name != "base" or SETS is Arm)
"""The libraries whose instructions multiply and add in one step."""
VNNI = ("avx512_vnni", "avx512_bf16", "amx")
"""Those that take bytes as they are: others take 128 off, which floats make up for where a weight has a min."""


def alike(kind: WeightKind, way: str) -> list[str]:
    """The libraries that compute a product in the same steps: AVX-512 has an instruction for exponentials."""
    names = [n for n in FUSED if way != "gated" or n.startswith(("avx512", "amx")) or SETS is Arm]
    return [n for n in names if "U8_MIN" not in kind.name or n in VNNI or SETS is Arm]


@pytest.mark.skipif(len(FUSED) < 2, reason="one instruction set is built")
@pytest.mark.parametrize("kind", [k for k in QUANTIZED if k not in WIDENED], ids=attrgetter("name"))
@pytest.mark.parametrize("way", ["plain", "gated", "fine"])
def test_instruction_sets_give_the_same_bits(kind: WeightKind, way: str, generator: torch.Generator) -> None:
    """Codes are summed in integers and their sums in one order: whatever tiles and panels meet. 14 panels, of which
    the last is not whole, by blocks that are no multiple of what is summed at a time, for rows that fill no tile.
    """
    width, outputs = width_for(kind, 160), 224 if way == "gated" else 213
    stored = random_rows(kind, outputs, width, generator)[0]
    x = torch.randn(107, width, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    results = list[Tensor]()
    names = alike(kind, way)
    for name in names:
        native = native_backend(name)
        kernel = native.stored_linear([stored], way == "fine")
        results.append(native.gated_linear(kernel, x, bias, Gate("silu")) if way == "gated" else kernel(x, bias))
        native.set_threads(1)
    for name, result in zip(names, results, strict=True):
        assert torch.equal(result, results[0]), (name, names[0])
