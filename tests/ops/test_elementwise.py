"""Activations, norms and rotary: right, and independent of where in a batch a row stands."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from octavo import ops
from octavo.ops.activation import gelu, gelu_tanh, quick_gelu, relu, relu_squared, silu, softplus

REFERENCES: dict[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = {
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


@pytest.mark.parametrize("width", [33, 64, 576])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms(width: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    x = torch.randn(50, width, generator=generator).to(dtype)
    weight, bias = torch.randn(width, generator=generator), torch.randn(width, generator=generator)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    x64 = x.double()
    rms = x64 / (x64.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5).double(), rms, rtol=tolerance, atol=tolerance)
    layer = functional.layer_norm(x64, (width,), weight.double(), bias.double(), 1e-5)
    torch.testing.assert_close(ops.layer_norm(x, weight, bias, 1e-5).double(), layer, rtol=tolerance, atol=tolerance)
    for rows in (1, 2, 7):
        assert torch.equal(ops.rms_norm(x[3 : 3 + rows], weight, 1e-5), ops.rms_norm(x, weight, 1e-5)[3 : 3 + rows])
        assert torch.equal(
            ops.layer_norm(x[3 : 3 + rows], weight, bias, 1e-5), ops.layer_norm(x, weight, bias, 1e-5)[3 : 3 + rows]
        )


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_turns_pairs(interleaved: bool, generator: torch.Generator) -> None:
    x = torch.randn(3, 2, 12, generator=generator)
    angles = torch.randn(3, 4, generator=generator)  # 8 of 12 values turn
    got = ops.rotate(x, angles.cos(), angles.sin(), interleaved)
    assert torch.equal(got[..., 8:], x[..., 8:])
    for pair in range(4):
        first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 4)
        before = torch.complex(x[..., first], x[..., second])
        after = torch.complex(got[..., first], got[..., second])
        turn = torch.polar(torch.ones(3), angles[:, pair]).unsqueeze(1)
        torch.testing.assert_close(after, before * turn)


def test_gated(generator: torch.Generator) -> None:
    x = torch.randn(5, 14, generator=generator)
    torch.testing.assert_close(ops.gated(x, silu), functional.silu(x[:, :7]) * x[:, 7:])
