"""The operations in PyTorch: they run on any device, and say what each operation means."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from octavo.ops import host_memory
from octavo.ops.paged_cache import KVCache, block_bytes, make_cache
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
    plan_attention,
    plan_recurrent,
)
from octavo.ops.prepared import PackedExperts, PackedHeads, PackedLinear, RecordedDecode, RowAdapters
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
from octavo.ops.streams import StreamSpec
from octavo.ops.torch import (
    delta_rule,
    experts,
    full_attention,
    head_scan,
    key_lists,
    paged_attention,
    rope,
    routing,
    sampling,
    selective_scan,
    torch_norms,
    torch_streams,
)
from octavo.ops.torch.activations import ACTIVATIONS, gated, xielu
from octavo.ops.torch.adapter_products import TorchAdapterTable, TorchUpdate
from octavo.ops.torch.alternating import TorchAlternating
from octavo.ops.torch.distributed_ranks import DistributedRanks
from octavo.ops.torch.products import TorchGroups, TorchHeads, TorchLinear, table_rows
from octavo.ops.torch.torch_logits import TorchLogits
from octavo.ops.torch.torch_memory import TorchMemory
from octavo.ops.torch.torch_pooled import TorchPooledAttention
from octavo.ops.weight_kinds import WeightKind
from octavo.token_windows import Window


class TorchBackend(TorchPooledAttention, TorchAlternating, TorchLogits, TorchMemory, DistributedRanks):
    """The reference.

    Args:
        device: where tensors are.
    """

    name = "torch"
    min_rows = 8

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        dtypes = {torch.float32}
        if device.type != "cpu":
            dtypes |= {torch.bfloat16, torch.float16}
        elif _has_fast_bfloat16():
            dtypes.add(torch.bfloat16)
        self.capabilities = Capabilities(
            frozenset(), frozenset(dtypes), frozenset([torch.float32, torch.bfloat16, torch.float16])
        )
        self._arena = host_memory.Arena()

    def set_threads(self, count: int) -> None:
        torch.set_num_threads(count)

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    def make_cache(self, spec: CacheSpec, blocks: int, block_size: int, dtype: torch.dtype) -> KVCache:
        return make_cache(spec, blocks, block_size, dtype, self._zeros)

    def block_bytes(self, spec: CacheSpec, block_size: int, dtype: torch.dtype) -> int:
        return block_bytes(spec, block_size, dtype)

    def make_state(self, shape: tuple[int, ...]) -> Tensor:
        return self._zeros(shape, torch.float32)

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self.device.type == "cpu":
            return self._arena.zeros(shape, dtype)
        return torch.zeros(shape, dtype=dtype, device=self.device)

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
    ) -> RecordedDecode | None:
        return None

    def linear(self, weight: Tensor, apart: bool = False) -> PackedLinear:
        return TorchLinear(weight)

    def stored_linear(self, parts: Sequence[StoredRows], fine: bool = False, apart: bool = False) -> PackedLinear:
        raise NotImplementedError("the reference computes with floats")

    def quantize(self, weight: Tensor, kind: WeightKind) -> StoredRows:
        raise NotImplementedError("the reference computes with floats")

    packed_layout = ""
    sum_order = ""

    def packed_rows(self, weight: PackedLinear) -> list[PackedRows]:
        return []

    def packed_linear(self, parts: Sequence[PackedRows]) -> PackedLinear:
        raise NotImplementedError("the reference lays nothing out")

    def beside_threads(self, weight: PackedLinear, is_gated: bool = False) -> PackedLinear:
        return weight

    def table_rows(self, table: Tensor, ids: Tensor, first: int | None = None) -> Tensor:
        return table_rows(table, ids, first)

    def finite(self, x: Tensor) -> Tensor:
        return torch.isfinite(x.sum())

    def floats(self, x: Tensor) -> Tensor:
        return x.float()

    def add(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        return x + (y if scale == 1.0 else y * scale)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return torch_norms.rms_norm(x, weight, eps)

    def rms_norm_gated(self, x: Tensor, gate: Tensor, weight: Tensor, eps: float, activation: str) -> Tensor:
        return torch_norms.rms_norm_gated(x, gate, weight, eps, activation)

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        return torch_norms.layer_norm(x, weight, bias, eps)

    def activate(self, x: Tensor, activation: str) -> Tensor:
        return ACTIVATIONS[activation](x.float()).to(x.dtype)

    def scale(self, x: Tensor, factor: float) -> Tensor:
        return x * torch.tensor(factor, dtype=x.dtype, device=x.device)

    def scale_rows(self, x: Tensor, factors: Tensor) -> Tensor:
        return (x * factors.view(-1, *[1] * (x.dim() - 1))).to(x.dtype)

    def position_factors(self, positions: Tensor, beta: float, period: float, offset: int) -> Tensor:
        return rope.position_factors(positions, beta, period, offset)

    def multiply(self, x: Tensor, y: Tensor, activation: str | None = None) -> Tensor:
        factor = y.float() if activation is None else ACTIVATIONS[activation](y.float())
        return (x * factor).to(x.dtype)

    def side_by_side(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y], dim=1)

    def scale_columns(self, x: Tensor, factors: Tensor) -> Tensor:
        return (x * factors).to(x.dtype)

    def xielu(self, x: Tensor, shape: Tensor) -> Tensor:
        return xielu(x.float(), shape).to(x.dtype)

    def add_gated(self, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        weight = 1.0 / (torch.exp(-gate.float()) + 1.0)
        return x + (y * weight).to(x.dtype)

    def gated(self, gate_up: Tensor, gate: Gate) -> Tensor:
        return gated(gate_up, gate)

    def gated_linear(
        self,
        gate_up: PackedLinear,
        x: Tensor,
        bias: Tensor | None,
        gate: Gate,
        adapters: RowAdapters | None = None,
    ) -> Tensor:
        y = gate_up(x, bias)
        if adapters is not None:
            adapters.table.apply(x, y, adapters.slots)
        return self.gated(y, gate)

    def adapter_table(self, slots: int, experts: int = 1) -> TorchAdapterTable:
        return TorchAdapterTable(slots, experts)

    def pack_update(self, update: LinearUpdate, dtype: torch.dtype) -> TorchUpdate:
        return TorchUpdate(update, dtype)

    def route(
        self, logits: Tensor, spec: RouterSpec, bias: Tensor | None = None, chosen: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return routing.route(logits, spec, bias, chosen)

    def angles(self, table: RotaryTable, positions: Tensor, lengths: Tensor, offset: int = 0) -> tuple[Tensor, Tensor]:
        return rope.angles(table, positions, lengths, offset)

    def attend(
        self,
        qkv: Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        spec: AttentionSpec,
        angles: tuple[Tensor, Tensor] | None,
        query_factors: Tensor | None = None,
    ) -> Tensor:
        rows = qkv.shape[0]
        end = qkv.shape[1] - (spec.num_kv_heads * cache.dims[1] if spec.stores else 0)
        heads = paged_attention.transform_heads(
            qkv[:, :end].reshape(rows, -1, spec.head_dim),
            qkv[:, end:].reshape(rows, spec.num_kv_heads if spec.stores else 0, cache.dims[1]),
            spec,
            self.all_gather,
        )
        query = paged_attention.rotate_store(*heads, angles, cache, plan, spec)
        if spec.query_weights is not None:
            query = query * spec.query_weights
        if query_factors is not None:
            query = self.scale_rows(query, query_factors[: plan.num_tokens])
        return self.attend_stored(query, cache, plan, spec, rows, qkv.dtype).flatten(1)

    def join_rope(self, x: Tensor, y: Tensor, angles: tuple[Tensor, Tensor], interleaved: bool) -> Tensor:
        return torch.cat([x.float(), rope.rotate(y, *angles, interleaved)], dim=-1)

    def store(self, keys: Tensor, values: Tensor | None, cache: KVCache, plan: AttentionPlan) -> None:
        paged_attention.store(cache.keys, keys, plan)
        if values is not None:
            paged_attention.store(cache.values, values, plan)

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
        out = torch.zeros(rows, spec.num_heads, cache.dims[1], dtype=dtype, device=query.device)
        paged_attention.attend(query, cache, plan, spec, out[: plan.num_tokens], key_lists)
        return out

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
        return key_lists.select_keys(query, weights, cache, plan, top_k, rows, ratio)

    def full_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        runs: Sequence[FullRun],
        bias: DistanceBias | PositionScores | None = None,
    ) -> Tensor:
        return full_attention.full_attention(query, key, value, scale, runs, bias)

    def experts(self, weights: Sequence[PackedLinear]) -> PackedExperts:
        return experts.EachExpert(weights)

    def head_linear(self, weight: Tensor) -> PackedHeads:
        return TorchHeads(weight)

    def group_linear(self, weight: PackedLinear, groups: int) -> PackedHeads:
        assert isinstance(weight, TorchLinear)
        return TorchGroups(weight.weight, groups)

    def stream_weights(self, products: Tensor, spec: StreamSpec) -> tuple[Tensor, Tensor]:
        return torch_streams.stream_weights(products, spec)

    def mix_streams(self, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        return torch_streams.mix_streams(x, y, weights)

    def weighted_sum(self, y: Tensor, weights: Tensor | None, terms: int) -> Tensor:
        return experts.weighted_sum(y, weights, terms)

    def convolve(
        self,
        x: Tensor,
        history: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: str | None,
        plan: RecurrentPlan,
    ) -> Tensor:
        return selective_scan.convolve(x, history, weight, bias, activation, plan)

    def scan(self, inputs: ScanInput, state: Tensor, plan: RecurrentPlan) -> Tensor:
        return selective_scan.scan(inputs, state, plan)

    def scan_heads(self, inputs: HeadScanInput, state: Tensor, plan: RecurrentPlan) -> Tensor:
        return head_scan.scan_heads(inputs, state, plan)

    def gated_recurrence(self, inputs: GatedRecurrenceInput, state: Tensor, plan: RecurrentPlan) -> Tensor:
        return head_scan.gated_recurrence(inputs, state, plan)

    def delta_rule(self, inputs: DeltaInput, state: Tensor, plan: RecurrentPlan, spec: DeltaSpec) -> Tensor:
        return delta_rule.delta_rule(inputs, state, plan, spec)

    def sample(self, logits: Tensor, by: Sequence[DrawBy]) -> Tensor:
        return sampling.sample(logits, by)


def _has_fast_bfloat16() -> bool:
    """Whether PyTorch multiplies bfloat16 natively on this CPU (AVX-512 BF16, AMX, or Arm's BF16)."""
    bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if bf16 is None or amx is None:
        return False
    if bf16() or amx():
        return True
    try:
        return "bf16" in Path("/proc/cpuinfo").read_text().split("Features", 1)[1].split("\n", 1)[0]
    except (OSError, IndexError):
        return False
