"""The backend's recurrences, by the kernels of octavo.ops.triton.recurrent_kernels.

Each is one launch a step, and convolutions of long runs are two. Channels of a program are few, so that a decode step
of one sequence has programs for all of a GPU. None of these numbers has been timed on one.
"""

from typing import Any

import torch
from torch import Tensor

from octavo.ops.plans import DeltaInput, GatedRecurrenceInput, HeadScanInput, RecurrentPlan, ScanInput
from octavo.ops.specs import DeltaSpec
from octavo.ops.torch import TorchBackend
from octavo.ops.triton import recurrent_kernels
from octavo.ops.triton.attention_launch import are_known
from octavo.ops.triton.launching import on_device, power_of_two, together

CONVOLVED_CHANNELS = 128
CONVOLVED_TOKENS = 32
"""Tokens of a run that a program convolves, where a run has more."""
SCANNED_VALUES = 1024
"""Of a state in a program of Mamba's scan."""
RECURRENT_CHANNELS = 128
HEAD_VALUES = 4096
"""Of a head's state in a program: 32 registers a thread of 128."""
MAX_STATE = 1024
"""Rows of a head's state that a program has room for."""
LAUNCH: dict[str, Any] = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": False}


def _columns(rows: int, width: int) -> int:
    """How many of a state's columns a program takes, by its rows and columns alone."""
    return max(1, min(power_of_two(width), HEAD_VALUES // power_of_two(rows)))


def _table(plan: RecurrentPlan, x: Tensor) -> Tensor:
    """The plan's runs where tensors are."""
    if "table" not in plan.memo:
        plan.memo["table"] = on_device(plan.table, x.device)
    table: Tensor = plan.memo["table"]
    return table


def _longest(plan: RecurrentPlan, rows: int) -> int:
    """Tokens of the longest run; with as many runs as rows each has one, whatever a recorded step's runs are."""
    if len(plan.table) == rows or not are_known(plan):
        return 1
    return max((run.num_tokens for run in plan.runs), default=0)


class TritonRecurrent(TorchBackend):
    """What goes on from states; results of rows past the plan's are zero."""

    def convolve(
        self,
        x: Tensor,
        history: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: str | None,
        plan: RecurrentPlan,
    ) -> Tensor:
        x, out, channels, kernel = together(x), torch.zeros_like(x), x.shape[1], weight.shape[1]
        out, table, longest = out.contiguous(), _table(plan, x), _longest(plan, x.shape[0])
        blocks = -(-channels // CONVOLVED_CHANNELS)
        parts = -(-longest // CONVOLVED_TOKENS)
        passes = (0,) if parts <= 1 else (1, 2)
        for number in passes if len(table) else ():
            recurrent_kernels.convolve_kernel[(len(table), blocks, parts if number == 1 else 1)](
                x,
                x.stride(0),
                history,
                weight.contiguous(),
                x if bias is None else bias,
                out,
                channels,
                table,
                KERNEL=kernel,
                ACTIVATION=activation,
                CHANNELS=CONVOLVED_CHANNELS,
                TOKENS=CONVOLVED_TOKENS,
                HAS_BIAS=bias is not None,
                PASS=number,
                **LAUNCH,
            )
        return out

    def scan(self, inputs: ScanInput, state: Tensor, plan: RecurrentPlan) -> Tensor:
        x, dt, b, c, gate = (together(v) for v in (inputs.x, inputs.dt, inputs.b, inputs.c, inputs.gate))
        (channels, size), table = inputs.a.shape, _table(plan, x)
        out = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        each = max(1, SCANNED_VALUES // power_of_two(size))
        if len(table):
            recurrent_kernels.scan_kernel[(len(table), -(-channels // each))](
                x,
                x.stride(0),
                dt,
                dt.stride(0),
                inputs.a.contiguous(),
                b,
                b.stride(0),
                c,
                c.stride(0),
                inputs.d,
                gate,
                gate.stride(0),
                out,
                state,
                state.stride(0),
                channels,
                table,
                STATE=size,
                STATES=power_of_two(size),
                ACTIVATION=inputs.activation,
                CHANNELS=each,
                **LAUNCH,
            )
        return out

    def scan_heads(self, inputs: HeadScanInput, state: Tensor, plan: RecurrentPlan) -> Tensor:
        num_heads, (size, head_dim) = len(inputs.a), state.shape[2:]
        if size > MAX_STATE:
            return super().scan_heads(inputs, state, plan)
        x, dt, b, c = (together(v) for v in (inputs.x, inputs.dt, inputs.b, inputs.c))
        gate, table = x if inputs.gate is None else together(inputs.gate), _table(plan, x)
        out = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        columns = _columns(size, head_dim)
        if len(table):
            recurrent_kernels.scan_heads_kernel[(len(table), num_heads, -(-head_dim // columns))](
                x,
                x.stride(0),
                dt,
                dt.stride(0),
                inputs.dt_bias,
                *(float(limit) for limit in inputs.dt_limit),
                inputs.a,
                b,
                b.stride(0),
                c,
                c.stride(0),
                inputs.d,
                gate,
                gate.stride(0),
                out,
                state,
                state.stride(0),
                num_heads,
                num_heads // inputs.num_groups,
                table,
                HEAD_DIM=head_dim,
                STATE=size,
                STATES=power_of_two(size),
                ACTIVATION=inputs.activation,
                COLUMNS=columns,
                HAS_GATE=inputs.gate is not None,
                **LAUNCH,
            )
        return out

    def gated_recurrence(self, inputs: GatedRecurrenceInput, state: Tensor, plan: RecurrentPlan) -> Tensor:
        x, enters, decays = (together(v) for v in (inputs.x, inputs.input_gate, inputs.recurrent_gate))
        channels, table = x.shape[1], _table(plan, x)
        out = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        if len(table):
            recurrent_kernels.gated_recurrence_kernel[(len(table), -(-channels // RECURRENT_CHANNELS))](
                x,
                x.stride(0),
                enters,
                enters.stride(0),
                inputs.input_bias,
                decays,
                decays.stride(0),
                inputs.recurrent_bias,
                inputs.a,
                inputs.positions,
                out,
                state,
                state.stride(0),
                channels,
                table,
                CHANNELS=RECURRENT_CHANNELS,
                **LAUNCH,
            )
        return out

    def delta_rule(self, inputs: DeltaInput, state: Tensor, plan: RecurrentPlan, spec: DeltaSpec) -> Tensor:
        if spec.key_dim > MAX_STATE:
            return super().delta_rule(inputs, state, plan, spec)
        query, key, value = (together(v) for v in (inputs.query, inputs.key, inputs.value))
        decay, beta = (query if v is None else together(v) for v in (inputs.decay, inputs.beta))
        table, columns = _table(plan, query), _columns(spec.key_dim, spec.value_dim)
        out = torch.zeros(len(query), spec.num_heads * spec.value_dim, dtype=query.dtype, device=query.device)
        if len(table):
            recurrent_kernels.delta_rule_kernel[(len(table), spec.num_heads, -(-spec.value_dim // columns))](
                query,
                query.stride(0),
                key,
                key.stride(0),
                value,
                value.stride(0),
                decay,
                decay.stride(0),
                beta,
                beta.stride(0),
                inputs.rate,
                inputs.rate if inputs.bias is None else inputs.bias,
                out,
                state,
                state.stride(0),
                float(spec.scale),
                float(spec.beta_scale),
                table,
                NUM_HEADS=spec.num_heads,
                KEY_HEADS=spec.num_key_heads,
                KEY_DIM=spec.key_dim,
                KEYS=power_of_two(spec.key_dim),
                VALUE_DIM=spec.value_dim,
                COLUMNS=columns,
                NORM_EPS=spec.norm_eps,
                IS_IN_TURN=spec.in_turn,
                HAS_DECAY=inputs.decay is not None,
                BY_CHANNEL=inputs.decay is not None and inputs.decay.shape[1] > spec.num_heads,
                HAS_BETA=inputs.beta is not None,
                HAS_BIAS=inputs.bias is not None,
                **LAUNCH,
            )
        return out
