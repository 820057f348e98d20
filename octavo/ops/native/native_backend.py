"""The compiled core's operations over tensors. Shapes and meaning are those of the reference in octavo.ops.torch."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from itertools import groupby

import torch
from torch import Tensor

from octavo.ops.backend import PackedExperts, PackedLinear
from octavo.ops.host_memory import Arena
from octavo.ops.native.library import Library
from octavo.ops.native.packed_weight import PANEL, TYPES, PackedWeight, pack, quantize
from octavo.ops.native.recorded_steps import RecordedSteps
from octavo.ops.paged_cache import KVCache
from octavo.ops.plans import (
    AttentionPlan,
    BlockTables,
    DecodeInputs,
    DrawBy,
    RecurrentPlan,
    ScanInput,
    SequenceRun,
    as_array,
    plan_attention,
    plan_recurrent,
)
from octavo.ops.specs import AttentionSpec, CacheSpec, Capabilities, NormSpec, RotaryTable
from octavo.ops.stored_rows import KINDS, StoredRows, of_floats
from octavo.ops.torch import TorchBackend
from octavo.ops.torch.paged_attention import transform_heads

ACTIVATIONS = {
    "silu": 0,
    "swish": 0,
    "gelu_new": 1,
    "gelu_fast": 1,
    "gelu_pytorch_tanh": 1,
    "gelu": 2,
    "quick_gelu": 3,
    "relu": 4,
    "relu2": 5,
}
CACHE_TYPES = TYPES | {torch.int8: 3}
SCAN_WIDTHS = frozenset([*range(1, 65), *range(113, 129)])
"""Values of state a channel that the scan is compiled for."""
CONVOLUTION_TAPS = frozenset([2, 3, 4])
MAX_HEAD_DIM = 1024
NEVER = (1 << 63) - 1
"""A length that no sequence has."""
PAIRED_TOKENS = 16
"""Tokens that lie together in a paired cache; heads are of a multiple of as many values."""


class NativeLinear:
    """A weight in packed parts, whose outputs lie one after the other."""

    def __init__(self, parts: Sequence[PackedWeight], fine: bool = False) -> None:
        self.parts, self.fine = parts, fine
        self.outputs = sum(p.outputs for p in parts)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        out = torch.empty(x.shape[0], self.outputs, dtype=x.dtype)
        first = 0
        for part in self.parts:
            part.multiply(x, out, first, bias, fine=self.fine)
            first += part.outputs
        return out

    def rows(self, ids: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        (table,) = self.parts  # a token table has no segments
        return table.rows(ids, dtype, scale)


class NativeExperts:
    """Packed weights of experts that are alike in everything but their numbers."""

    def __init__(self, library: Library, experts: Sequence[NativeLinear]) -> None:
        self.library, self.experts = library, experts
        self.outputs = experts[0].outputs
        by_part = zip(*(e.parts for e in experts), strict=True)
        self._tables = [torch.tensor([p.data.data_ptr() for p in parts]) for parts in by_part]

    def __call__(self, x: Tensor, chosen: Tensor) -> Tensor:
        if x.stride(1) != 1:
            x = x.contiguous()
        chosen = chosen.contiguous()
        choices = chosen.numel()
        out = torch.empty(choices, self.outputs, dtype=x.dtype)
        first = 0
        for part, table in zip(self.experts[0].parts, self._tables, strict=True):
            self.library.run(
                "expert_linear",
                choices,
                x.data_ptr(),
                TYPES[x.dtype],
                x.stride(0),
                part.width,
                part.kind,
                choices // max(1, x.shape[0]),
                chosen.data_ptr(),
                len(self.experts),
                table.data_ptr(),
                part.outputs,
                out.data_ptr() + first * out.element_size(),
                TYPES[out.dtype],
                out.stride(0),
            )
            first += part.outputs
        return out


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
        self.capabilities = Capabilities(frozenset(KINDS), frozenset(TYPES), frozenset(row_dtypes))
        self._run = library.run
        self._memory = Arena()

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
        self, function: Callable[[DecodeInputs], tuple[Tensor, ...]], tables: BlockTables, max_rows: int
    ) -> RecordedSteps:
        return RecordedSteps(self.library, function, tables, max_rows)

    @property
    def threads(self) -> int:
        return self.library.threads

    def linear(self, weight: Tensor) -> NativeLinear:
        return self.stored_linear([of_floats(weight)])

    def stored_linear(self, parts: Sequence[StoredRows], fine: bool = False) -> NativeLinear:
        by_kind = [list(alike) for _, alike in groupby(parts, key=lambda part: part.kind)]
        return NativeLinear([pack(self.library, alike, self._memory) for alike in by_kind], fine)

    def quantize(self, weight: Tensor, kind: int) -> StoredRows:
        return quantize(self.library, weight, kind)

    def table_rows(self, table: Tensor, ids: Tensor) -> Tensor:
        out = torch.empty(len(ids), table.shape[1], dtype=table.dtype)
        ids = ids.contiguous()
        self._run(
            "table_rows",
            len(ids),
            ids.data_ptr(),
            table.data_ptr(),
            table.shape[1] * table.element_size(),
            out.data_ptr(),
        )
        return out

    def _together(self, x: Tensor) -> Tensor:
        """The tensor with its rows one after the other."""
        if x.is_contiguous():
            return x
        if not len(x) or not x[0].is_contiguous():
            return x.contiguous()
        out = torch.empty(x.shape, dtype=x.dtype)
        size = x.element_size()
        self._run("copy_rows", len(x), x.data_ptr(), x.stride(0) * size, x[0].numel() * size, out.data_ptr())
        return out

    def _by_rows(self, operation: str, operands: Sequence[Tensor | None], *settings: float) -> Tensor:
        """An operation that makes a row of each row of the first operand, by its last dimension."""
        held = [None if t is None else self._together(t) for t in operands]
        x = held[0]
        assert x is not None
        out, width = torch.empty_like(x), x.shape[-1]
        addresses = (None if t is None else t.data_ptr() for t in (*held, out))
        self._run(operation, x.numel() // width, *addresses, width, *settings, TYPES[x.dtype])
        return out

    def finite(self, x: Tensor) -> bool:
        x = self._together(x)
        non_finite = ctypes.c_float()
        self._run("poison", x.shape[0], x.data_ptr(), x.shape[1], TYPES[x.dtype], ctypes.addressof(non_finite))
        return non_finite.value == 0.0

    def floats(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return x
        x = self._together(x)
        out = torch.empty(x.shape)
        self._run("widen", x.shape[0], x.data_ptr(), out.data_ptr(), x.shape[1], TYPES[x.dtype])
        return out

    def add(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        return self._by_rows("add", (x, y), scale)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._by_rows("rms_norm", (x, weight), eps)

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        return self._by_rows("layer_norm", (x, weight, bias), eps)

    def activate(self, x: Tensor, activation: str) -> Tensor:
        if activation not in ACTIVATIONS:
            return self._reference.activate(x, activation)
        return self._by_rows("activate", (x,), ACTIVATIONS[activation], False)

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        if activation not in ACTIVATIONS:
            return self._reference.gated(gate_up, activation)
        gate_up = self._together(gate_up)
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty(rows, width, dtype=gate_up.dtype)
        self._run(
            "activate",
            rows,
            gate_up.data_ptr(),
            out.data_ptr(),
            width,
            ACTIVATIONS[activation],
            True,
            TYPES[gate_up.dtype],
        )
        return out

    def gated_linear(self, gate_up: PackedLinear, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        parts = gate_up.parts if isinstance(gate_up, NativeLinear) else []
        if len(parts) != 1 or parts[0].outputs % (2 * PANEL) or activation not in ACTIVATIONS:
            return self.gated(gate_up(x, bias), activation)
        out = torch.empty(x.shape[0], parts[0].outputs // 2, dtype=x.dtype)
        parts[0].multiply(x, out, 0, bias, ACTIVATIONS[activation])
        return out

    def angles(self, table: RotaryTable, positions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        rows, pairs = len(positions), table.frequencies.shape[1]
        cos, sin = torch.empty(rows, pairs), torch.empty(rows, pairs)
        self._run(
            "angles",
            rows,
            positions.data_ptr(),
            lengths.data_ptr(),
            table.frequencies.data_ptr(),
            pairs,
            cos.data_ptr(),
            sin.data_ptr(),
            table.scales[0],
            table.scales[-1],
            NEVER if table.long_rope_threshold is None else table.long_rope_threshold,
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
        heads = self._together(transform_heads(qkv.view(rows, -1, spec.head_dim), spec, self._apply_norm))
        query = torch.empty(plan.num_tokens, spec.num_heads, spec.head_dim)
        paired = self._can_pair(cache)
        self._run(
            "rotate_store",
            plan.num_tokens,
            heads.data_ptr(),
            angles[0].data_ptr() if angles else None,
            angles[1].data_ptr() if angles else None,
            query.data_ptr(),
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            plan.slot_mapping.data_ptr(),
            plan.block_size,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            angles[0].shape[1] if angles else 0,
            spec.interleaved,
            TYPES[qkv.dtype],
            CACHE_TYPES[cache.keys.dtype],
            paired,
        )
        return self._attend(query, cache, plan, spec, rows, qkv.dtype, paired).flatten(1)

    def _apply_norm(self, norm: NormSpec, x: Tensor) -> Tensor:
        if norm.kind == "rms":
            assert norm.weight is not None
            return self.rms_norm(x, norm.weight, norm.eps)
        if norm.weight is None or norm.weight.dim() == 1:
            return self.layer_norm(x, norm.weight, norm.bias, norm.eps)
        return (self.layer_norm(x.float(), None, None, norm.eps) * norm.weight).to(x.dtype)

    def _can_pair(self, cache: KVCache) -> bool:
        """Whether a cache's tokens lie as the processor's product of pairs of bfloat16 reads them."""
        if not self._multiplies_pairs or cache.keys.dtype != torch.bfloat16 or cache.keys.shape[2] % PAIRED_TOKENS:
            return False
        return not any(dim % PAIRED_TOKENS for dim in cache.dims)

    def store(self, keys: Tensor, values: Tensor | None, cache: KVCache, plan: AttentionPlan) -> None:
        for rows, target in ((keys, cache.keys), (values, cache.values)):
            if rows is None:
                continue
            rows = self._together(self.floats(rows))
            tokens, heads, dim = rows.shape
            self._run(
                "store_rows",
                tokens,
                rows.data_ptr(),
                target.data_ptr(),
                plan.slot_mapping.data_ptr(),
                plan.block_size,
                heads,
                dim,
                CACHE_TYPES[target.dtype],
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
        make = torch.empty if rows == plan.num_tokens else torch.zeros
        out = make(rows, spec.num_heads, value_dim, dtype=dtype)
        self._run(
            "attention",
            plan.run_table.shape[0],
            query.data_ptr(),
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            out.data_ptr(),
            plan.run_table.data_ptr(),
            plan.block_table.data_ptr(),
            plan.block_table.shape[1],
            plan.block_size,
            spec.num_heads,
            spec.num_kv_heads,
            key_dim,
            value_dim,
            spec.scale,
            spec.softcap or 0.0,
            None if spec.alibi_slopes is None else spec.alibi_slopes.data_ptr(),
            plan.window or 0,
            CACHE_TYPES[cache.keys.dtype],
            TYPES[dtype],
            paired,
            *((0, 0, 0, 0) if spec.sparse is None else astuple(spec.sparse)),
        )
        return out

    def full_attention(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        return self._reference.full_attention(query, key, value, scale)

    def experts(self, weights: Sequence[PackedLinear]) -> PackedExperts:
        native = [w for w in weights if isinstance(w, NativeLinear)]
        if len(native) < len(weights) or len({tuple((p.kind, p.outputs) for p in w.parts) for w in native}) > 1:
            return self._reference.experts(weights)
        return NativeExperts(self.library, native)

    def weighted_sum(self, y: Tensor, weights: Tensor) -> Tensor:
        weights = weights.float().contiguous()
        rows, terms = weights.shape
        out = torch.empty(rows, y.shape[1], dtype=y.dtype)
        addresses = y.data_ptr(), weights.data_ptr()
        self._run("weighted_sum", rows, *addresses, terms, y.shape[1], out.data_ptr(), TYPES[y.dtype])
        return out

    def convolve(
        self, x: Tensor, history: Tensor, weight: Tensor, bias: Tensor | None, activation: str, plan: RecurrentPlan
    ) -> Tensor:
        channels, taps = weight.shape
        if taps not in CONVOLUTION_TAPS or activation not in ACTIVATIONS:
            return self._reference.convolve(x, history, weight, bias, activation, plan)
        out = torch.empty(x.shape, dtype=x.dtype)
        self._run(
            "causal_conv",
            len(plan.table),
            x.data_ptr(),
            x.stride(0),
            history.data_ptr(),
            history.stride(0),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            plan.table.data_ptr(),
            channels,
            taps,
            ACTIVATIONS[activation],
            TYPES[x.dtype],
        )
        return out

    def scan(self, inputs: ScanInput, state: Tensor, plan: RecurrentPlan) -> Tensor:
        """The plain recurrence, one token after the other: the first of the three parts of `state` is all of it."""
        channels, width = inputs.a.shape
        if width not in SCAN_WIDTHS or inputs.activation not in ACTIVATIONS:
            return self._reference.scan(inputs, state, plan)
        x, dt = self._together(inputs.x), self._together(inputs.dt)
        y = torch.empty_like(x)
        self._run(
            "selective_scan",
            len(plan.table),
            *(v.data_ptr() for v in (x, dt, inputs.a)),
            *(v for t in (inputs.b, inputs.c) for v in (t.data_ptr(), t.stride(0))),
            inputs.d.data_ptr(),
            inputs.gate.data_ptr(),
            inputs.gate.stride(0),
            y.data_ptr(),
            state.data_ptr(),
            state.stride(0),
            plan.table.data_ptr(),
            channels,
            width,
            ACTIVATIONS[inputs.activation],
            TYPES[x.dtype],
        )
        return y

    def sample(self, logits: Tensor, by: Sequence[DrawBy]) -> Tensor:
        logits = self._together(logits)
        rows, vocab = logits.shape
        how = as_array(by) if any(b.temperature for b in by) else None
        tokens = torch.empty(rows, dtype=torch.int64)
        address = None if how is None else how.ctypes.data
        self._run("choose", rows, logits.data_ptr(), vocab, vocab, address, tokens.data_ptr())
        return tokens
