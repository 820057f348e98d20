"""Recurrences' kernels under Triton's interpreter: against the reference, and bit for bit however runs are cut."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from octavo.ops import (
    Backend,
    DeltaInput,
    GatedRecurrenceInput,
    HeadScanInput,
    RecurrentPlan,
    ScanInput,
    SequenceRun,
    plan_recurrent,
)
from octavo.ops.specs import DeltaSpec
from octavo.ops.torch.activations import ACTIVATIONS
from tests.ops.conftest import REFERENCE

pytest.importorskip("triton")

TOKENS = 12
Compute = Callable[[Backend, Tensor, Tensor, RecurrentPlan], Tensor]
"""Of a backend, what goes in `[rows, values]`, a state, and a plan."""
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def check(backend: Backend, compute: Compute, rows: Tensor, state_shape: tuple[int, ...], uses_state: int) -> None:
    """`uses_state`: of the state's first dimension so many are compared; 0 for all.

    Rows are TOKENS of a sequence. Two others are beside it in the step that takes them whole.
    """
    tolerance = 1e-4 if rows.dtype == torch.float32 else 4e-2
    runs = [SequenceRun(0, TOKENS, 0, 2), SequenceRun(TOKENS, 1, 0, 0), SequenceRun(TOKENS + 1, 2, 0, 1)]
    several, found = torch.cat([rows, rows[:1], rows[3:5], rows[:2]]), []
    for one in (backend, REFERENCE):
        state = torch.zeros(4, *state_shape)
        found.append((compute(one, several, state, plan_recurrent(runs)), state))
    (got, state), (want, want_state) = found
    assert got.dtype == rows.dtype
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    assert not got[TOKENS + 3 :].any()
    if not uses_state:
        torch.testing.assert_close(state, want_state, rtol=tolerance, atol=tolerance)
    assert not state[3].any()
    other, parts = torch.zeros(4, *state_shape), []
    for first, last in ((0, 1), (1, 2), (2, 9), (9, TOKENS)):
        plan = plan_recurrent([SequenceRun(0, last - first, first, 1)])
        parts.append(compute(backend, rows[first:last], other, plan))
    assert torch.equal(torch.cat(parts), got[:TOKENS])
    assert torch.equal(other[1], state[2])
    idle = RecurrentPlan(
        [SequenceRun(0, 1, 0, 0)], torch.tensor([[0, 0, 1]])
    )  # a row that a recorded step has too many
    assert not compute(backend, rows[:1], other, idle).any()
    assert torch.equal(other[1], state[2])


def rows_of(width: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(TOKENS, width, generator=generator).to(dtype)


@DTYPES
@pytest.mark.parametrize(("channels", "taps", "activation"), [(7, 4, "silu"), (130, 2, None)])
def test_convolution(
    triton_backend: Backend,
    channels: int,
    taps: int,
    activation: str | None,
    dtype: torch.dtype,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = torch.randn(channels, taps, generator=generator)
    bias = torch.randn(channels, generator=generator) if activation else None

    def compute(backend: Backend, x: Tensor, state: Tensor, plan: RecurrentPlan) -> Tensor:
        return backend.convolve(x[:, 3:], state, weight, bias, activation, plan)

    rows = rows_of(channels + 3, dtype, generator)
    check(triton_backend, compute, rows, (taps - 1, channels), 0)
    monkeypatch.setattr("octavo.ops.triton.triton_recurrent.CONVOLVED_TOKENS", 5)  # runs are several programs'
    check(triton_backend, compute, rows, (taps - 1, channels), 0)


@DTYPES
@pytest.mark.parametrize(("channels", "size"), [(70, 16), (5, 3)])
def test_scan(
    triton_backend: Backend, channels: int, size: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    a, d = -torch.rand(channels, size, generator=generator), torch.randn(channels, generator=generator)

    def compute(backend: Backend, x: Tensor, state: Tensor, plan: RecurrentPlan) -> Tensor:
        x, dt, gate, b, c = x.split([channels, channels, channels, size, size], dim=1)
        return backend.scan(ScanInput(x, dt, a, b, c, d, gate, "silu"), state, plan)

    check(triton_backend, compute, rows_of(3 * channels + 2 * size, dtype, generator), (3, channels, size), 1)


@DTYPES
@pytest.mark.parametrize(
    ("heads", "groups", "head_dim", "size", "activation"), [(4, 2, 6, 5, "silu"), (2, 1, 40, 200, None)]
)
def test_scan_of_heads(
    triton_backend: Backend,
    heads: int,
    groups: int,
    head_dim: int,
    size: int,
    activation: str | None,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> None:
    bias, a = torch.randn(heads, generator=generator), -torch.rand(heads, generator=generator)
    d, width = torch.randn(heads, generator=generator), heads * head_dim

    def compute(backend: Backend, x: Tensor, state: Tensor, plan: RecurrentPlan) -> Tensor:
        x, dt, b, c, gate = x.split([width, heads, groups * size, groups * size, width], dim=1)
        given = gate if activation else None
        inputs = HeadScanInput(x, dt, bias, (0.1, 1.5), a, b, c, d, groups, given, activation or "silu")
        return backend.scan_heads(inputs, state, plan)

    rows = rows_of(2 * width + heads + 2 * groups * size, dtype, generator)
    check(triton_backend, compute, rows * 0.5, (heads, size, head_dim), 0)


@DTYPES
def test_gated_recurrence(triton_backend: Backend, dtype: torch.dtype, generator: torch.Generator) -> None:
    channels = 130
    input_bias, recurrent_bias = torch.randn(2, channels, generator=generator)
    a = -torch.rand(channels, generator=generator)

    def compute(backend: Backend, x: Tensor, state: Tensor, plan: RecurrentPlan) -> Tensor:
        positions = torch.zeros(len(x), dtype=torch.int64)
        for run in plan.runs:
            positions[run.first_row : run.first_row + run.num_tokens] = run.start + torch.arange(run.num_tokens)
        x, enters, decays = x.split(channels, dim=1)
        inputs = GatedRecurrenceInput(x, enters, input_bias, decays, recurrent_bias, a, positions)
        return backend.gated_recurrence(inputs, state, plan)

    check(triton_backend, compute, rows_of(3 * channels, dtype, generator), (channels,), 0)


@DTYPES
@pytest.mark.parametrize("kind", ["gated", "by channel", "plain"])
def test_delta_rule(triton_backend: Backend, kind: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    heads, key_heads, key_dim, value_dim = 4, 2, 24, 10
    decays = {"gated": heads, "by channel": heads * key_dim, "plain": 0}[kind]
    spec = DeltaSpec(
        heads, key_heads, key_dim, value_dim, 0.3, None if kind == "plain" else 1e-6, 2.0, kind == "by channel"
    )
    rate = -torch.rand(heads, generator=generator)
    bias = torch.randn(decays, generator=generator) if kind == "gated" else None
    sizes = [key_heads * key_dim, key_heads * key_dim, heads * value_dim, decays, heads]

    def compute(backend: Backend, x: Tensor, state: Tensor, plan: RecurrentPlan) -> Tensor:
        query, key, value, decay, beta = x.split(sizes, dim=1)
        is_plain = kind == "plain"
        given = (None, None) if is_plain else (decay, beta)
        return backend.delta_rule(DeltaInput(query, key, value, *given, rate, bias), state, plan, spec)

    check(triton_backend, compute, rows_of(sum(sizes), dtype, generator) * 0.5, (heads, key_dim, value_dim), 0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(triton_backend: Backend, name: str, generator: torch.Generator) -> None:
    """By a convolution of one tap, which leaves its input as it is."""
    x, weight = torch.linspace(-30, 30, 121).view(1, 121), torch.ones(121, 1)
    plan = plan_recurrent([SequenceRun(0, 1, 0, 0)])
    got = triton_backend.convolve(x, torch.zeros(1, 0, 121), weight, None, name, plan)
    torch.testing.assert_close(got, ACTIVATIONS[name](x), rtol=1e-5, atol=1e-6)
