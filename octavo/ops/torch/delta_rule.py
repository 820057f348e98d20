"""Memories by keys: the gated delta rule (Yang et al. 2024), with a decay a channel (Kimi Team 2025), or without
correction (Qin et al. 2024, lightning attention).

Each head has a memory `S` `[key_dim, value_dim]`. A token first lets it decay, then corrects what its key finds there,
and reads it by its query:

    S = decay * S
    S = S + key (beta * (value - key^T S))^T
    out = query^T S

Tokens come one after the other, and a token's sums do not depend on the others: its bits are the same in whatever runs
the sequence is computed. A memory of fixed size is all that is read and written, so that a long run costs less than
attention does, and a chunked form (matrices of a chunk's keys) would not be less work where the memory stays in a
processor's cache.
"""

import torch
from torch import Tensor

from octavo.ops.plans import DeltaInput, RecurrentPlan
from octavo.ops.specs import DeltaSpec
from octavo.ops.torch.activations import sigmoid, softplus
from octavo.ops.torch.selective_scan import longer_runs, single_runs


def _kept(inputs: DeltaInput, spec: DeltaSpec) -> Tensor:
    """How much of the memories is kept: [rows, heads, key_dim or 1], or [1, heads, 1]."""
    if inputs.decay is None:
        return torch.exp(inputs.rate).view(1, -1, 1)
    decay = inputs.decay.float()
    steps = softplus(decay if inputs.bias is None else decay + inputs.bias).view(len(decay), spec.num_heads, -1)
    return torch.exp(inputs.rate.view(-1, 1) * steps)


def _heads(x: Tensor, spec: DeltaSpec, scale: float) -> Tensor:
    """Queries or keys, normed, for each head of values: [rows, heads, key_dim]."""
    x = x.float().reshape(len(x), spec.num_key_heads, spec.key_dim)
    if spec.norm_eps is not None:
        x = x / torch.sqrt(x.square().sum(-1, keepdim=True) + spec.norm_eps)
    x, each = x * scale, spec.num_heads // spec.num_key_heads
    return x.repeat(1, each, 1) if spec.in_turn else x.repeat_interleave(each, dim=1)


def _step(
    state: Tensor, query: Tensor, key: Tensor, value: Tensor, kept: Tensor, beta: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A token of each of `n` memories `[n, heads, key_dim, value_dim]`: what is read, and the new memories."""
    state, key = state * kept.unsqueeze(-1), key.unsqueeze(-1)
    if beta is not None:
        value = (value - (state * key).sum(-2)) * beta.unsqueeze(-1)
    state = state + key * value.unsqueeze(-2)
    return (state * query.unsqueeze(-1)).sum(-2), state


def delta_rule(inputs: DeltaInput, state: Tensor, plan: RecurrentPlan, spec: DeltaSpec) -> Tensor:
    """The tokens of a step, of all sequences; memories go on in place.

    Args:
        inputs: what is written and read.
        state: [slots, heads, key_dim, value_dim] float32
        plan: which rows go on from which slots.
        spec: of the layer.

    Returns: [rows, heads * value_dim] in the dtype of `inputs.query`.
    """
    query, key = _heads(inputs.query, spec, spec.scale), _heads(inputs.key, spec, 1.0)
    value, kept = inputs.value.float().reshape(-1, spec.num_heads, spec.value_dim), _kept(inputs, spec)
    kept = kept.expand(len(value), -1, -1)
    beta = None if inputs.beta is None else sigmoid(inputs.beta.float()) * spec.beta_scale
    out = torch.zeros_like(value)
    if single := single_runs(plan, value.device):
        rows, slots, _ = single
        own = None if beta is None else beta[rows]
        out[rows], state[slots] = _step(state[slots], query[rows], key[rows], value[rows], kept[rows], own)
    for run in longer_runs(plan):
        memory = state[run.table_row].unsqueeze(0)
        for row in range(run.first_row, run.first_row + run.num_tokens):
            at = slice(row, row + 1)
            own = None if beta is None else beta[at]
            out[at], memory = _step(memory, query[at], key[at], value[at], kept[at], own)
        state[run.table_row] = memory[0]
    return out.flatten(1).to(inputs.query.dtype)
