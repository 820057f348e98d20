"""The compiled core's operations over tensors. Shapes and meaning are those of the reference in octavo.ops.torch."""

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import Tensor

from octavo.ops.backend import PackedExperts, PackedLinear, RowAdapters
from octavo.ops.host_memory import Arena
from octavo.ops.native.adapter_tables import NativeAdapterTable, NativeUpdate
from octavo.ops.native.description import (
    MAX_HEAD_DIM,
    MAX_STATE,
    MAX_TAPS,
    MIN_TAPS,
    PAIRED_TOKENS,
    PANEL,
    Activation,
    DType,
)
from octavo.ops.native.library import Library
from octavo.ops.native.native_products import NativeExperts, NativeHeads, NativeLinear
from octavo.ops.native.packed_weight import DTYPES, pack, quantize
from octavo.ops.native.recorded_steps import RecordedSteps
from octavo.ops.paged_cache import KVCache
from octavo.ops.plans import (
    AttentionPlan,
    BlockTables,
    DecodeInputs,
    DrawBy,
    FullRun,
    RecurrentPlan,
    ScanInput,
    SequenceRun,
    as_array,
    plan_attention,
    plan_recurrent,
)
from octavo.ops.specs import (
    AttentionSpec,
    CacheSpec,
    Capabilities,
    Gate,
    HeadClip,
    LinearUpdate,
    NormSpec,
    RotaryTable,
    RouterSpec,
)
from octavo.ops.stored_rows import StoredRows, of_floats
from octavo.ops.torch import TorchBackend
from octavo.ops.weight_kinds import WeightKind

ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu": Activation.GELU,
    "quick_gelu": Activation.QUICK_GELU,
    "relu": Activation.RELU,
    "relu2": Activation.RELU_SQUARED,
}
CACHE_DTYPES = DTYPES | {torch.int8: DType.INT8}
ADAPTER_CHUNK = 16 << 20
"""Bytes of a mapping that adapters share, which stays as long as any of them: not so many, for they come and go."""
NEVER = (1 << 63) - 1
"""A length that no sequence has."""


