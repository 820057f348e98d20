"""Operations over plain tensors, and the backends that have them: siblings behind one protocol, `Backend`.

Each operation is *batch invariant*: a row of its result is computed by the same sums in the same order, whatever the
rows around it. docs/design.md says how; tests/ops holds every operation to it.
"""

from torch import device as Device  # the name torch is this package's own folder

from octavo.ops.backend import Backend, NotRecordableError, PackedExperts, PackedLinear, Program
from octavo.ops.native import NativeBackend, load
from octavo.ops.plans import (
    NOT_FINITE,
    AttentionPlan,
    BlockSparse,
    DrawBy,
    RecurrentPlan,
    RecurrentRun,
    RotaryTable,
    ScanInput,
    SequenceRun,
    cache_row,
    plan_attention,
)
from octavo.ops.stored_rows import StoredRows
from octavo.ops.torch import TorchBackend
from octavo.ops.torch.activations import ACTIVATIONS
from octavo.ops.torch.paged_attention import full_attention
from octavo.ops.torch.products import head_product
from octavo.ops.torch.rope import rotate

__all__ = [
    "ACTIVATIONS",
    "NOT_FINITE",
    "AttentionPlan",
    "Backend",
    "BlockSparse",
    "DrawBy",
    "NotRecordableError",
    "PackedExperts",
    "PackedLinear",
    "Program",
    "RecurrentPlan",
    "RecurrentRun",
    "RotaryTable",
    "ScanInput",
    "SequenceRun",
    "StoredRows",
    "cache_row",
    "full_attention",
    "head_product",
    "plan_attention",
    "rotate",
    "select_backend",
]


def select_backend(device: Device, preference: str = "auto") -> Backend:
    """The fastest backend for `device`; `preference="torch"` forces the reference."""
    if preference == "auto" and device.type == "cpu" and (library := load()) is not None:
        return NativeBackend(library)
    return TorchBackend(device)
