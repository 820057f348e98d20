"""The selective scan: against the plain recurrence, and bit for bit against itself cut anywhere."""

import pytest
import torch
from torch import Tensor

from octavo.ops import Backend, RecurrentPlan, ScanInput, SequenceRun, plan_recurrent
from octavo.ops.torch import selective_scan as scan_module
from octavo.ops.torch.activations import ACTIVATIONS
from octavo.ops.torch.selective_scan import causal_conv, causal_conv_step, selective_scan, selective_scan_step

CHANNELS, STATE, TOKENS = 6, 5, 150


@pytest.fixture
def inputs(generator: torch.Generator) -> dict[str, Tensor]:
    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "x": rand(TOKENS, CHANNELS),
        "dt": rand(TOKENS, CHANNELS).abs() * 0.3,
        "a": -rand(CHANNELS, STATE).abs(),
        "b": rand(TOKENS, STATE),
        "c": rand(TOKENS, STATE),
        "d": rand(CHANNELS),
    }


def run(v: dict[str, Tensor], part: slice, state: Tensor) -> tuple[Tensor, Tensor]:
    args = (v["x"][part], v["dt"][part], v["a"], v["b"][part], v["c"][part], v["d"])
    return selective_scan(*args, state, part.start)


def step(v: dict[str, Tensor], t: int, state: Tensor) -> tuple[Tensor, Tensor]:
    part = slice(t, t + 1)
    args = (v["x"][part], v["dt"][part], v["a"], v["b"][part], v["c"][part], v["d"])
    out, new = selective_scan_step(*args, state.unsqueeze(0), torch.tensor([t]))
    return out, new[0]


