"""The core's recurrent layers: short convolutions, and scans whose states go on in place."""

import torch
from torch import Tensor

from octavo.ops.native.description import MAX_HEAD_STATE, MAX_STATE, MAX_TAPS, MIN_TAPS, Activation
from octavo.ops.native.native_elementwise import ACTIVATIONS
from octavo.ops.native.native_ranks import NativeRanks
from octavo.ops.native.packed_weight import DTYPES
from octavo.ops.plans import DeltaInput, GatedRecurrenceInput, HeadScanInput, RecurrentPlan, ScanInput
from octavo.ops.specs import DeltaSpec


def _has(activation: str | None) -> bool:
    return activation is None or activation in ACTIVATIONS


class NativeRecurrent(NativeRanks):
    """Recurrent layers, of one of the compiled libraries; arguments as of NativeElementwise."""

    def convolve(
        self,
        x: Tensor,
        history: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: str | None,
        plan: RecurrentPlan,
    ) -> Tensor:
        channels, taps = weight.shape
        if not MIN_TAPS <= taps <= MAX_TAPS or not _has(activation):
            return self._reference.convolve(x, history, weight, bias, activation, plan)
        out = torch.empty(x.shape, dtype=x.dtype)
        self.library.core.causal_conv(
            num_runs=len(plan.table),
            x=x.data_ptr(),
            x_stride=x.stride(0),
            history=history.data_ptr(),
            history_stride=history.stride(0),
            weight=weight.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            out=out.data_ptr(),
            runs=plan.table.data_ptr(),
            channels=channels,
            taps=taps,
            activation=Activation.NONE if activation is None else ACTIVATIONS[activation],
            dtype=DTYPES[x.dtype],
        )
        return out

    def scan(self, inputs: ScanInput, state: Tensor, plan: RecurrentPlan) -> Tensor:
        """The plain recurrence, one token after the other: the first of the three parts of `state` is all of it."""
        channels, state_size = inputs.a.shape
        if state_size > MAX_STATE or inputs.activation not in ACTIVATIONS:
            return self._reference.scan(inputs, state, plan)
        x, dt = self._together(inputs.x), self._together(inputs.dt)
        out = torch.empty_like(x)
        self.library.core.selective_scan(
            num_runs=len(plan.table),
            x=x.data_ptr(),
            dt=dt.data_ptr(),
            a=inputs.a.data_ptr(),
            b=inputs.b.data_ptr(),
            b_stride=inputs.b.stride(0),
            c=inputs.c.data_ptr(),
            c_stride=inputs.c.stride(0),
            d=inputs.d.data_ptr(),
            gate=inputs.gate.data_ptr(),
            gate_stride=inputs.gate.stride(0),
            out=out.data_ptr(),
            state=state.data_ptr(),
            state_stride=state.stride(0),
            runs=plan.table.data_ptr(),
            channels=channels,
            state_size=state_size,
            activation=ACTIVATIONS[inputs.activation],
            dtype=DTYPES[x.dtype],
        )
        return out

    def scan_heads(self, inputs: HeadScanInput, state: Tensor, plan: RecurrentPlan) -> Tensor:
        num_heads, (state_size, head_dim) = len(inputs.a), state.shape[2:]
        if state_size > MAX_HEAD_STATE or (inputs.gate is not None and inputs.activation not in ACTIVATIONS):
            return self._reference.scan_heads(inputs, state, plan)
        out, gate = torch.empty(inputs.x.shape, dtype=inputs.x.dtype), inputs.gate
        self.library.core.head_scan(
            num_runs=len(plan.table),
            x=inputs.x.data_ptr(),
            x_stride=inputs.x.stride(0),
            dt=inputs.dt.data_ptr(),
            dt_stride=inputs.dt.stride(0),
            dt_bias=inputs.dt_bias.data_ptr(),
            dt_min=inputs.dt_limit[0],
            dt_max=inputs.dt_limit[1],
            a=inputs.a.data_ptr(),
            b=inputs.b.data_ptr(),
            b_stride=inputs.b.stride(0),
            c=inputs.c.data_ptr(),
            c_stride=inputs.c.stride(0),
            d=inputs.d.data_ptr(),
            gate=None if gate is None else gate.data_ptr(),
            gate_stride=0 if gate is None else gate.stride(0),
            out=out.data_ptr(),
            state=state.data_ptr(),
            state_stride=state.stride(0),
            runs=plan.table.data_ptr(),
            num_heads=num_heads,
            head_dim=head_dim,
            num_groups=inputs.num_groups,
            state_size=state_size,
            activation=Activation.NONE if gate is None else ACTIVATIONS[inputs.activation],
            dtype=DTYPES[inputs.x.dtype],
        )
        return out

    def gated_recurrence(self, inputs: GatedRecurrenceInput, state: Tensor, plan: RecurrentPlan) -> Tensor:
        x, *gates = (self._together(v) for v in (inputs.x, inputs.input_gate, inputs.recurrent_gate))
        out = torch.empty(x.shape, dtype=x.dtype)
        self.library.core.gated_recurrence(
            num_runs=len(plan.table),
            x=x.data_ptr(),
            input_gate=gates[0].data_ptr(),
            input_bias=inputs.input_bias.data_ptr(),
            recurrent_gate=gates[1].data_ptr(),
            recurrent_bias=inputs.recurrent_bias.data_ptr(),
            a=inputs.a.data_ptr(),
            positions=inputs.positions.data_ptr(),
            out=out.data_ptr(),
            state=state.data_ptr(),
            state_stride=state.stride(0),
            runs=plan.table.data_ptr(),
            channels=x.shape[1],
            dtype=DTYPES[x.dtype],
        )
        return out

    def delta_rule(self, inputs: DeltaInput, state: Tensor, plan: RecurrentPlan, spec: DeltaSpec) -> Tensor:
        query, decay, beta = inputs.query, inputs.decay, inputs.beta
        out = torch.empty(query.shape[0], spec.num_heads * spec.value_dim, dtype=query.dtype)
        self.library.core.delta_rule(
            num_runs=len(plan.table),
            query=query.data_ptr(),
            query_stride=query.stride(0),
            key=inputs.key.data_ptr(),
            key_stride=inputs.key.stride(0),
            value=inputs.value.data_ptr(),
            value_stride=inputs.value.stride(0),
            decay=None if decay is None else decay.data_ptr(),
            decay_stride=0 if decay is None else decay.stride(0),
            beta=None if beta is None else beta.data_ptr(),
            beta_stride=0 if beta is None else beta.stride(0),
            rate=inputs.rate.data_ptr(),
            bias=None if inputs.bias is None else inputs.bias.data_ptr(),
            out=out.data_ptr(),
            state=state.data_ptr(),
            state_stride=state.stride(0),
            runs=plan.table.data_ptr(),
            num_heads=spec.num_heads,
            num_key_heads=spec.num_key_heads,
            key_dim=spec.key_dim,
            value_dim=spec.value_dim,
            by_channel=decay is not None and decay.shape[1] > spec.num_heads,
            in_turn=spec.in_turn,
            scale=spec.scale,
            norm_eps=spec.norm_eps or 0.0,
            beta_scale=spec.beta_scale,
            dtype=DTYPES[query.dtype],
        )
        return out
