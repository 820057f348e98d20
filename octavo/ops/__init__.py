"""The kernels' face: one function an operation, over plain tensors.

Each operation is *batch invariant*: a row of its result is computed by the same sums in the same order, whatever the
rows around it. docs/design.md says how; tests/ops holds every operation to it.
"""

from octavo.ops.activation import ACTIVATIONS, gated
from octavo.ops.attention import AttentionPlan, SequenceRun, paged_attention, plan_attention, write_kv
from octavo.ops.linear import LinearKernel, linear_implementation, prepare_linear
from octavo.ops.norm import layer_norm, rms_norm
from octavo.ops.rotary import rotate
from octavo.ops.scan import causal_conv, causal_conv_step, selective_scan, selective_scan_step

__all__ = [
    "ACTIVATIONS",
    "AttentionPlan",
    "LinearKernel",
    "SequenceRun",
    "causal_conv",
    "causal_conv_step",
    "gated",
    "layer_norm",
    "linear_implementation",
    "paged_attention",
    "plan_attention",
    "prepare_linear",
    "rms_norm",
    "rotate",
    "selective_scan",
    "selective_scan_step",
    "write_kv",
]
