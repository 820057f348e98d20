"""The kernels' face: one function an operation, over plain tensors.

Each operation is *batch invariant*: a row of its result is computed by the same sums in the same order, whatever the
rows around it. docs/design.md says how; tests/ops holds every operation to it.
"""

from octavo.ops.activation import ACTIVATIONS
from octavo.ops.attention import AttentionPlan, SequenceRun, plan_attention
from octavo.ops.kernels import Kernels, choose_kernels
from octavo.ops.linear import LinearKernel
from octavo.ops.norm import layer_norm
from octavo.ops.scan import causal_conv, causal_conv_step, selective_scan, selective_scan_step

__all__ = [
    "ACTIVATIONS",
    "AttentionPlan",
    "Kernels",
    "LinearKernel",
    "SequenceRun",
    "causal_conv",
    "causal_conv_step",
    "choose_kernels",
    "layer_norm",
    "plan_attention",
    "selective_scan",
    "selective_scan_step",
]
