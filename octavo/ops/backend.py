"""What a backend is: the operations that models are computed with, over plain tensors.

Chosen once, when a model is loaded (octavo.ops.select_backend), and handed to its parts. octavo.ops.torch is the
reference, which says what each operation means; octavo.ops.native has the same operations compiled for CPUs.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from octavo.ops.alternating_streams import AlternatingStreams
from octavo.ops.logit_changes import LogitChanges
from octavo.ops.paged_cache import KVCache
from octavo.ops.plans import (
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
)
from octavo.ops.pooled_keys import PooledAttention
from octavo.ops.prepared import AdapterTable, PackedExperts, PackedHeads, PackedLinear, RecordedDecode, RowAdapters
from octavo.ops.rank_operations import Ranks
from octavo.ops.specs import (
    AttentionSpec,
    CacheSpec,
    Capabilities,
    DeltaSpec,
    DistanceBias,
    Gate,
    LinearUpdate,
    PositionScores,
    RotaryTable,
    RouterSpec,
)
from octavo.ops.stored_rows import PackedRows, StoredRows
from octavo.ops.streams import Streams
from octavo.ops.weight_kinds import WeightKind
from octavo.token_windows import Window


class Backend(Ranks, PooledAttention, Streams, AlternatingStreams, LogitChanges, Protocol):
    """The operations, and what they work on. Those in which ranks meet are of octavo.ops.rank_operations.

    Keys of several tokens each are octavo.ops.pooled_keys's, several residual streams octavo.ops.streams's and
    octavo.ops.alternating_streams's, what lies between logits and tokens octavo.ops.logit_changes's.
    """

    name: str
    device: torch.device
    """Where tensors are."""
    min_rows: int
    """A batch is padded to so many rows: products of fewer would each be padded by themselves."""
    capabilities: Capabilities

    @property
    def threads(self) -> int: ...

    def set_threads(self, count: int) -> None:
        """Compute with so many threads."""
        ...

    def computing(self) -> AbstractContextManager[None]:
        """What a step is computed within."""
        ...

    def free_memory(self) -> int:
        """Bytes that are free where tensors are."""
        ...

    def cache_budget(self, device_share: float) -> int:
        """Bytes that caches take by default at most, `device_share` being how much of a GPU may be taken in all."""
        ...

    @property
    def memory_sharers(self) -> int:
        """How many ranks share the memory that it tells of: those of a machine's processors do."""
        ...

    @property
    def runs_aside(self) -> bool:
        """Whether operations only launch what a device computes, so that the caller may do something else meanwhile."""
        ...

    @property
    def measures_memory(self) -> bool:
        """Whether `measure_peak` can be asked: of a device whose memory is its own, and caches would fill."""
        ...

    def measure_peak(self, function: Callable[[], object]) -> int:
        """Bytes that a call of `function` takes at most, beside what is taken before."""
        ...

    def make_cache(self, spec: CacheSpec, blocks: int, block_size: int, dtype: torch.dtype) -> KVCache:
        """An empty cache of `blocks` blocks of `block_size` tokens each."""
        ...

    def block_bytes(self, spec: CacheSpec, block_size: int, dtype: torch.dtype) -> int:
        """Bytes that a block of such a cache takes."""
        ...

    def make_state(self, shape: tuple[int, ...]) -> Tensor:
        """Zeros in float32, for what a recurrent layer remembers."""
        ...

    def plan_attention(
        self,
        runs: Sequence[SequenceRun],
        block_table: Tensor,
        block_size: int,
        window: Window | None,
        num_tokens: int,
    ) -> AttentionPlan:
        """Where a step's queries, keys and values are. See octavo.ops.plans."""
        ...

    def plan_recurrent(self, runs: Sequence[SequenceRun]) -> RecurrentPlan:
        """Which states a step's tokens go on from. See octavo.ops.plans."""
        ...

    def record_decode(
        self,
        function: Callable[[DecodeInputs], tuple[Tensor, ...]],
        tables: BlockTables,
        max_rows: int,
        adapters: bool = False,
    ) -> RecordedDecode | None:
        """Have decode steps of up to `max_rows` rows run from a recording of `function`; None where none can.

        A row is a sequence's next token, or a guess at one after it: an operation is done for all rows before the next.
        `adapters`: its inputs have the slots of adapters.
        """
        ...

    def linear(self, weight: Tensor, apart: bool = False) -> PackedLinear:
        """The weight `[out, in]`, laid out for computing; the caller may drop its own. `apart`: see `stored_linear`."""
        ...

    def stored_linear(self, parts: Sequence[StoredRows], fine: bool = False, apart: bool = False) -> PackedLinear:
        """One weight from parts as they are stored, whose outputs lie one after the other.

        Args:
            parts: the rows.
            fine: where a kind's products round activations, they are rounded to twice as many bits.
            apart: in memory of its own, which is given back with the weight.
        """
        ...

    def quantize(self, weight: Tensor, kind: WeightKind) -> StoredRows:
        """A weight `[out, in]` rounded to the nearest values of a kind: Q8_0 or Q4_1."""
        ...

    @property
    def packed_layout(self) -> str:
        """What decides how weights are laid out; empty where they cannot be kept so for another process."""
        ...

    @property
    def sum_order(self) -> str:
        """What tells backends of one layout apart that add up in another order; empty where there is but one."""
        ...

    def packed_rows(self, weight: PackedLinear) -> list[PackedRows]:
        """A weight's parts as they are laid out; none where it has more to it."""
        ...

    def packed_linear(self, parts: Sequence[PackedRows]) -> PackedLinear:
        """The weight of parts that `packed_rows` gave, in this process or another of the same `packed_layout`.

        Raises ValueError for a part that has another size.
        """
        ...

    def beside_threads(self, weight: PackedLinear, is_gated: bool = False) -> PackedLinear:
        """A packed weight that stays, in memory beside who reads it; itself where that is all the same.

        `is_gated`: the first half of its outputs is computed beside the second.
        """
        ...

    def adapter_table(self, slots: int, experts: int = 1) -> AdapterTable:
        """For one weight's results, or those of so many experts; no adapter changes them yet."""
        ...

    def pack_update(self, update: LinearUpdate, dtype: torch.dtype) -> object:
        """What `AdapterTable.put` takes, its matrices in `dtype`. Any thread may call this."""
        ...

    def experts(self, weights: Sequence[PackedLinear]) -> PackedExperts:
        """Weights of experts, made by `linear` or `stored_linear` and alike in shape."""
        ...

    def head_linear(self, weight: Tensor) -> PackedHeads:
        """Each head's weight, of `[heads, out, in]` in float32."""
        ...

    def group_linear(self, weight: PackedLinear, groups: int) -> PackedHeads:
        """Of a weight `[groups * out, in]`, made by `linear` or `stored_linear`, each group's rows as one weight."""
        ...

    def table_rows(self, table: Tensor, ids: Tensor, first: int | None = None) -> Tensor:
        """Rows `ids` `[count]` of `table` `[rows, width]`; `first` as in `PackedLinear.rows`."""
        ...

    def finite(self, x: Tensor) -> Tensor:
        """Whether all of `x` `[rows, width]` is, a bool; False also where numbers are so large that their sum is not.

        Who asks for its value waits for the device.
        """
        ...

    def floats(self, x: Tensor) -> Tensor:
        """`x` `[rows, width]` in float32."""
        ...

    def add(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        """`x + scale * y`."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See octavo.ops.torch.torch_norms."""
        ...

    def rms_norm_gated(self, x: Tensor, gate: Tensor, weight: Tensor, eps: float, activation: str) -> Tensor:
        """See octavo.ops.torch.torch_norms."""
        ...

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """See octavo.ops.torch.torch_norms."""
        ...

    def activate(self, x: Tensor, activation: str) -> Tensor:
        """`activation(x)`, by its name in ACTIVATIONS, computed in float32."""
        ...

    def scale(self, x: Tensor, factor: float) -> Tensor:
        """`x * factor`, the factor in the dtype of `x`."""
        ...

    def scale_rows(self, x: Tensor, factors: Tensor) -> Tensor:
        """`x` `[rows, ...]`, each row times its factor, `[rows]` float32."""
        ...

    def position_factors(self, positions: Tensor, beta: float, period: float, offset: int) -> Tensor:
        """`1 + beta * log(1 + floor((position + offset) / period))` of `positions` `[rows]` int64, in float32."""
        ...

    def multiply(self, x: Tensor, y: Tensor, activation: str | None = None) -> Tensor:
        """`x * activation(y)`, `[rows, size]` both, computed in float32; `x * y` without an activation."""
        ...

    def side_by_side(self, x: Tensor, y: Tensor) -> Tensor:
        """Rows of `x` `[rows, a]` and `y` `[rows, b]` side by side: `[rows, a + b]`."""
        ...

    def scale_columns(self, x: Tensor, factors: Tensor) -> Tensor:
        """`x` `[rows, size]` times `factors` `[size]`, which are float32."""
        ...

    def xielu(self, x: Tensor, shape: Tensor) -> Tensor:
        """xIELU, computed in float32 (see octavo.ops.torch.activations); `shape` is `[4]` float32."""
        ...

    def add_gated(self, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        """`x + sigmoid(gate) * y`, `[rows, size]`, with `gate` `[rows, 1]`; the product is rounded, then added."""
        ...

    def gated(self, gate_up: Tensor, gate: Gate) -> Tensor:
        """`[rows, size]` of `gate_up` `[rows, 2 * size]`, whose first half is the gate (Shazeer 2020)."""
        ...

    def gated_linear(
        self,
        gate_up: PackedLinear,
        x: Tensor,
        bias: Tensor | None,
        gate: Gate,
        adapters: RowAdapters | None = None,
    ) -> Tensor:
        """`gated(gate_up(x, bias), gate)`, which need not be rounded in between.

        Rows without an adapter have the same bits as where there are no `adapters` at all.
        """
        ...

    def route(
        self, logits: Tensor, spec: RouterSpec, bias: Tensor | None = None, chosen: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The chosen experts' weights in float32, and numbers, `[rows, top_k]` each, by logits `[rows, experts]`.

        `bias` `[experts]` in float32, for a router that is biased, is added to scores where they choose. `chosen`
        `[rows, top_k]` int64, where something else has chosen: then logits decide weights alone.
        """
        ...

    def angles(self, table: RotaryTable, positions: Tensor, lengths: Tensor, offset: int = 0) -> tuple[Tensor, Tensor]:
        """See octavo.ops.torch.rope."""
        ...

    def attend(
        self,
        qkv: Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        spec: AttentionSpec,
        angles: tuple[Tensor, Tensor] | None,
        query_factors: Tensor | None = None,
    ) -> Tensor:
        """Attention of a step's tokens, whose keys and values go to the cache first, as their runs let them see.

        Args:
            qkv: [rows, (heads + 2 * kv heads) * head_dim], queries, keys and values side by side, which may be
                overwritten; queries alone where the spec stores nothing. Rows past the plan's tokens are padding.
            cache: of the layer. It is written by this operation alone, or by `store` alone.
            plan: where each sequence's tokens and blocks are.
            spec: of the layer.
            angles: cos and sin as `angles` gives them, or None where positions come otherwise.
            query_factors: [rows] float32, what each row's queries are multiplied with in the end; None for nothing.

        Returns: [rows, heads * head_dim]; padding is zero.
        """
        ...

    def join_rope(self, x: Tensor, y: Tensor, angles: tuple[Tensor, Tensor], interleaved: bool) -> Tensor:
        """Each head's values of `x`, then those of `y` rotated: `[rows, heads, size of both]` in float32.

        `x` and `y` are `[rows, heads, size]`; `angles` as `angles` gives them.
        """
        ...

    def store(self, keys: Tensor, values: Tensor | None, cache: KVCache, plan: AttentionPlan) -> None:
        """Write keys and values, `[tokens, kv heads, dim]`, to the plan's slots."""
        ...

    def attend_stored(
        self,
        query: Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        spec: AttentionSpec,
        rows: int,
        dtype: torch.dtype,
        key_lists: Tensor | None = None,
    ) -> Tensor:
        """Attention over what `store` has written: `[rows, heads, value_dim]` in `dtype`.

        `query` is `[tokens, heads, head_dim]` in float32. Padding and rows of no run are zero. Where there are
        `key_lists`, of a plan without a window, rows see the keys of their lists alone, as `select_keys` gives them.
        """
        ...

    def select_keys(
        self,
        query: Tensor,
        weights: Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        top_k: int,
        rows: int,
        ratio: int = 1,
    ) -> Tensor:
        """The positions of the best keys of those that each token sees, `[rows, top_k]` int32, each list ascending.

        A key's score is the sum over heads of `weight * max(query . key, 0)`; of equal scores the earlier key's is the
        better. Where a token sees no more than `top_k` keys, they are all in its list. -1 follows a list that is
        shorter; rows past the plan's tokens mean nothing.

        Args:
            query: [tokens, heads, head_dim] float32.
            weights: [tokens, heads] float32, each head's.
            cache: one head of keys, written by `store`, or by `store_pooled`.
            plan: which keys each token sees.
            top_k: of a list, at most.
            rows: of the result.
            ratio: tokens that a key is of. Of several, whatever the window, a token sees the keys that are complete
                with it, and lists have their numbers (octavo.ops.pooled_keys).
        """
        ...

    def full_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        runs: Sequence[FullRun],
        bias: DistanceBias | PositionScores | None = None,
    ) -> Tensor:
        """Attention in which all queries of a run see all of its keys, and none else.

        Args:
            query: [rows, heads, head_dim] float32, or as activations are, and then all three.
            key, value: [key rows, kv heads, dim] float32; `heads` is a multiple of `kv heads`.
            scale: factor of the scores.
            runs: first row and number of its queries, then of its keys.
            bias: of the scores, by distance; a run's queries stand at the last of its keys.

        Returns: [rows, heads, value dim] in the dtype of the query; rows of no run are zero.
        """
        ...

    def weighted_sum(self, y: Tensor, weights: Tensor | None, terms: int) -> Tensor:
        """See octavo.ops.torch.experts."""
        ...

    def convolve(
        self,
        x: Tensor,
        history: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: str | None,
        plan: RecurrentPlan,
    ) -> Tensor:
        """See octavo.ops.torch.selective_scan."""
        ...

    def scan(self, inputs: ScanInput, state: Tensor, plan: RecurrentPlan) -> Tensor:
        """See octavo.ops.torch.selective_scan."""
        ...

    def scan_heads(self, inputs: HeadScanInput, state: Tensor, plan: RecurrentPlan) -> Tensor:
        """See octavo.ops.torch.head_scan."""
        ...

    def gated_recurrence(self, inputs: GatedRecurrenceInput, state: Tensor, plan: RecurrentPlan) -> Tensor:
        """See octavo.ops.torch.head_scan."""
        ...

    def delta_rule(self, inputs: DeltaInput, state: Tensor, plan: RecurrentPlan, spec: DeltaSpec) -> Tensor:
        """See octavo.ops.torch.delta_rule."""
        ...

    def sample(self, logits: Tensor, by: Sequence[DrawBy]) -> Tensor:
        """See octavo.ops.torch.sampling."""
        ...
