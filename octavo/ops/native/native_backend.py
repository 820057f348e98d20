"""The compiled core's operations over tensors. Shapes and meaning are those of the reference in octavo.ops.torch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from octavo.ops.host_memory import Arena, interleave
from octavo.ops.native.adapter_tables import NativeAdapterTable, NativeUpdate
from octavo.ops.native.binding import digest
from octavo.ops.native.description import (
    PANEL,
    RouterScores,
)
from octavo.ops.native.library import Library
from octavo.ops.native.native_elementwise import ACTIVATIONS, rows_of
from octavo.ops.native.native_products import NativeExperts, NativeHeads, NativeLinear
from octavo.ops.native.native_recurrent import NativeRecurrent
from octavo.ops.native.packed_weight import DTYPES, PackedWeight, pack, quantize
from octavo.ops.native.recorded_steps import RecordedSteps
from octavo.ops.paged_cache import KVCache
from octavo.ops.plans import (
    AttentionPlan,
    BlockTables,
    DecodeInputs,
    DrawBy,
    RecurrentPlan,
    SequenceRun,
    as_array,
    plan_attention,
    plan_recurrent,
)
from octavo.ops.prepared import PackedExperts, PackedLinear, RowAdapters
from octavo.ops.specs import (
    CacheSpec,
    Capabilities,
    Gate,
    LinearUpdate,
    RouterSpec,
)
from octavo.ops.stored_rows import PackedRows, StoredRows, of_floats
from octavo.ops.torch import TorchBackend
from octavo.ops.torch.torch_logits import TorchLogits
from octavo.ops.weight_kinds import WeightKind
from octavo.token_windows import Window

ADAPTER_CHUNK = 16 << 20
"""Bytes of a mapping that adapters share, which stays as long as any of them: not so many, for they come and go."""


class NativeBackend(NativeRecurrent, TorchLogits):
    """The operations of one of the compiled libraries. Logits are changed by the reference's, few rows as they are."""

    min_rows = 1

    def __init__(self, library: Library) -> None:
        self.device = torch.device("cpu")
        super().__init__(library, TorchBackend(self.device))
        self.name = f"native ({library.name})"
        row_dtypes = [torch.float32, torch.bfloat16] if self._multiplies_pairs else [torch.float32]
        self.capabilities = Capabilities(frozenset(WeightKind), frozenset(DTYPES), frozenset(row_dtypes))
        self._memory, self._adapter_memory = Arena(), Arena(ADAPTER_CHUNK)

    def set_threads(self, count: int) -> None:
        self.library.set_threads(count)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """PyTorch's few remaining operations run in the caller's thread.

        Its threads go on spinning for milliseconds after each, on the processors that the core's own threads need.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def free_memory(self) -> int:
        return self._reference.free_memory()

    runs_aside = False
    measures_memory = False

    @property
    def memory_sharers(self) -> int:
        return self.place.size

    def measure_peak(self, function: Callable[[], object]) -> int:
        raise NotImplementedError("a processor's memory is shared with all else that runs on it")

    def cache_budget(self, device_share: float) -> int:
        return self._reference.cache_budget(device_share)

    def make_cache(self, spec: CacheSpec, blocks: int, block_size: int, dtype: torch.dtype) -> KVCache:
        cache = self._reference.make_cache(spec, blocks, block_size, dtype)
        if self.library.nodes:  # any thread reads any of it
            for of_blocks in cache.block_bytes:
                interleave(of_blocks, self.library.nodes)
        return cache

    def block_bytes(self, spec: CacheSpec, block_size: int, dtype: torch.dtype) -> int:
        return self._reference.block_bytes(spec, block_size, dtype)

    def make_state(self, shape: tuple[int, ...]) -> Tensor:
        return self._reference.make_state(shape)

    def plan_attention(
        self,
        runs: Sequence[SequenceRun],
        block_table: Tensor,
        block_size: int,
        window: Window | None,
        num_tokens: int,
    ) -> AttentionPlan:
        return plan_attention(runs, block_table, block_size, window, num_tokens)

    def plan_recurrent(self, runs: Sequence[SequenceRun]) -> RecurrentPlan:
        return plan_recurrent(runs)

    def record_decode(
        self,
        function: Callable[[DecodeInputs], tuple[Tensor, ...]],
        tables: BlockTables,
        max_rows: int,
        adapters: bool = False,
    ) -> RecordedSteps:
        return RecordedSteps(self.library, function, tables, max_rows, adapters)

    @property
    def threads(self) -> int:
        return self.library.threads

    def linear(self, weight: Tensor, apart: bool = False) -> NativeLinear:
        return self.stored_linear([of_floats(weight)], apart=apart)

    def stored_linear(self, parts: Sequence[StoredRows], fine: bool = False, apart: bool = False) -> NativeLinear:
        alike = list[list[StoredRows]]()
        for part in parts:
            if alike and part.lies_like(alike[-1][0]):
                alike[-1].append(part)
            else:
                alike.append([part])
        memory = Arena(0) if apart or self.library.nodes else self._memory  # it is copied where it stays
        return NativeLinear([pack(self.library, rows, memory) for rows in alike], fine)

    def beside_threads(self, weight: PackedLinear, is_gated: bool = False) -> PackedLinear:
        if not self.library.nodes or not isinstance(weight, NativeLinear) or any(p.on_disk for p in weight.parts):
            return weight
        halves = 2 if is_gated and len(weight.parts) == 1 and not weight.outputs % (2 * PANEL) else 1
        return NativeLinear([part.placed(self._memory, halves) for part in weight.parts], weight.fine)

    def quantize(self, weight: Tensor, kind: WeightKind) -> StoredRows:
        return quantize(self.library, weight, kind)

    @property
    def packed_layout(self) -> str:
        state = self.library.path.stat()
        return f"{self.library.name} {digest()} {state.st_size} {state.st_mtime_ns}"

    @property
    def sum_order(self) -> str:
        return self.library.tiles.order

    def packed_rows(self, weight: PackedLinear) -> list[PackedRows]:
        if not isinstance(weight, NativeLinear):
            return []
        return [PackedRows(p.kind, p.outputs, p.width, p.data, weight.fine, p.order, p.on_disk) for p in weight.parts]

    def packed_linear(self, parts: Sequence[PackedRows]) -> NativeLinear:
        made = [PackedWeight(self.library, p.kind, p.outputs, p.width, p.data, p.order, p.on_disk) for p in parts]
        for part in made:
            if part.data.nbytes != self.library.core.packed_bytes(kind=part.kind, rows=part.outputs, inputs=part.width):
                raise ValueError(f"{part.data.nbytes} bytes are no weight of {part.outputs} by {part.width}")
            if part.order is not None and not 0 <= int(part.order.min()) <= int(part.order.max()) < part.width:
                raise ValueError(f"an order of columns that a weight {part.width} wide does not have")
        return NativeLinear(made, parts[0].fine)

    def adapter_table(self, slots: int, experts: int = 1) -> NativeAdapterTable:
        return NativeAdapterTable(self.library, slots, experts)

    def pack_update(self, update: LinearUpdate, dtype: torch.dtype) -> NativeUpdate:
        return NativeUpdate(self.library, update, dtype, self._adapter_memory)

    def gated_linear(
        self,
        gate_up: PackedLinear,
        x: Tensor,
        bias: Tensor | None,
        gate: Gate,
        adapters: RowAdapters | None = None,
    ) -> Tensor:
        parts = gate_up.parts if isinstance(gate_up, NativeLinear) else []
        fits = len(parts) == 1 and not parts[0].outputs % (2 * PANEL)
        if not fits or not gate.is_plain or gate.activation not in ACTIVATIONS:
            y = gate_up(x, bias)
            if adapters is not None:
                adapters.table.apply(x, y, adapters.slots)
            return self.gated(y, gate)
        (weight,), activation = parts, ACTIVATIONS[gate.activation]
        out = torch.empty(x.shape[0], weight.outputs // 2, dtype=x.dtype)
        if adapters is None:
            weight.multiply(x, out, 0, bias, activation)
            return out
        y = torch.empty(x.shape[0], weight.outputs)  # not rounded, as between the product and its gate
        weight.multiply(x, y, 0, bias)
        adapters.table.apply(x, y, adapters.slots)
        rows, columns, dtype = rows_of(out)
        self.library.core.gate_float32(
            rows=rows, x=y.data_ptr(), out=out.data_ptr(), columns=columns, activation=activation, dtype=dtype
        )
        return out

    def route(
        self, logits: Tensor, spec: RouterSpec, bias: Tensor | None = None, chosen: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        logits = self._together(logits)
        rows, num_experts = logits.shape
        weights = torch.empty(rows, spec.top_k)
        experts = torch.empty(rows, spec.top_k, dtype=torch.int64) if chosen is None else self._together(chosen)
        self.library.core.route(
            rows=rows,
            logits=logits.data_ptr(),
            num_experts=num_experts,
            scores=RouterScores[spec.scores.upper()],
            bias=None if bias is None else bias.data_ptr(),
            top_k=spec.top_k,
            num_groups=spec.num_groups,
            top_groups=spec.top_groups,
            group_best=spec.group_best,
            norm=spec.norm or 0.0,
            min_norm=spec.min_norm,
            eps=spec.eps,
            factor=spec.factor,
            noise=spec.noise or 0.0,
            chosen=chosen is not None,
            weights=weights.data_ptr(),
            experts=experts.data_ptr(),
        )
        return weights, experts

    def experts(self, weights: Sequence[PackedLinear]) -> PackedExperts:
        native = [w for w in weights if isinstance(w, NativeLinear)]
        if len(native) < len(weights) or len({tuple((p.kind, p.outputs) for p in w.parts) for w in native}) > 1:
            return self._reference.experts(weights)
        return NativeExperts(self.library, native)

    def head_linear(self, weight: Tensor) -> NativeHeads:
        return NativeHeads(NativeExperts(self.library, [self.linear(w.contiguous()) for w in weight]))

    def group_linear(self, weight: PackedLinear, groups: int) -> NativeHeads:
        assert isinstance(weight, NativeLinear)
        each = weight.outputs // groups
        if len(weight.parts) == 1 and not each % PANEL:
            by_group = [NativeLinear([weight.parts[0].rows_from(g * each, each)], weight.fine) for g in range(groups)]
        else:  # panels have outputs of two groups
            ids = torch.arange(weight.outputs)
            by_group = [self.linear(w.contiguous()) for w in weight.rows(ids, torch.float32).chunk(groups)]
        return NativeHeads(NativeExperts(self.library, by_group))

    def weighted_sum(self, y: Tensor, weights: Tensor | None, terms: int) -> Tensor:
        weights = None if weights is None else weights.float().contiguous()
        rows = len(y) // terms
        out = torch.empty(rows, y.shape[1], dtype=y.dtype)
        self.library.core.weighted_sum(
            rows=rows,
            y=y.data_ptr(),
            weights=None if weights is None else weights.data_ptr(),
            terms=terms,
            out=out.data_ptr(),
            columns=y.shape[1],
            dtype=DTYPES[y.dtype],
        )
        return out

    def sample(self, logits: Tensor, by: Sequence[DrawBy]) -> Tensor:
        logits = self._together(logits)
        rows, vocab_size = logits.shape
        draws = as_array(by) if any(b.temperature for b in by) else None
        tokens = torch.empty(rows, dtype=torch.int64)
        self.library.core.sample(
            rows=rows,
            logits=logits.data_ptr(),
            stride=vocab_size,
            vocab_size=vocab_size,
            draws=None if draws is None else draws.ctypes.data,
            tokens=tokens.data_ptr(),
        )
        return tokens
