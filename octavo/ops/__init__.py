"""The kernels' face: one function an operation, over plain tensors.

Each operation is *batch invariant*: a row of its result is computed by the same sums in the same order, whatever the
rows around it. docs/design.md says how; tests/ops holds every operation to it.
"""

from octavo.ops.activation import ACTIVATIONS
from octavo.ops.attention import AttentionPlan, BlockSparse, SequenceRun, cache_row, full_attention, plan_attention
from octavo.ops.experts import ExpertKernel
from octavo.ops.kernels import Kernels, NotRecordableError, Program, choose_kernels
from octavo.ops.linear import LinearKernel, head_product
from octavo.ops.rotary import RotaryTable, rotate
from octavo.ops.sampling import NOT_FINITE, DrawBy
from octavo.ops.scan import RecurrentPlan, RecurrentRun, ScanInput
from octavo.ops.weights import StoredRows

__all__ = [
    "ACTIVATIONS",
    "NOT_FINITE",
    "AttentionPlan",
    "BlockSparse",
    "DrawBy",
    "ExpertKernel",
    "Kernels",
    "LinearKernel",
    "NotRecordableError",
    "Program",
    "RecurrentPlan",
    "RecurrentRun",
    "RotaryTable",
    "ScanInput",
    "SequenceRun",
    "StoredRows",
    "cache_row",
    "choose_kernels",
    "full_attention",
    "head_product",
    "plan_attention",
    "rotate",
]
