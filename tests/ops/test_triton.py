"""Triton's kernels under its interpreter: a sample of what `make triton` runs, and how the backend is chosen."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from octavo.errors import ConfigError
from octavo.ops import ACTIVATIONS, Backend, Gate, RotaryTable, select_backend, selection
from tests.ops.conftest import REFERENCE

pytest.importorskip("triton")


ROUNDS = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
"""Of results, by half a unit of their last place; in float32, of sums."""


def apart(x: Tensor) -> Tensor:
    """The same rows, which do not lie one after the other."""
    return torch.cat([x, x[:, :3]], 1)[:, : x.shape[1]]


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (9, 33), (3, 5000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm(
    triton_backend: Backend, rows: int, width: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    x, weight = torch.randn(rows, width, generator=generator).to(dtype), torch.randn(width, generator=generator)
    got = triton_backend.rms_norm(apart(x), weight, 1e-5)
    torch.testing.assert_close(got, REFERENCE.rms_norm(x, weight, 1e-5))
    for row in range(rows):
        assert torch.equal(triton_backend.rms_norm(x[row : row + 1], weight, 1e-5), got[row : row + 1])
    assert triton_backend.rms_norm(x[:0], weight, 1e-5).shape == (0, width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (40, 37), (1500, 24)], ids=str)
@pytest.mark.parametrize("rows", [1, 67])
def test_products(
    triton_backend: Backend, shape: tuple[int, int], rows: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    outputs, width = shape[1], shape[0]
    weight, bias = torch.randn(outputs, width, generator=generator), torch.randn(outputs, generator=generator)
    linear, x = triton_backend.linear(weight.to(dtype)), torch.randn(rows, width, generator=generator).to(dtype)
    got = linear(apart(x), bias)
    want = x.double() @ weight.to(dtype).double().T + bias.double()
    torch.testing.assert_close(got.double(), want, rtol=ROUNDS[dtype], atol=ROUNDS[dtype] * width**0.5)
    for part in {0, rows // 2, rows - 1}:
        assert torch.equal(linear(x[part : part + 1], bias), got[part : part + 1])
    assert linear(x[:0]).shape == (0, outputs)


GATES = [Gate("silu"), Gate(None, threshold=0.5), Gate("gelu_pytorch_tanh", limit=2.0, up_offset=1.0)]


@pytest.mark.parametrize("gate", GATES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_in_parts_have_the_same_bits_whoever_adds_them(
    triton_backend: Backend, gate: Gate, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """One program after the other, as in prefill, or programs side by side, as in decode; with a gate too."""
    from octavo.ops.triton.triton_products import TritonLinear

    weight, bias = torch.randn(46, 2600, generator=generator).to(dtype), torch.randn(46, generator=generator)
    linear, x = TritonLinear(weight), torch.randn(5, 2600, generator=generator).to(dtype)
    assert linear.splits > 1
    apart, gated_apart = linear(x, bias), triton_backend.gated_linear(linear, x, bias, gate)
    linear.most_programs = 0
    assert torch.equal(linear(x, bias), apart)
    assert torch.equal(triton_backend.gated_linear(linear, x, bias, gate), gated_apart)
    assert torch.equal(triton_backend.gated(apart, gate), gated_apart)  # as where adapters stand between
    torch.testing.assert_close(gated_apart, REFERENCE.gated(apart, gate))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_and_groups(triton_backend: Backend, dtype: torch.dtype, generator: torch.Generator) -> None:
    weight, x = torch.randn(3, 21, 37, generator=generator), torch.randn(6, 3, 37, generator=generator).to(dtype)
    heads = triton_backend.head_linear(weight)
    got = heads(x, torch.float32)
    torch.testing.assert_close(got, torch.einsum("rhi,hoi->rho", x.float(), weight), rtol=1e-5, atol=1e-4)
    assert torch.equal(heads(x[2:3], torch.float32), got[2:3])
    groups = triton_backend.group_linear(triton_backend.linear(weight.reshape(63, 37).to(dtype)), 3)
    want = torch.einsum("rhi,hoi->rho", x.float(), weight.to(dtype).float())
    torch.testing.assert_close(groups(x, torch.float32), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(triton_backend: Backend, activation: str, generator: torch.Generator) -> None:
    x = torch.cat([torch.randn(3, 1000, generator=generator) * 4, torch.randn(3, 10, generator=generator) * 1e-4], 1)
    x[0, :7] = torch.tensor([0.0, -0.0, 100.0, -100.0, 88.8, -88.8, 20.0])
    got = triton_backend.activate(x, activation)
    torch.testing.assert_close(got, ACTIVATIONS[activation](x), rtol=2e-6, atol=5e-7)
    assert torch.equal(triton_backend.activate(x[1:2], activation), got[1:2])
    x[2, 3] = torch.nan
    assert triton_backend.activate(x, activation)[2, 3].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_rounded_to_the_nearest(
    triton_backend: Backend, dtype: torch.dtype, generator: torch.Generator
) -> None:
    x, y = (torch.randn(9, 33, generator=generator).to(dtype) for _ in range(2))
    factors, gate = torch.randn(9, generator=generator), torch.randn(9, 1, generator=generator).to(dtype)
    assert torch.equal(triton_backend.scale_rows(apart(x), factors), (x.float() * factors[:, None]).to(dtype))
    assert torch.equal(triton_backend.scale(x, 12.3), REFERENCE.scale(x, 12.3))
    assert torch.equal(triton_backend.multiply(x, y), (x.float() * y.float()).to(dtype))
    torch.testing.assert_close(triton_backend.add_gated(x, y, gate), REFERENCE.add_gated(x, y, gate))
    torch.testing.assert_close(triton_backend.add(x, y, 0.22), (x.double() + 0.22 * y.double()).to(dtype))
    weight, bias = torch.randn(33, generator=generator), torch.randn(33, generator=generator)
    for w, b in ((weight, bias), (weight, None), (None, None)):
        torch.testing.assert_close(triton_backend.layer_norm(x, w, b, 1e-5), REFERENCE.layer_norm(x, w, b, 1e-5))
    got = triton_backend.rms_norm_gated(x, y, weight[:11], 1e-5, "silu")
    torch.testing.assert_close(got, REFERENCE.rms_norm_gated(x, y, weight[:11], 1e-5, "silu"))


@pytest.mark.parametrize("threshold", [None, 5000])
def test_angles(triton_backend: Backend, threshold: int | None, generator: torch.Generator) -> None:
    table = RotaryTable(torch.rand(1 if threshold is None else 2, 20, generator=generator), (1.5, 2.0), threshold)
    if threshold is None:
        table = RotaryTable(table.frequencies)
    positions = torch.cat([torch.arange(30), torch.randint(0, 1 << 20, (30,), generator=generator)])
    got = triton_backend.angles(table, positions, positions + 9, 1)
    torch.testing.assert_close(got, REFERENCE.angles(table, positions, positions + 9, 1), rtol=0, atol=3e-7)


def test_it_is_chosen_by_name(triton_backend: Backend) -> None:
    assert triton_backend.name == "triton (interpreted)"
    assert select_backend("cpu").name != triton_backend.name


def test_the_processor_needs_the_interpreter() -> None:
    code = "from octavo.ops import select_backend; select_backend('cpu', 'triton')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"TRITON_INTERPRET": "0"}, capture_output=True, text=True, check=False
    )
    assert "ConfigError: ops='triton' is for GPUs" in done.stderr
    assert "TRITON_INTERPRET=1" in done.stderr


def test_without_triton_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install triton"):
        select_backend("cpu", "triton")


def test_what_has_no_kernel_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.ops.triton.triton_backend import from_reference
    from octavo.ops.triton.triton_pooled import TritonPooled

    with caplog.at_level("INFO", "octavo"):
        select_backend("cpu", "triton")
        assert from_reference() == []
        assert not caplog.records
        monkeypatch.delattr(TritonPooled, "pool_keys")
        select_backend("cpu", "triton")
    assert len(caplog.records) == 1
    assert caplog.records[0].message.endswith("by PyTorch: pool_keys")


def test_triton_is_imported_where_it_is_chosen_alone() -> None:
    code = "import octavo.ops, sys; octavo.ops.select_backend('cpu'); assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_memory_that_runs_out_is_an_error_that_says_what_to_lower(triton_backend: Backend) -> None:
    message = "gpu_memory_utilization .* max_num_seqs .*Tried to allocate 2 GiB"
    with pytest.raises(torch.OutOfMemoryError, match=message), triton_backend.computing():
        raise torch.OutOfMemoryError("Tried to allocate 2 GiB")


def test_auto_takes_a_gpu_and_says_why(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA T")
    with caplog.at_level("INFO", "octavo"):
        backend = select_backend("auto")
    assert (backend.device.type, backend.name) == ("cuda", "torch")
    assert "device='auto' takes the GPU" in caplog.text
    assert "NVIDIA T" in caplog.text
