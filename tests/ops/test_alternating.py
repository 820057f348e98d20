"""Several residual streams in a row, and gates of which few stay."""

import pytest
import torch

from octavo.ops import Backend

ROWS = 9
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def rows_alone(got: torch.Tensor, compute: object) -> None:
    """Rows by themselves have the same bits."""
    for part in (slice(0, 1), slice(3, 8)):
        assert torch.equal(compute(part), got[part])  # type: ignore[operator]


@pytest.fixture(params=TOLERANCE, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    made: torch.dtype = request.param
    return made


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    tolerance = TOLERANCE[got.dtype]
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize(("streams", "size"), [(1, 16), (3, 37), (4, 128)])
class TestStreams:
    def test_predict(
        self, backend: Backend, streams: int, size: int, dtype: torch.dtype, generator: torch.Generator
    ) -> None:
        x = torch.randn(ROWS, streams * size, generator=generator).to(dtype)
        mix = torch.randn(ROWS, streams * streams, generator=generator)
        got = backend.predict_streams(x, mix)
        each = x.double().view(ROWS, streams, size)
        want = each + torch.einsum("rij,rjs->ris", mix.double().view(ROWS, streams, streams), each)
        close(got, want.flatten(1))
        rows_alone(got, lambda part: backend.predict_streams(x[part], mix[part]))

    def test_correct(
        self, backend: Backend, streams: int, size: int, dtype: torch.dtype, generator: torch.Generator
    ) -> None:
        x = torch.randn(ROWS, streams * size, generator=generator).to(dtype)
        y = torch.randn(ROWS, size, generator=generator).to(dtype)
        gains, active = torch.randn(ROWS, streams, generator=generator), streams - 1
        got = backend.correct_streams(x, y, gains, active)
        each = x.double().view(ROWS, streams, size)
        want = each + (y.double() - each[:, active]).unsqueeze(1) * (1 + gains.double()).unsqueeze(2)
        close(got, want.flatten(1))
        rows_alone(got, lambda part: backend.correct_streams(x[part], y[part], gains[part], active))

    def test_add(
        self, backend: Backend, streams: int, size: int, dtype: torch.dtype, generator: torch.Generator
    ) -> None:
        x = torch.randn(ROWS, streams * size, generator=generator).to(dtype)
        y = torch.randn(ROWS, size, generator=generator).to(dtype)
        got = backend.add_to_streams(x, y)
        assert torch.equal(got[:, :size], x[:, :size])
        for i in range(1, streams):
            assert torch.equal(got[:, i * size : (i + 1) * size], x[:, i * size : (i + 1) * size] + y)


@pytest.mark.parametrize("size", [16, 37, 300])
def test_match_magnitude(backend: Backend, size: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    both = torch.randn(ROWS, 2 * size, generator=generator).to(dtype)
    x, like = both[:, :size], both[:, size:]
    x[0] = 0
    got = backend.match_magnitude(x, like, 1e-5)
    wide, other = x.double(), like.double()
    own = wide.square().mean(1, keepdim=True).clamp(min=1e-5)
    close(got, wide * (other.square().mean(1, keepdim=True) / own).sqrt())
    rows_alone(got, lambda part: backend.match_magnitude(x[part], like[part], 1e-5))


@pytest.mark.parametrize("size", [16, 37, 300])
@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "silu", "softplus"])
def test_gates_above_a_cutoff(
    backend: Backend, size: int, activation: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    gate_up = torch.randn(ROWS, 2 * size, generator=generator).add_(0.5).to(dtype)
    cutoffs = backend.row_cutoffs(gate_up[:, :size], 0.7)
    gate, up = gate_up.double().chunk(2, dim=1)
    want = gate.mean(1) + 0.7 * gate.std(1, unbiased=False)
    torch.testing.assert_close(cutoffs.double(), want, rtol=1e-5, atol=1e-5)
    rows_alone(cutoffs, lambda part: backend.row_cutoffs(gate_up[part, :size], 0.7))

    got = backend.gated_above(gate_up, cutoffs, activation)
    above = (gate - cutoffs.double().unsqueeze(1)).clamp(min=0)
    functions = {
        "gelu_pytorch_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "silu": torch.nn.functional.silu,
        "softplus": torch.nn.functional.softplus,
    }
    close(got, functions[activation](above) * up)
    rows_alone(got, lambda part: backend.gated_above(gate_up[part], cutoffs[part], activation))


def test_what_is_not_finite_is_not_lost_below_a_cutoff(backend: Backend) -> None:
    gate_up = torch.ones(3, 32)
    gate_up[1, 3], gate_up[2, 3] = torch.inf, torch.nan
    out = backend.gated_above(gate_up, backend.row_cutoffs(gate_up[:, :16], 1.0), "gelu_pytorch_tanh")
    assert out.isfinite().all(1).tolist() == [True, False, False]
