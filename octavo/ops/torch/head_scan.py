"""Recurrences token by token: Mamba-2's scan (Dao & Gu 2024), and Griffin's gated recurrence (De et al. 2024).

What a token brings, and what is read of a state, is computed for many tokens at once; only `h = decay * h + input` goes
from one to the next. So a token's bits are the same whether it was computed in one run, in chunks, or by itself.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from octavo.ops.plans import GatedRecurrenceInput, HeadScanInput, RecurrentPlan
from octavo.ops.torch.activations import ACTIVATIONS, sigmoid, softplus
from octavo.ops.torch.selective_scan import SEGMENT_VALUES, longer_runs, single_runs

Terms = Callable[[Tensor | slice], tuple[Tensor, Tensor]]
"""The decay and the input of some rows, with the rows first."""
Read = Callable[[Tensor | slice, Tensor], Tensor]
"""The results of some rows by the states after them."""


def _recur(terms: Terms, read: Read, out: Tensor, state: Tensor, plan: RecurrentPlan) -> None:
    """Write the results of a step's tokens of all sequences; states `[slots, ...]` go on in place."""
    if single := single_runs(plan, out.device):
        alone, slots, _ = single
        decay, states = terms(alone)
        states += decay * state[slots]
        state[slots] = states
        out[alone] = read(alone, states)
    segment = max(1, SEGMENT_VALUES // state[0].numel())
    for run in longer_runs(plan):
        end = run.first_row + run.num_tokens
        for first in range(run.first_row, end, segment):
            rows = slice(first, min(end, first + segment))
            decay, states = terms(rows)
            h = state[run.table_row]
            for t in range(len(states)):
                states[t] += decay[t] * h
                h = states[t]
            state[run.table_row] = h
            out[rows] = read(rows, states)


def scan_heads(inputs: HeadScanInput, state: Tensor, plan: RecurrentPlan) -> Tensor:
    """Of each head: `h = exp(step * a) * h + step * x * b`, read as `h @ c + d * x`, times the activated gate.

    Args:
        inputs: what is scanned.
        state: [slots, heads, state, head_dim] float32, which goes on in place.
        plan: which rows go on from which slots.

    Returns: [rows, heads * head_dim] in the dtype of `inputs.x`.
    """
    num_heads, rows = len(inputs.a), inputs.x.shape[0]
    x = inputs.x.float().reshape(rows, num_heads, -1)
    low, high = inputs.dt_limit
    step = softplus(inputs.dt.float() + inputs.dt_bias).clamp(low, high)
    decay = torch.exp(step * inputs.a)
    b, c = (_by_head(v, inputs.num_groups, num_heads) for v in (inputs.b, inputs.c))

    def terms(part: Tensor | slice) -> tuple[Tensor, Tensor]:
        brought = (step[part].unsqueeze(-1) * x[part]).unsqueeze(-1) * b[part].unsqueeze(2)
        return decay[part, :, None, None], brought

    def read(part: Tensor | slice, states: Tensor) -> Tensor:
        y = (states * c[part].unsqueeze(2)).sum(-1)
        return y.add_(x[part] * inputs.d.unsqueeze(-1))

    y = torch.zeros_like(x)
    _recur(terms, read, y, state.transpose(2, 3), plan)
    y = y.view(rows, -1)
    if inputs.gate is not None:
        y = y * ACTIVATIONS[inputs.activation](inputs.gate.float())
    return y.to(inputs.x.dtype)


def _by_head(v: Tensor, num_groups: int, num_heads: int) -> Tensor:
    """`[rows, heads, state]` of `[rows, groups * state]`."""
    return v.float().reshape(len(v), num_groups, -1).repeat_interleave(num_heads // num_groups, dim=1)


def gated_recurrence(inputs: GatedRecurrenceInput, state: Tensor, plan: RecurrentPlan) -> Tensor:
    """`h = decay * h + sqrt(1 - decay ** 2) * sigmoid(input_gate + input_bias) * x` of each channel: the result.

    The decay is `exp(a * sigmoid(recurrent_gate + recurrent_bias))`; at position 0 the input has no root as a factor.

    Args:
        inputs: what goes in.
        state: [slots, channels] float32, which goes on in place.
        plan: which rows go on from which slots.

    Returns: [rows, channels] in the dtype of `inputs.x`.
    """
    logarithm = inputs.a * sigmoid(inputs.recurrent_gate.float() + inputs.recurrent_bias)
    rest = (1.0 - torch.exp(logarithm * 2.0)).clamp_(min=0.0).sqrt_()
    rest = torch.where((inputs.positions[: len(rest)] == 0).unsqueeze(1), 1.0, rest)
    entrance = sigmoid(inputs.input_gate.float() + inputs.input_bias)
    decay, brought = torch.exp(logarithm), inputs.x.float() * entrance * rest
    out = torch.zeros_like(brought)
    _recur(lambda part: (decay[part], brought[part].clone()), lambda _, states: states, out, state, plan)
    return out.to(inputs.x.dtype)
