"""Operations over plain tensors, and the backends that have them: siblings behind one protocol, `Backend`.

Each operation is *batch invariant*: a row of its result is computed by the same sums in the same order, whatever the
rows around it. docs/design.md says how; tests/ops holds every operation to it.
"""

from octavo.ops.backend import Backend
from octavo.ops.logit_changes import Likeliest, Penalties, TokenChanges, rows_of, sent
from octavo.ops.paged_cache import KVCache
from octavo.ops.plans import (
    NOT_FINITE,
    AttentionPlan,
    BlockTables,
    DecodeInputs,
    DeltaInput,
    DrawBy,
    FullRun,
    GatedRecurrenceInput,
    HeadScanInput,
    RecurrentPlan,
    ScanInput,
    SequenceRun,
    plan_attention,
    plan_recurrent,
)
from octavo.ops.pooled_keys import PooledKeys, PoolSpec
from octavo.ops.prepared import (
    AdapterTable,
    PackedExperts,
    PackedHeads,
    PackedLinear,
    RecordedDecode,
    RowAdapters,
)
from octavo.ops.rank_operations import Ranks
from octavo.ops.selection import device_of_rank, select_backend
from octavo.ops.specs import (
    AttentionSpec,
    BlockSparse,
    CacheSpec,
    DeltaSpec,
    DistanceBias,
    Gate,
    HeadClip,
    HeadNorms,
    HeadTransform,
    LinearUpdate,
    LowRank,
    NormSpec,
    PositionScores,
    RankColumns,
    RotaryTable,
    RouterSpec,
)
from octavo.ops.stored_rows import PackedRows, StoredRows
from octavo.ops.streams import StreamSpec
from octavo.ops.torch.activations import ACTIVATIONS
from octavo.rank_place import RankLink, RankPlace

__all__ = [
    "ACTIVATIONS",
    "NOT_FINITE",
    "AdapterTable",
    "AttentionPlan",
    "AttentionSpec",
    "Backend",
    "BlockSparse",
    "BlockTables",
    "CacheSpec",
    "DecodeInputs",
    "DeltaInput",
    "DeltaSpec",
    "DistanceBias",
    "DrawBy",
    "FullRun",
    "Gate",
    "GatedRecurrenceInput",
    "HeadClip",
    "HeadNorms",
    "HeadScanInput",
    "HeadTransform",
    "KVCache",
    "Likeliest",
    "LinearUpdate",
    "LowRank",
    "NormSpec",
    "PackedExperts",
    "PackedHeads",
    "PackedLinear",
    "PackedRows",
    "Penalties",
    "PoolSpec",
    "PooledKeys",
    "PositionScores",
    "RankColumns",
    "RankLink",
    "RankPlace",
    "Ranks",
    "RecordedDecode",
    "RecurrentPlan",
    "RotaryTable",
    "RouterSpec",
    "RowAdapters",
    "ScanInput",
    "SequenceRun",
    "StoredRows",
    "StreamSpec",
    "TokenChanges",
    "device_of_rank",
    "plan_attention",
    "plan_recurrent",
    "rows_of",
    "select_backend",
    "sent",
]
