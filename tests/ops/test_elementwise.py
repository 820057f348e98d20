"""Activations, norms and rotary: right, and independent of where in a batch a row stands."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from octavo.ops import Backend, Gate
from octavo.ops.specs import RotaryTable
from octavo.ops.torch.activations import (
    ACTIVATIONS,
    gelu,
    gelu_tanh,
    quick_gelu,
    relu,
    relu_squared,
    sigmoid,
    silu,
    softplus,
)
from octavo.ops.torch.rope import rotate

REFERENCES: dict[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = {
    sigmoid: torch.sigmoid,
    silu: functional.silu,
    gelu: functional.gelu,
    gelu_tanh: lambda x: functional.gelu(x, approximate="tanh"),
    quick_gelu: lambda x: x * torch.sigmoid(1.702 * x),
    relu: functional.relu,
    relu_squared: lambda x: functional.relu(x) ** 2,
    softplus: functional.softplus,
}


@pytest.mark.parametrize("activation", REFERENCES, ids=lambda f: f.__name__)
def test_activation(activation: Callable[[Tensor], Tensor], generator: torch.Generator) -> None:
    x = torch.cat([torch.randn(1000, generator=generator) * 5, torch.tensor([0.0, -100.0, 100.0, 88.8, -88.8])])
    torch.testing.assert_close(activation(x).double(), REFERENCES[activation](x.double()), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("activation", REFERENCES, ids=lambda f: f.__name__)
def test_activation_does_not_depend_on_place(
    activation: Callable[[Tensor], Tensor], generator: torch.Generator
) -> None:
    x = torch.randn(200_000, generator=generator) * 4
    whole = activation(x)
    for first in range(0, 3000, 97):
        for length in (1, 3, 15, 17, 40):
            piece = slice(first, first + length)
            assert torch.equal(activation(x[piece].clone()), whole[piece])


@pytest.mark.parametrize("width", [1, 33, 64, 576])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms(backend: Backend, width: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    x = torch.randn(300, width, generator=generator).to(dtype)
    weight, bias = torch.randn(width, generator=generator), torch.randn(width, generator=generator)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2  # half a unit in bfloat16's last place
    x64 = x.double()
    want = x64 / (x64.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    got = backend.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=1e-6)
    layer = backend.layer_norm(x, weight, bias, 1e-5)
    want = functional.layer_norm(x64, (width,), weight.double(), bias.double(), 1e-5)
    torch.testing.assert_close(layer.double(), want, rtol=tolerance, atol=tolerance)
    for rows in (1, 2, 7, 130):
        part = slice(3, 3 + rows)
        assert torch.equal(backend.rms_norm(x[part], weight, 1e-5), got[part])
        assert torch.equal(backend.layer_norm(x[part], weight, bias, 1e-5), layer[part])


@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh", "gelu", "relu"])
@pytest.mark.parametrize("width", [7, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated(backend: Backend, activation: str, width: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    x = (torch.randn(120, 2 * width, generator=generator) * 6).to(dtype)
    x[0, :6] = torch.tensor([0.0, -100.0, 100.0, 89.0, -89.0, -0.0])
    gate, up = x.double().chunk(2, -1)
    want = REFERENCES[ACTIVATIONS[activation]](gate) * up
    got = backend.gated(x, Gate(activation))
    tolerance = 3e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    for rows in (1, 3, 50):
        assert torch.equal(backend.gated(x[5 : 5 + rows], Gate(activation)), got[5 : 5 + rows])
    one = backend.activate(x, activation)
    want = REFERENCES[ACTIVATIONS[activation]](x.double())
    torch.testing.assert_close(one.double(), want, rtol=tolerance, atol=tolerance)
    assert torch.equal(backend.activate(x[7:9], activation), one[7:9])


@pytest.mark.parametrize("width", [1, 33, 576])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_add(backend: Backend, width: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    x, y = (torch.randn(90, width, generator=generator).to(dtype) for _ in range(2))
    got = backend.add(x, y, 0.22)
    want = x.double() + 0.22 * y.double()
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    assert torch.equal(backend.add(x[3:5], y[3:5], 0.22), got[3:5])
    assert torch.equal(backend.add(x, y), x + y)
    wide = torch.cat([y, x], 1)  # rows that lie apart
    assert torch.equal(backend.add(wide[:, :width], wide[:, width:]), x + y)


@pytest.mark.parametrize("width", [1, 33, 576])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scale_rows(backend: Backend, width: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    x, factors = torch.randn(70, width, generator=generator).to(dtype), torch.randn(70, generator=generator)
    got = backend.scale_rows(x, factors)
    assert torch.equal(got, (x.float() * factors[:, None]).to(dtype))
    assert torch.equal(backend.scale_rows(x[3:5], factors[3:5]), got[3:5])
    heads = x[:, None].expand(-1, 2, -1)
    assert torch.equal(backend.scale_rows(heads, factors), got[:, None].expand(-1, 2, -1))


@pytest.mark.parametrize("activation", [None, "sigmoid", "silu"])
@pytest.mark.parametrize("width", [1, 33, 576])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_multiply(
    backend: Backend, width: int, dtype: torch.dtype, activation: str | None, generator: torch.Generator
) -> None:
    wide = (torch.randn(70, 2 * width + 3, generator=generator) * 3).to(dtype)  # rows that lie apart
    x, y = wide[:, :width], wide[:, width + 3 :]
    got = backend.multiply(x, y, activation)
    factor = y.double()
    if activation is not None:
        factor = torch.sigmoid(factor) * (factor if activation == "silu" else 1.0)
    tolerance = 3e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(got.double(), x.double() * factor, rtol=tolerance, atol=tolerance)
    assert torch.equal(backend.multiply(x[3:5], y[3:5], activation), got[3:5])


@pytest.mark.parametrize("width", [7, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_xielu(backend: Backend, width: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    x = (torch.randn(90, width, generator=generator) * 4).to(dtype)
    x[0, :6] = torch.tensor([0.0, -100.0, 100.0, -1e-7, 1e-7, -88.8])
    shape = torch.tensor([0.7, 1.3, 0.5, -1e-6])
    x64 = x.double()
    curve = torch.where(x64 > 0, 0.7 * x64 * x64, 1.3 * (torch.expm1(x64.clamp(max=-1e-6)) - x64))
    got = backend.xielu(x, shape)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(got.double(), curve + 0.5 * x64, rtol=tolerance, atol=tolerance)
    for rows in (1, 3, 50):
        assert torch.equal(backend.xielu(x[5 : 5 + rows], shape), got[5 : 5 + rows])


@pytest.mark.parametrize(("beta", "period", "offset"), [(0.1, 16.0, 0), (0.3, 8192.0, 1)])
def test_position_factors(backend: Backend, beta: float, period: float, offset: int) -> None:
    positions = torch.cat([torch.arange(300), torch.tensor([8190, 8191, 8192, 10_000_000])])
    got = backend.position_factors(positions, beta, period, offset)
    want = 1 + beta * torch.log(1 + torch.floor((positions.double() + offset) / period))
    torch.testing.assert_close(got.double(), want, rtol=1e-7, atol=0)
    assert torch.equal(backend.position_factors(positions[40:43], beta, period, offset), got[40:43])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_table_rows(backend: Backend, dtype: torch.dtype, generator: torch.Generator) -> None:
    table = torch.randn(30, 17, generator=generator).to(dtype)
    ids = torch.tensor([3, 29, 0, 3])
    assert torch.equal(backend.table_rows(table, ids), table[ids])


def test_rows_of_other_ranks_tables_are_zeros(backend: Backend, generator: torch.Generator) -> None:
    table = torch.randn(30, 17, generator=generator)
    ids = torch.tensor([99, 100, 129, 0, 130, 101])
    want = torch.stack([table[i - 100] if 100 <= i < 130 else torch.zeros(17) for i in ids.tolist()])
    assert torch.equal(backend.table_rows(table, ids, 100), want)
    assert torch.equal(backend.linear(table).rows(ids, torch.float32, 1.0, 100), want)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_turns_pairs(interleaved: bool, generator: torch.Generator) -> None:
    x = torch.randn(3, 2, 12, generator=generator)
    angles = torch.randn(3, 4, generator=generator)  # 8 of 12 values turn
    got = rotate(x, angles.cos(), angles.sin(), interleaved)
    assert torch.equal(got[..., 8:], x[..., 8:])
    for pair in range(4):
        first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 4)
        before = torch.complex(x[..., first], x[..., second])
        after = torch.complex(got[..., first], got[..., second])
        turn = torch.polar(torch.ones(3), angles[:, pair]).unsqueeze(1)
        torch.testing.assert_close(after, before * turn)


@pytest.mark.parametrize("pairs", [1, 16, 20, 64])
@pytest.mark.parametrize("switch", [None, 5000])
def test_angles(backend: Backend, pairs: int, switch: int | None, generator: torch.Generator) -> None:
    positions = torch.cat([torch.arange(300), torch.randint(0, 1 << 20, (700,), generator=generator)])
    lengths = positions + torch.randint(1, 100, (1000,), generator=generator)
    fast, slow = 10000.0 ** -(torch.arange(pairs) / pairs), torch.rand(pairs, generator=generator)
    table = RotaryTable(fast.unsqueeze(0))
    if switch is not None:
        table = RotaryTable(torch.stack([fast, slow]), (1.5, 2.0), switch)
    cos, sin = backend.angles(table, positions, lengths)
    late = (lengths > (switch or 1 << 40)).unsqueeze(1)
    scale = 1.0 if switch is None else torch.where(late, 2.0, 1.5)
    turned = (positions.float().unsqueeze(1) * torch.where(late, slow, fast)).double()  # rounded, as everywhere
    torch.testing.assert_close(cos.double(), turned.cos() * scale, rtol=0, atol=3e-7)
    torch.testing.assert_close(sin.double(), turned.sin() * scale, rtol=0, atol=3e-7)
    for first, rows in ((0, 1), (7, 3), (300, 40)):
        part = slice(first, first + rows)
        one = backend.angles(table, positions[part].contiguous(), lengths[part].contiguous())
        assert torch.equal(one[0], cos[part])
        assert torch.equal(one[1], sin[part])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_and_floats(backend: Backend, dtype: torch.dtype, generator: torch.Generator) -> None:
    x = torch.randn(5, 37, generator=generator).to(dtype)
    assert torch.equal(backend.floats(x), x.float())
    assert backend.floats(x).dtype == torch.float32
    assert backend.finite(x)
    assert backend.finite(x[:0])
    for value in (torch.inf, -torch.inf, torch.nan):
        for row, column in ((0, 0), (4, 36), (2, 17)):
            broken = x.clone()
            broken[row, column] = value
            assert not backend.finite(broken)
            assert backend.finite(broken[:row])


GATES = [Gate("quick_gelu", limit=2.0, up_offset=1.0), Gate(None, threshold=0.5), Gate("silu", limit=3.0)]


@pytest.mark.parametrize("gate", GATES, ids=str)
@pytest.mark.parametrize("width", [7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates(backend: Backend, gate: Gate, width: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    x = (torch.randn(40, 2 * width, generator=generator) * 3).to(dtype)
    g, up = x.double().chunk(2, -1)
    g = torch.where(g <= gate.threshold, 0.0, g) if gate.threshold is not None else g
    if gate.limit is not None:
        g, up = g.clamp(max=gate.limit), up.clamp(-gate.limit, gate.limit)
    g = g if gate.activation is None else REFERENCES[ACTIVATIONS[gate.activation]](g)
    got = backend.gated(x, gate)
    tolerance = 3e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(got.double(), g * (up + gate.up_offset), rtol=tolerance, atol=tolerance)
    assert torch.equal(backend.gated(x[3:5], gate), got[3:5])
    x[1, 0] = torch.nan
    assert backend.gated(x, gate)[1, 0].isnan()


@pytest.mark.parametrize("width", [1, 33, 576])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scale_and_add_gated(backend: Backend, width: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    x, y = (torch.randn(90, width, generator=generator).to(dtype) for _ in range(2))
    gate = (torch.randn(90, 1, generator=generator) * 3).to(dtype)
    scaled = backend.scale(x, 12.3)
    assert torch.equal(scaled, x * torch.tensor(12.3, dtype=dtype))
    got = backend.add_gated(x, y, gate)
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    want = x.double() + torch.sigmoid(gate.double()) * y.double()
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    assert torch.equal(backend.add_gated(x[3:5], y[3:5], gate[3:5]), got[3:5])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("heads", "columns", "dim"), [(1, 32, 16), (5, 24, 6)])
def test_join_rope(
    backend: Backend, heads: int, columns: int, dim: int, interleaved: bool, generator: torch.Generator
) -> None:
    """Of parts of wider rows, as latent attention has them."""
    wide = torch.randn(9, heads, columns + dim, generator=generator).bfloat16()
    x, y = wide.split([columns, dim], dim=-1)
    angle = torch.randn(9, dim // 2, generator=generator)
    got = backend.join_rope(x.float(), y, (angle.cos(), angle.sin()), interleaved)
    want = torch.cat([x.float(), rotate(y, angle.cos(), angle.sin(), interleaved)], -1)
    torch.testing.assert_close(got, want)
    assert torch.equal(backend.join_rope(x[2:4], y[2:4], (angle[2:4].cos(), angle[2:4].sin()), interleaved), got[2:4])


@pytest.mark.parametrize("size", [1, 33, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, "silu", "sigmoid", "gelu_pytorch_tanh"])
def test_products_of_rows(
    backend: Backend, size: int, dtype: torch.dtype, activation: str | None, generator: torch.Generator
) -> None:
    wide, factors = torch.randn(40, 2 * size + 3, generator=generator).to(dtype), torch.randn(size, generator=generator)
    x, y = wide[:, :size], wide[:, size + 1 : 2 * size + 1]
    by = y.double() if activation is None else ACTIVATIONS[activation](y.double())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    product, scaled = backend.multiply(x, y, activation), backend.scale_columns(x, factors)
    torch.testing.assert_close(product.double(), x.double() * by, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(scaled.double(), x.double() * factors, rtol=tolerance, atol=tolerance)
    assert torch.equal(backend.side_by_side(x, y), torch.cat([x, y], dim=1))
    for rows in (1, 7):
        part = slice(3, 3 + rows)
        assert torch.equal(backend.multiply(x[part], y[part], activation), product[part])
        assert torch.equal(backend.scale_columns(x[part], factors), scaled[part])
