"""Mamba's causal convolution and selective scan (Gu & Dao 2023).

The recurrence `h = a * h + b` is cut into groups of SCAN_GROUP tokens at fixed absolute positions. Inside a group a
*local* state starts from zero and a *decay* from one; the true state is `local + decay * carry`, where `carry` is the
state at the group's start. All groups of a prompt run at once, one position of the group after the other, and a decode
step does exactly what one of those positions does. So prefill is parallel, and yet a token's bits are the same
whether it was computed in one run, in chunks that end anywhere, or one by one.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from octavo.ops.plans import RecurrentPlan, ScanInput, SequenceRun
from octavo.ops.torch.activations import ACTIVATIONS, softplus

SCAN_GROUP = 32
"""Tokens in a group."""
SEGMENT_VALUES = 1 << 23
"""Most values `[tokens, channels, state]` held at a time; longer prompts go in segments."""


def causal_conv(x: Tensor, history: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution of one sequence's run.

    Args:
        x: [tokens, channels]
        history: [kernel - 1, channels], the inputs before the run (zeros at the start of a sequence).
        weight: [channels, kernel]
        bias: [channels] or None

    Returns: [tokens, channels], and the history after the run.
    """
    tokens, kernel = x.shape[0], weight.shape[1]
    inputs = torch.cat([history, x])
    out = inputs[:tokens] * weight[:, 0]
    for k in range(1, kernel):
        out += inputs[k : k + tokens] * weight[:, k]
    if bias is not None:
        out += bias
    return out, inputs[tokens:]