def test_agrees_with_the_recurrence(inputs: dict[str, Tensor]) -> None:
    v = {k: x.double() for k, x in inputs.items()}
    h, want = torch.zeros(CHANNELS, STATE, dtype=torch.float64), []
    for t in range(TOKENS):
        h = torch.exp(v["dt"][t, :, None] * v["a"]) * h + (v["dt"][t] * v["x"][t])[:, None] * v["b"][t]
        want.append((h * v["c"][t]).sum(-1) + v["d"] * v["x"][t])
    got, _ = run(inputs, slice(0, TOKENS), torch.zeros(3, CHANNELS, STATE))
    torch.testing.assert_close(got.double(), torch.stack(want), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cuts", [[1], [31], [32], [33], [7, 14, 100], list(range(1, TOKENS)), [64, 65, 66]])
def test_same_bits_however_it_is_cut(inputs: dict[str, Tensor], cuts: list[int]) -> None:
    zero = torch.zeros(3, CHANNELS, STATE)
    whole, end = run(inputs, slice(0, TOKENS), zero)
    state, parts = zero, []
    for first, last in zip([0, *cuts], [*cuts, TOKENS], strict=True):
        out, state = run(inputs, slice(first, last), state) if last - first > 1 else step(inputs, first, state)
        parts.append(out)
    assert torch.equal(torch.cat(parts), whole)
    # The end of a run and the steps to it agree on the state as well, once the next group opens alike.
    assert torch.equal(step(inputs, TOKENS - 1, state)[0], step(inputs, TOKENS - 1, end)[0])


def test_segments_change_nothing(inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    zero = torch.zeros(3, CHANNELS, STATE)
    whole, _ = run(inputs, slice(0, TOKENS), zero)
    monkeypatch.setattr(scan_module, "SEGMENT_VALUES", 1)
    assert torch.equal(run(inputs, slice(0, TOKENS), zero)[0], whole)


def test_convolution(generator: torch.Generator) -> None:
    x, weight = torch.randn(20, 3, generator=generator), torch.randn(3, 4, generator=generator)
    bias = torch.randn(3, generator=generator)
    out, history = causal_conv(x, torch.zeros(3, 3), weight, bias)
    want = torch.nn.functional.conv1d(x.T[None], weight[:, None], bias, padding=3, groups=3)[0, :, :20].T
    torch.testing.assert_close(out, want)
    assert torch.equal(history, x[-3:])
    before = torch.zeros(1, 3, 3)
    for t in range(20):
        one, before = causal_conv_step(x[t : t + 1], before, weight, bias)
        assert torch.equal(one[0], out[t])


def plan_of(runs: list[tuple[int, int, int, int]]) -> RecurrentPlan:
    """Of (first row, tokens, start, slot)."""
    return plan_recurrent([SequenceRun(*run) for run in runs])


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 4e-3}
"""Of results about 1 to 10 in size, rounded once."""


@DTYPES
@pytest.mark.parametrize(("channels", "width"), [(6, 5), (8, 16), (13, 8), (24, 17), (9, 64), (10, 128), (5, 90)])
def test_every_implementation_scans_alike(
    backend: Backend, channels: int, width: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Against the recurrence in float64; and the same bits for a sequence cut anywhere, beside others."""

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, raw, a = (
        rand(TOKENS, channels).to(dtype),
        (rand(TOKENS, channels) * 3 - 2).to(dtype),
        -rand(channels, width).abs(),
    )
    # As in the mixer: b, c and the gate are parts of wider rows.
    wide, gates = rand(TOKENS, 3 + 2 * width).to(dtype), rand(TOKENS, 2 * channels).to(dtype)
    a, d = -rand(channels, width).abs(), rand(channels)
    h, want = torch.zeros(channels, width, dtype=torch.float64), []
    dt, gate = torch.nn.functional.softplus(raw.double()), torch.nn.functional.silu(gates[:, channels:].double())
    b, c = wide.double()[:, 3:].split(width, dim=1)
    for t in range(TOKENS):
        h = torch.exp(dt[t, :, None] * a) * h + (dt[t] * x[t])[:, None] * b[t]
        want.append(((h * c[t]).sum(-1) + d * x[t]) * gate[t])

    def run(rows: list[Tensor], state: Tensor, runs: list[tuple[int, int, int, int]]) -> Tensor:
        x, raw, wide, gates = rows
        b, c = wide[:, 3:].split(width, dim=1)
        return backend.scan(ScanInput(x, raw, a, b, c, d, gates[:, channels:], "silu"), state, plan_of(runs))

    whole = run([x, raw, wide, gates], torch.zeros(2, 3, channels, width), [(0, TOKENS, 0, 1)])
    assert whole.dtype == dtype
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(whole.double(), torch.stack(want), rtol=tolerance, atol=tolerance)

    state, parts = torch.zeros(4, 3, channels, width), []
    for first, last in ((0, 1), (1, 40), (40, 41), (41, TOKENS)):
        rows = [torch.cat([v[: last - first].flip(0), v[first:last]]) for v in (x, raw, wide, gates)]
        state[3] = 0
        out = run(rows, state, [(0, last - first, 0, 3), (last - first, last - first, first, 0)])
        parts.append(out[last - first :])
    assert torch.equal(torch.cat(parts), whole)


@DTYPES
@pytest.mark.parametrize(("channels", "taps"), [(5, 4), (16, 4), (37, 2), (64, 3), (20, 6)])
def test_every_implementation_convolves_alike(
    backend: Backend, channels: int, taps: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Against PyTorch's convolution in float64; and the same bits for a sequence cut anywhere, beside others."""
    wide = torch.randn(TOKENS, 2 * channels, generator=generator).to(dtype)
    weight, bias = torch.randn(channels, taps, generator=generator), torch.randn(channels, generator=generator)
    x = wide[:, :channels].double().T[None]
    sums = torch.nn.functional.conv1d(x, weight[:, None].double(), bias.double(), padding=taps - 1, groups=channels)
    sums = sums[0, :, :TOKENS].T
    for activation in (None, *sorted(set(ACTIVATIONS) - {"softplus"})):

        def run(
            rows: Tensor, history: Tensor, runs: list[tuple[int, int, int, int]], activation: str | None = activation
        ) -> Tensor:
            return backend.convolve(rows[:, :channels], history, weight, bias, activation, plan_of(runs))

        whole = run(wide, torch.zeros(2, taps - 1, channels), [(0, TOKENS, 0, 1)])
        want = sums if activation is None else ACTIVATIONS[activation](sums)
        assert whole.dtype == dtype
        torch.testing.assert_close(whole.double(), want, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])

        history, parts = torch.zeros(4, taps - 1, channels), []
        for first, last in ((0, 1), (1, 3), (3, 40), (40, 41), (41, TOKENS)):
            count, history[3] = last - first, 0
            rows = torch.cat([wide[:count].flip(0), wide[first:last]])
            parts.append(run(rows, history, [(0, count, 0, 3), (count, count, first, 0)])[count:])
        assert torch.equal(torch.cat(parts), whole), activation
        assert torch.equal(history[0], wide[-taps + 1 :, :channels].float()), activation
