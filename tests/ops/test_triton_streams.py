"""Triton's kernels of streams, of rotations and of gates of which few stay: a sample, against the reference."""

import pytest
import torch
from torch import Tensor

from octavo.ops import Backend, StreamSpec
from tests.ops.conftest import REFERENCE

pytest.importorskip("triton")

CLOSE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def both(backend: Backend, name: str, *given: object, rows: int = 9) -> Tensor:
    """What the operation gives, which is what the reference gives, and for rows alone has the same bits."""
    got: Tensor = getattr(backend, name)(*given)
    want = getattr(REFERENCE, name)(*given)
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    torch.testing.assert_close(got, want, rtol=CLOSE[got.dtype], atol=CLOSE[got.dtype])
    for part in (slice(0, 1), slice(4, 7), slice(0, 0)):
        alone = [x[part] if isinstance(x, Tensor) and len(x) == rows else x for x in given]
        assert torch.equal(getattr(backend, name)(*alone), got[part])
    return got


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize(("streams", "size"), [(1, 16), (3, 37), (4, 128)])
def test_streams(
    triton_backend: Backend, streams: int, size: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    wide = torch.randn(9, streams * size + 5, generator=generator).to(dtype)
    x, y = wide[:, : streams * size], torch.randn(9, size, generator=generator).to(dtype)

    def weights(*shape: int) -> Tensor:
        return torch.randn(9, *shape, generator=generator)

    both(triton_backend, "predict_streams", x, weights(streams * streams))
    both(triton_backend, "correct_streams", x, y, weights(streams), streams - 1)
    both(triton_backend, "mix_streams", x, y, weights(streams, 1 + streams))
    added = both(triton_backend, "add_to_streams", x, y)
    assert torch.equal(added, REFERENCE.add_to_streams(x, y))


@pytest.mark.parametrize("count", [1, 3, 4])
def test_weights_of_streams(triton_backend: Backend, count: int, generator: torch.Generator) -> None:
    products = torch.randn(9, count * (2 + count), generator=generator) * 3
    spec = StreamSpec(
        count, torch.randn(3, generator=generator), torch.randn(count * (2 + count), generator=generator), 1e-4, 7
    )
    got, want = triton_backend.stream_weights(products, spec), REFERENCE.stream_weights(products, spec)
    alone = triton_backend.stream_weights(products[4:5], spec)
    for each, expected, own in zip(got, want, alone, strict=True):
        torch.testing.assert_close(each, expected, rtol=2e-6, atol=2e-6)
        assert torch.equal(own, each[4:5])
    read, nothing = triton_backend.stream_weights(
        products[:, :count], StreamSpec(count, spec.scale[:1], spec.bias[:count], 1e-4)
    )
    assert torch.equal(read, got[0])
    assert nothing.shape == (9, 0)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("size", [16, 37, 5000])
def test_gates_above_a_cutoff(
    triton_backend: Backend, size: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    gate_up = torch.randn(9, 2 * size, generator=generator).to(dtype)
    cutoffs = both(triton_backend, "row_cutoffs", gate_up[:, :size], 0.7)
    both(triton_backend, "gated_above", gate_up, cutoffs, "gelu_pytorch_tanh")
    gate_up[3] = 0  # as large as `least`
    both(triton_backend, "match_magnitude", gate_up[:, :size], gate_up[:, size:], 1e-5)
    gate_up[1, 3], gate_up[2, 5] = torch.inf, torch.nan
    cutoffs = triton_backend.row_cutoffs(gate_up[:, :size], 0.7)
    out = triton_backend.gated_above(gate_up, cutoffs, "silu")
    assert out.isfinite().all(1).tolist() == [row not in (1, 2) for row in range(9)]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize(("columns", "dim", "pairs"), [(24, 6, 3), (0, 16, 4), (32, 5, 0)])
def test_rotations(
    triton_backend: Backend,
    interleaved: bool,
    dtype: torch.dtype,
    columns: int,
    dim: int,
    pairs: int,
    generator: torch.Generator,
) -> None:
    """Bit for bit: of parts of wider rows, where some of what could turn does not, and back."""
    wide, angle = (
        torch.randn(9, 3, columns + dim, generator=generator).to(dtype),
        torch.randn(9, pairs, generator=generator),
    )
    x, y, angles = wide[..., :columns], wide[..., columns:], (angle.cos(), angle.sin())
    got = triton_backend.join_rope(x, y, angles, interleaved)
    assert torch.equal(got, REFERENCE.join_rope(x, y, angles, interleaved))
    some = slice(2, 4)
    own = (angles[0][some], angles[1][some])
    assert torch.equal(triton_backend.join_rope(x[some], y[some], own, interleaved), got[some])
    if not pairs:
        return
    more = tuple(torch.cat([angle, angle[:2]]) for angle in angles)
    for backwards in (False, True):
        given = wide, more, interleaved, dtype, backwards
        turned = triton_backend.rotate_tail(*given)
        assert turned.dtype == dtype
        assert torch.equal(turned, REFERENCE.rotate_tail(*given))


@pytest.mark.parametrize(("beta", "period", "offset"), [(0.1, 16.0, 0), (0.3, 8192.0, 1)])
def test_position_factors(triton_backend: Backend, beta: float, period: float, offset: int) -> None:
    positions = torch.cat([torch.arange(300), torch.tensor([8190, 8191, 8192, 10_000_000, 1 << 40])])
    got = triton_backend.position_factors(positions, beta, period, offset)
    torch.testing.assert_close(got, REFERENCE.position_factors(positions, beta, period, offset), rtol=1e-7, atol=0)
    assert torch.equal(triton_backend.position_factors(positions[40:43], beta, period, offset), got[40:43])