class NativeBackend:
    """The operations of one of the compiled libraries."""

    min_rows = 1

    def __init__(self, library: Library) -> None:
        self.device = torch.device("cpu")
        self._reference = TorchBackend(self.device)
        """Computes what the library lacks."""
        self.library = library
        self.name = f"native ({library.name})"
        self._multiplies_pairs = library.name in ("avx512_bf16", "amx")
        """Whether the processor multiplies pairs of bfloat16 faster than float32."""
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

    def cache_budget(self, device_share: float) -> int:
        return self._reference.cache_budget(device_share)

    def make_cache(self, spec: CacheSpec, blocks: int, block_size: int, dtype: torch.dtype) -> KVCache:
        return self._reference.make_cache(spec, blocks, block_size, dtype)

    def block_bytes(self, spec: CacheSpec, block_size: int, dtype: torch.dtype) -> int:
        return self._reference.block_bytes(spec, block_size, dtype)

    def make_state(self, shape: tuple[int, ...]) -> Tensor:
        return self._reference.make_state(shape)

    def plan_attention(
        self,
        runs: Sequence[SequenceRun],
        block_table: Tensor,
        block_size: int,
        window: int | None,
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

    def linear(self, weight: Tensor) -> NativeLinear:
        return self.stored_linear([of_floats(weight)])

    def stored_linear(self, parts: Sequence[StoredRows], fine: bool = False) -> NativeLinear:
        by_kind = [list(alike) for _, alike in groupby(parts, key=lambda part: part.kind)]
        return NativeLinear([pack(self.library, alike, self._memory) for alike in by_kind], fine)

    def quantize(self, weight: Tensor, kind: WeightKind) -> StoredRows:
        return quantize(self.library, weight, kind)

    def table_rows(self, table: Tensor, ids: Tensor) -> Tensor:
        out = torch.empty(len(ids), table.shape[1], dtype=table.dtype)
        ids = ids.contiguous()
        self.library.core.table_rows(
            rows=len(ids),
            ids=ids.data_ptr(),
            table=table.data_ptr(),
            row_bytes=table.shape[1] * table.element_size(),
            out=out.data_ptr(),
        )
        return out

    def _together(self, x: Tensor) -> Tensor:
        """The tensor with its rows one after the other."""
        if x.is_contiguous():
            return x
        if not len(x) or not x[0].is_contiguous():
            return x.contiguous()
        out = torch.empty(x.shape, dtype=x.dtype)
        stride, row = x.stride(0) * x.element_size(), x[0].numel() * x.element_size()
        self.library.core.copy_rows(rows=len(x), x=x.data_ptr(), stride_bytes=stride, row_bytes=row, out=out.data_ptr())
        return out

    def finite(self, x: Tensor) -> bool:
        x = self._together(x)
        rows, columns, dtype = _rows(x)
        found = ctypes.c_float()
        self.library.core.non_finite(
            rows=rows, x=x.data_ptr(), out=ctypes.addressof(found), columns=columns, dtype=dtype
        )
        return found.value == 0.0

    def floats(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return x
        x = self._together(x)
        rows, columns, dtype = _rows(x)
        out = torch.empty(x.shape)
        self.library.core.to_float32(rows=rows, x=x.data_ptr(), out=out.data_ptr(), columns=columns, dtype=dtype)
        return out

    def add(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        x, y = self._together(x), self._together(y)
        rows, columns, dtype = _rows(x)
        out = torch.empty_like(x)
        self.library.core.add(
            rows=rows, x=x.data_ptr(), y=y.data_ptr(), out=out.data_ptr(), columns=columns, scale=scale, dtype=dtype
        )
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = self._together(x)
        rows, columns, dtype = _rows(x)
        out, w = torch.empty_like(x), self._together(weight)
        self.library.core.rms_norm(
            rows=rows, x=x.data_ptr(), weight=w.data_ptr(), out=out.data_ptr(), columns=columns, eps=eps, dtype=dtype
        )
        return out

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        x = self._together(x)
        rows, columns, dtype = _rows(x)
        out = torch.empty_like(x)
        self.library.core.layer_norm(
            rows=rows,
            x=x.data_ptr(),
            weight=None if weight is None else weight.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            out=out.data_ptr(),
            columns=columns,
            eps=eps,
            dtype=dtype,
        )
        return out

    def activate(self, x: Tensor, activation: str) -> Tensor:
        if activation not in ACTIVATIONS:
            return self._reference.activate(x, activation)
        x = self._together(x)
        return self._activate(x, torch.empty_like(x), activation, gated=False)

    def scale(self, x: Tensor, factor: float) -> Tensor:
        x = self._together(x)
        rows, columns, dtype = _rows(x)
        out = torch.empty_like(x)
        self.library.core.scale(
            rows=rows, x=x.data_ptr(), out=out.data_ptr(), columns=columns, factor=factor, dtype=dtype
        )
        return out

    def add_gated(self, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        x, y, gate = self._together(x), self._together(y), self._together(gate)
        rows, columns, dtype = _rows(x)
        out = torch.empty_like(x)
        self.library.core.add_gated(
            rows=rows,
            x=x.data_ptr(),
            y=y.data_ptr(),
            gate=gate.data_ptr(),
            out=out.data_ptr(),
            columns=columns,
            dtype=dtype,
        )
        return out

    def gated(self, gate_up: Tensor, gate: Gate) -> Tensor:
        if gate.activation is not None and gate.activation not in ACTIVATIONS:
            return self._reference.gated(gate_up, gate)
        gate_up = self._together(gate_up)
        out = torch.empty(gate_up.shape[0], gate_up.shape[1] // 2, dtype=gate_up.dtype)
        if gate.activation is not None and gate.is_plain:
            return self._activate(gate_up, out, gate.activation, gated=True)
        rows, columns, dtype = _rows(out)
        self.library.core.gate(
            rows=rows,
            x=gate_up.data_ptr(),
            out=out.data_ptr(),
            columns=columns,
            activation=Activation.NONE if gate.activation is None else ACTIVATIONS[gate.activation],
            threshold=-math.inf if gate.threshold is None else gate.threshold,
            limit=math.inf if gate.limit is None else gate.limit,
            up_offset=gate.up_offset,
            dtype=dtype,
        )
        return out

    def _activate(self, x: Tensor, out: Tensor, activation: str, gated: bool) -> Tensor:
        rows, columns, dtype = _rows(out)
        self.library.core.activate(
            rows=rows,
            x=x.data_ptr(),
            out=out.data_ptr(),
            columns=columns,
            activation=ACTIVATIONS[activation],
            gated=gated,
            dtype=dtype,
        )
        return out

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
        rows, columns, dtype = _rows(out)
        self.library.core.gate_float32(
            rows=rows, x=y.data_ptr(), out=out.data_ptr(), columns=columns, activation=activation, dtype=dtype
        )
        return out

    def route(self, logits: Tensor, spec: RouterSpec) -> tuple[Tensor, Tensor]:
        logits = self._together(logits)
        rows, num_experts = logits.shape
        weights, experts = torch.empty(rows, spec.top_k), torch.empty(rows, spec.top_k, dtype=torch.int64)
        self.library.core.route(
            rows=rows,
            logits=logits.data_ptr(),
            num_experts=num_experts,
            top_k=spec.top_k,
            num_groups=spec.num_groups,
            top_groups=spec.top_groups,
            norm=spec.norm or 0.0,
            eps=spec.eps,
            factor=spec.factor,
            noise=spec.noise or 0.0,
            weights=weights.data_ptr(),
            experts=experts.data_ptr(),
        )
        return weights, experts

    def angles(self, table: RotaryTable, positions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        rows, pairs = len(positions), table.frequencies.shape[1]
        cos, sin = torch.empty(rows, pairs), torch.empty(rows, pairs)
        self.library.core.rope_angles(
            rows=rows,
            positions=positions.data_ptr(),
            lengths=lengths.data_ptr(),
            frequencies=table.frequencies.data_ptr(),
            pairs=pairs,
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            scale=table.scales[0],
            long_scale=table.scales[-1],
            long_threshold=NEVER if table.long_rope_threshold is None else table.long_rope_threshold,
        )
        return cos, sin

    def attend(
        self,
        qkv: Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        spec: AttentionSpec,
        angles: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        if max(cache.dims) > MAX_HEAD_DIM:
            return self._reference.attend(qkv, cache, plan, spec, angles)
        rows = qkv.shape[0]
        heads = self._transform_heads(self._together(qkv), spec)
        query = torch.empty(plan.num_tokens, spec.num_heads, spec.head_dim)
        paired = self._can_pair(cache)
        self.library.core.rope_store(
            rows=plan.num_tokens,
            qkv=heads.data_ptr(),
            cos=angles[0].data_ptr() if angles else None,
            sin=angles[1].data_ptr() if angles else None,
            query=query.data_ptr(),
            key_cache=cache.keys.data_ptr(),
            value_cache=cache.values.data_ptr(),
            slot_mapping=plan.slot_mapping.data_ptr(),
            block_size=plan.block_size,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            pairs=angles[0].shape[1] if angles else 0,
            interleaved=spec.interleaved,
            dtype=DTYPES[qkv.dtype],
            cache_dtype=CACHE_DTYPES[cache.keys.dtype],
            paired=paired,
        )
        return self._attend(query, cache, plan, spec, rows, qkv.dtype, paired).flatten(1)

    def _transform_heads(self, qkv: Tensor, spec: AttentionSpec) -> Tensor:
        """Queries, keys and values after the spec's transforms, in place."""
        for transform in spec.transforms:
            if isinstance(transform, HeadClip):
                rows, columns, dtype = _rows(qkv)
                self.library.core.clip(rows=rows, x=qkv.data_ptr(), columns=columns, limit=transform.limit, dtype=dtype)
                continue
            first = 0
            for norm, heads in ((transform.query, spec.num_heads), (transform.key, spec.num_kv_heads)):
                self._norm_heads(qkv, first, heads, spec.head_dim, norm, transform.full_width)
                first += heads * spec.head_dim
        return qkv

    def _norm_heads(self, qkv: Tensor, first: int, heads: int, head_dim: int, norm: NormSpec, full_width: bool) -> None:
        """Norm `heads` heads that begin with column `first`, in place."""
        weight = norm.weight
        self.library.core.head_norm(
            rows=qkv.shape[0],
            x=qkv.data_ptr() + first * qkv.element_size(),
            stride=qkv.stride(0),
            heads=1 if full_width else heads,
            columns=heads * head_dim if full_width else head_dim,
            weight=None if weight is None else weight.data_ptr(),
            weight_stride=0 if weight is None or weight.dim() == 1 else weight.stride(0),
            bias=None if norm.bias is None else norm.bias.data_ptr(),
            bias_stride=0 if norm.bias is None or norm.bias.dim() == 1 else norm.bias.stride(0),
            eps=norm.eps,
            is_rms=norm.kind == "rms",
            dtype=DTYPES[qkv.dtype],
        )

    def _can_pair(self, cache: KVCache) -> bool:
        """Whether a cache's tokens lie as the processor's product of pairs of bfloat16 reads them."""
        if not self._multiplies_pairs or cache.keys.dtype != torch.bfloat16 or cache.keys.shape[2] % PAIRED_TOKENS:
            return False
        return not any(dim % PAIRED_TOKENS for dim in cache.dims)

    def join_rope(self, x: Tensor, y: Tensor, angles: tuple[Tensor, Tensor], interleaved: bool) -> Tensor:
        rows, num_heads, columns = x.shape
        assert x.stride(2) == y.stride(2) == 1
        out = torch.empty(rows, num_heads, columns + y.shape[2])
        self.library.core.join_rope(
            rows=rows,
            x=x.data_ptr(),
            x_dtype=DTYPES[x.dtype],
            x_stride=x.stride(0),
            x_head_stride=x.stride(1),
            columns=columns,
            y=y.data_ptr(),
            y_dtype=DTYPES[y.dtype],
            y_stride=y.stride(0),
            y_head_stride=y.stride(1),
            cos=angles[0].data_ptr(),
            sin=angles[1].data_ptr(),
            out=out.data_ptr(),
            num_heads=num_heads,
            rope_dim=y.shape[2],
            pairs=angles[0].shape[1],
            interleaved=interleaved,
        )
        return out

    def store(self, keys: Tensor, values: Tensor | None, cache: KVCache, plan: AttentionPlan) -> None:
        for rows, target in ((keys, cache.keys), (values, cache.values)):
            if rows is None:
                continue
            rows = self._together(self.floats(rows))
            tokens, num_heads, dim = rows.shape
            self.library.core.store_rows(
                rows=tokens,
                x=rows.data_ptr(),
                cache=target.data_ptr(),
                slot_mapping=plan.slot_mapping.data_ptr(),
                block_size=plan.block_size,
                num_heads=num_heads,
                head_dim=dim,
                cache_dtype=CACHE_DTYPES[target.dtype],
            )

    def attend_stored(
        self, query: Tensor, cache: KVCache, plan: AttentionPlan, spec: AttentionSpec, rows: int, dtype: torch.dtype
    ) -> Tensor:
        if max(cache.dims) > MAX_HEAD_DIM:
            return self._reference.attend_stored(query, cache, plan, spec, rows, dtype)
        return self._attend(self._together(query), cache, plan, spec, rows, dtype, paired=False)

    def _attend(
        self,
        query: Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        spec: AttentionSpec,
        rows: int,
        dtype: torch.dtype,
        paired: bool,
    ) -> Tensor:
        key_dim, value_dim = cache.dims
        make = torch.empty if rows == plan.num_tokens and not plan.has_gaps else torch.zeros
        out = make(rows, spec.num_heads, value_dim, dtype=dtype)
        sparse = spec.sparse
        self.library.core.attention(
            num_runs=plan.run_table.shape[0],
            query=query.data_ptr(),
            key_cache=cache.keys.data_ptr(),
            value_cache=cache.values.data_ptr(),
            out=out.data_ptr(),
            runs=plan.run_table.data_ptr(),
            block_table=plan.block_table.data_ptr(),
            table_width=plan.block_table.shape[1],
            block_size=plan.block_size,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            scale=spec.scale,
            softcap=spec.softcap or 0.0,
            alibi_slopes=None if spec.alibi_slopes is None else spec.alibi_slopes.data_ptr(),
            window=plan.window or 0,
            cache_dtype=CACHE_DTYPES[cache.keys.dtype],
            out_dtype=DTYPES[dtype],
            paired=paired,
            sparse_block=sparse.block_size if sparse else 0,
            local_blocks=sparse.local_blocks if sparse else 0,
            sparse_stride=sparse.stride if sparse else 0,
            head_step=sparse.head_step if sparse else 0,
        )
        return out

    def full_attention(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, runs: Sequence[FullRun]
    ) -> Tensor:
        num_heads, key_dim = query.shape[1:]
        num_kv_heads, value_dim = value.shape[1:]
        if max(key_dim, value_dim) > MAX_HEAD_DIM:
            return self._reference.full_attention(query, key, value, scale, runs)
        table = torch.tensor([run for run in runs if run[1] and run[3]], dtype=torch.int64).view(-1, 4)
        make = torch.empty if int(table[:, 1].sum()) == len(query) else torch.zeros
        out = make(len(query), num_heads, value_dim, dtype=query.dtype)
        query, key, value = (_heads_together(x) for x in (query, key, value))
        self.library.core.full_attention(
            num_runs=len(table),
            query=query.data_ptr(),
            query_stride=query.stride(0),
            key=key.data_ptr(),
            key_stride=key.stride(0),
            value=value.data_ptr(),
            value_stride=value.stride(0),
            out=out.data_ptr(),
            runs=table.data_ptr(),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            scale=scale,
            dtype=DTYPES[query.dtype],
        )
        return out

    def experts(self, weights: Sequence[PackedLinear]) -> PackedExperts:
        native = [w for w in weights if isinstance(w, NativeLinear)]
        if len(native) < len(weights) or len({tuple((p.kind, p.outputs) for p in w.parts) for w in native}) > 1:
            return self._reference.experts(weights)
        return NativeExperts(self.library, native)

    def head_linear(self, weight: Tensor) -> NativeHeads:
        return NativeHeads(NativeExperts(self.library, [self.linear(w.contiguous()) for w in weight]))

    def weighted_sum(self, y: Tensor, weights: Tensor) -> Tensor:
        weights = weights.float().contiguous()
        rows, terms = weights.shape
        out = torch.empty(rows, y.shape[1], dtype=y.dtype)
        self.library.core.weighted_sum(
            rows=rows,
            y=y.data_ptr(),
            weights=weights.data_ptr(),
            terms=terms,
            out=out.data_ptr(),
            columns=y.shape[1],
            dtype=DTYPES[y.dtype],
        )
        return out

    def convolve(
        self, x: Tensor, history: Tensor, weight: Tensor, bias: Tensor | None, activation: str, plan: RecurrentPlan
    ) -> Tensor:
        channels, taps = weight.shape
        if not MIN_TAPS <= taps <= MAX_TAPS or activation not in ACTIVATIONS:
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
            activation=ACTIVATIONS[activation],
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


def _heads_together(x: Tensor) -> Tensor:
    """`[rows, heads, dim]` with the heads of a row side by side."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def _rows(x: Tensor) -> tuple[int, int, DType]:
    """How many rows a tensor has by its last dimension, how many columns, and of what."""
    columns = x.shape[-1]
    return x.numel() // columns, columns, DTYPES[x.dtype]
