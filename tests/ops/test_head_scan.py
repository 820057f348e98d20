"""Mamba-2's scan and Griffin's recurrence: against float64, and bit for bit against themselves cut anywhere."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from octavo.ops import Backend, GatedRecurrenceInput, HeadScanInput, RecurrentPlan, SequenceRun, plan_recurrent

TOKENS = 70
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 6e-3}
"""Of results about 1 to 10 in size, rounded once."""


def plan_of(runs: list[tuple[int, int, int, int]]) -> RecurrentPlan:
    """Of (first row, tokens, start, slot)."""
    return plan_recurrent([SequenceRun(*run) for run in runs])


def in_pieces(
    run: Callable[[list[Tensor], Tensor, RecurrentPlan], Tensor], rows: list[Tensor], state: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The rows' results, cut into runs beside another sequence's, and the state after them."""
    states, parts = torch.zeros(4, *state), []
    for first, last in ((0, 1), (1, 2), (2, 40), (40, 41), (41, TOKENS)):
        count = last - first
        states[3] = 0
        beside = [torch.cat([v[:count].flip(0), v[first:last], v[:1]]) for v in rows]  # and a row of padding
        out = run(beside, states, plan_of([(0, count, 0, 3), (count, count, first, 0)]))
        parts.append(out[count : 2 * count])
    return torch.cat(parts), states[0]


@DTYPES
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("heads", "groups", "head_dim", "width"), [(6, 1, 5, 7), (8, 2, 16, 12), (4, 4, 64, 128), (3, 1, 24, 256)]
)
def test_scan_of_heads(
    backend: Backend,
    heads: int,
    groups: int,
    head_dim: int,
    width: int,
    gated: bool,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> None:
    channels = heads * head_dim

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    # As in the mixer: everything is a part of wider rows.
    wide, mixed = rand(TOKENS, channels + heads).to(dtype), rand(TOKENS, channels + 2 * groups * width).to(dtype)
    a, d, bias, limit = -rand(heads).abs(), rand(heads), rand(heads), (0.02, 1.5)

    def run(rows: list[Tensor], state: Tensor, plan: RecurrentPlan) -> Tensor:
        wide, mixed = rows
        x, b, c = mixed.split([channels, groups * width, groups * width], dim=1)
        gate, dt = wide.split([channels, heads], dim=1)
        gate = gate if gated else None
        return backend.scan_heads(HeadScanInput(x, dt, bias, limit, a, b, c, d, groups, gate, "silu"), state, plan)

    state = torch.zeros(2, heads, width, head_dim)
    whole = run([wide, mixed], state, plan_of([(0, TOKENS, 0, 1)]))
    assert whole.dtype == dtype
    assert not state[0].any()

    x, b, c = mixed.double().split([channels, groups * width, groups * width], dim=1)
    gate, dt = wide.double().split([channels, heads], dim=1)
    x = x.view(TOKENS, heads, head_dim)
    b, c = (v.view(TOKENS, groups, width).repeat_interleave(heads // groups, 1) for v in (b, c))
    step = torch.nn.functional.softplus(dt + bias).clamp(*limit)
    h, want = torch.zeros(heads, head_dim, width, dtype=torch.float64), []
    for t in range(TOKENS):
        h = torch.exp(step[t] * a)[:, None, None] * h + (step[t][:, None] * x[t])[:, :, None] * b[t][:, None]
        want.append(((h * c[t][:, None]).sum(-1) + d[:, None] * x[t]).flatten())
    expected = torch.stack(want) * (torch.nn.functional.silu(gate) if gated else 1)
    tolerance = TOLERANCES[dtype] * math.sqrt(width / 8)
    torch.testing.assert_close(whole.double(), expected, rtol=tolerance, atol=tolerance)

    parts, after = in_pieces(run, [wide, mixed], state.shape[1:])
    assert torch.equal(parts, whole)
    assert torch.equal(after, state[1])


@DTYPES
@pytest.mark.parametrize("channels", [5, 16, 37])
def test_gated_recurrence(backend: Backend, channels: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    rows = [torch.randn(TOKENS, channels, generator=generator).to(dtype) for _ in range(3)]
    a, biases = -8 * torch.rand(channels, generator=generator), torch.randn(2, channels, generator=generator)

    def run(values: list[Tensor], state: Tensor, plan: RecurrentPlan) -> Tensor:
        positions = torch.full((len(values[0]),), 7)
        for r in plan.runs:
            positions[r.first_row : r.first_row + r.num_tokens] = torch.arange(r.start, r.start + r.num_tokens)
        x, entrance, again = values
        inputs = GatedRecurrenceInput(x, entrance, biases[0], again, biases[1], a, positions)
        return backend.gated_recurrence(inputs, state, plan)

    state = torch.zeros(2, channels)
    whole = run(rows, state, plan_of([(0, TOKENS, 0, 1)]))
    x, entrance, again = (v.double() for v in rows)
    entrance, again = entrance + biases[0], again + biases[1]
    decay = torch.exp(a * torch.sigmoid(again))
    root = torch.sqrt(1 - decay**2)
    root[0] = 1
    h, want = torch.zeros(channels, dtype=torch.float64), []
    for t in range(TOKENS):
        h = decay[t] * h + root[t] * torch.sigmoid(entrance[t]) * x[t]
        want.append(h)
    torch.testing.assert_close(whole.double(), torch.stack(want), rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
    parts, after = in_pieces(run, rows, (channels,))
    assert torch.equal(parts, whole)
    assert torch.equal(after, state[1])
