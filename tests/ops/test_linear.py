"""Linear: right, and the same bits for a row whatever the rows around it."""

import pytest
import torch

from octavo.ops.linear import OneDNNLinear, TorchLinear, linear_implementation, prepare_linear

SHAPES = [(64, 96), (100, 37), (576, 960), (1536, 576), (2048, 512)]
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("preference", ["auto", "torch"])
def test_rows_do_not_see_each_other(
    shape: tuple[int, int], dtype: torch.dtype, preference: str, generator: torch.Generator
) -> None:
    width, outputs = shape
    kernel = prepare_linear(
        torch.randn(outputs, width, generator=generator).to(dtype), linear_implementation(dtype, CPU, preference)
    )
    bias = torch.randn(outputs, generator=generator).to(dtype)
    x = torch.randn(300, width, generator=generator).to(dtype)
    together = kernel(x, bias)
    for rows in [*range(1, 34), 64, 100, 255]:
        assert torch.equal(kernel(x[:rows], bias), together[:rows]), rows
    for first in (1, 7, 40):
        assert torch.equal(kernel(x[first : first + 9], bias), together[first : first + 9])


@pytest.mark.parametrize("implementation", [TorchLinear, OneDNNLinear])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_agrees_with_float64(implementation: type, rows: int, generator: torch.Generator) -> None:
    weight, x = torch.randn(96, 130, generator=generator), torch.randn(rows, 130, generator=generator)
    want = x.double() @ weight.double().T
    torch.testing.assert_close(prepare_linear(weight, implementation)(x).double(), want, rtol=1e-5, atol=1e-4)


def test_torch_can_be_forced() -> None:
    assert linear_implementation(torch.float32, CPU, "torch") is TorchLinear