def causal_conv_step(x: Tensor, history: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token each: `x` `[sequences, channels]`, `history` `[sequences, kernel - 1, channels]`."""
    inputs = torch.cat([history, x.unsqueeze(1)], dim=1)
    out = inputs[:, 0] * weight[:, 0]
    for k in range(1, weight.shape[1]):
        out += inputs[:, k] * weight[:, k]
    if bias is not None:
        out += bias
    return out, inputs[:, 1:]


def _terms(x: Tensor, dt: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence's factor and input, each [tokens, channels, state]."""
    factor = torch.exp(dt.unsqueeze(-1) * a)
    return factor, (dt * x).unsqueeze(-1) * b.unsqueeze(1)


def _read(state: Tensor, c: Tensor, x: Tensor, d: Tensor) -> Tensor:
    """Output [tokens, channels] of states [tokens, channels, state]."""
    return (state * c.unsqueeze(1)).sum(-1).add_(x * d)


def selective_scan_step(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """One token for each of many sequences.

    Args:
        x, dt: [sequences, channels] float32, the input and its time step.
        a: [channels, state], negative.
        b, c: [sequences, state]
        d: [channels]
        state: [sequences, 3, channels, state]: carry, local, decay.
        positions: [sequences] of the tokens.

    Returns: [sequences, channels], and the new state.
    """
    carry, local, decay = state.unbind(1)
    opens = (positions % SCAN_GROUP == 0).view(-1, 1, 1)
    carry = torch.where(opens, decay * carry + local, carry)
    local = local.masked_fill(opens, 0.0)
    decay = decay.masked_fill(opens, 1.0)
    factor, inputs = _terms(x, dt, a, b)
    local = factor * local + inputs
    decay = factor * decay
    return _read(local + decay * carry, c, x, d), torch.stack([carry, local, decay], dim=1)


def selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor, start: int
) -> tuple[Tensor, Tensor]:
    """A run of tokens of one sequence that begins at position `start`.

    Shapes as in `selective_scan_step`, with tokens for sequences and `state` `[3, channels, state]`.
    """
    segment = max(1, SEGMENT_VALUES // (a.numel() * SCAN_GROUP)) * SCAN_GROUP
    outputs = []
    first = 0
    while first < x.shape[0]:
        # Segments end where groups end.
        last = min(x.shape[0], first + segment - (start + first) % SCAN_GROUP)
        part = slice(first, last)
        out, state = _scan_segment(x[part], dt[part], a, b[part], c[part], d, state, start + first)
        outputs.append(out)
        first = last
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0], state


def _scan_segment(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor, start: int
) -> tuple[Tensor, Tensor]:
    tokens = x.shape[0]
    skipped = start % SCAN_GROUP
    groups = -(-(skipped + tokens) // SCAN_GROUP)
    factor, inputs = _terms(x, dt, a, b)
    # Positions of the first and last group that are not in this run leave local and decay as they are.
    grid = (groups * SCAN_GROUP, *a.shape)
    factors, terms = factor.new_ones(grid), inputs.new_zeros(grid)
    factors[skipped : skipped + tokens] = factor
    terms[skipped : skipped + tokens] = inputs
    factors, terms = (v.view(groups, SCAN_GROUP, *a.shape) for v in (factors, terms))

    carry = state[0]
    local, decay = torch.zeros_like(factors[:, 0]), torch.ones_like(factors[:, 0])
    if skipped:
        local[0], decay[0] = state[1], state[2]
    else:
        carry = state[2] * carry + state[1]
    locals_, decays = torch.empty_like(factors), torch.empty_like(factors)
    width = SCAN_GROUP if groups > 1 else skipped + tokens
    for i in range(skipped if groups == 1 else 0, width):
        local = factors[:, i] * local + terms[:, i]
        decay = factors[:, i] * decay
        locals_[:, i], decays[:, i] = local, decay

    carries = torch.empty_like(local)
    for g in range(groups):
        carries[g] = carry
        if g + 1 < groups:
            carry = decay[g] * carry + local[g]
    states = decays.mul_(carries.unsqueeze(1)).add_(locals_).flatten(0, 1)[skipped : skipped + tokens]
    return _read(states, c, x, d), torch.stack([carry, local[-1], decay[-1]])


def single_runs(plan: RecurrentPlan, device: torch.device) -> tuple[Tensor, Tensor, Tensor] | None:
    """Rows, slots and positions of the runs of one token, which are computed together; None where there are none."""
    if "single" not in plan.memo:
        alone = [(r.first_row, r.table_row, r.start) for r in plan.runs if r.num_tokens == 1]
        plan.memo["single"] = torch.tensor(alone, device=device).unbind(1) if alone else None
    single: tuple[Tensor, Tensor, Tensor] | None = plan.memo["single"]
    return single


def longer_runs(plan: RecurrentPlan) -> Iterator[SequenceRun]:
    """The other runs."""
    return (run for run in plan.runs if run.num_tokens > 1)


def convolve(
    x: Tensor,
    history: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    plan: RecurrentPlan,
) -> Tensor:
    """The convolution of a step's tokens of all sequences, activated; histories go on in place.

    Args:
        x: [rows, channels]; rows past the plan's are padding.
        history: [slots, kernel - 1, channels] float32
        weight: [channels, kernel] float32
        bias: [channels] float32, or None
        activation: of the result, by its name in ACTIVATIONS.
        plan: which rows go on from which slots.

    Returns: [rows, channels] in the dtype of `x`.
    """
    given, out = x.float(), torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    if single := single_runs(plan, x.device):
        rows, slots, _ = single
        out[rows], history[slots] = causal_conv_step(given[rows], history[slots], weight, bias)
    for run in longer_runs(plan):
        part = slice(run.first_row, run.first_row + run.num_tokens)
        out[part], history[run.table_row] = causal_conv(given[part], history[run.table_row], weight, bias)
    return (out if activation is None else ACTIVATIONS[activation](out)).to(x.dtype)


def scan(inputs: ScanInput, state: Tensor, plan: RecurrentPlan) -> Tensor:
    """The scan of a step's tokens of all sequences, times the activated gate; states go on in place.

    Args:
        inputs: what is scanned.
        state: [slots, 3, channels, state] float32
        plan: which rows go on from which slots.

    Returns: [rows, channels] in the dtype of `inputs.x`.
    """
    x, dt, b, c = inputs.x.float(), softplus(inputs.dt.float()), inputs.b.float(), inputs.c.float()
    y = torch.zeros_like(x)
    if single := single_runs(plan, x.device):
        rows, slots, positions = single
        y[rows], state[slots] = selective_scan_step(
            x[rows], dt[rows], inputs.a, b[rows], c[rows], inputs.d, state[slots], positions
        )
    for run in longer_runs(plan):
        part = slice(run.first_row, run.first_row + run.num_tokens)
        y[part], state[run.table_row] = selective_scan(
            x[part], dt[part], inputs.a, b[part], c[part], inputs.d, state[run.table_row], run.start
        )
    return (y * ACTIVATIONS[inputs.activation](inputs.gate.float())).to(inputs.x.dtype)
