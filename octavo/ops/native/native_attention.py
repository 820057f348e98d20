"""The core's attention: over paged caches, over rows side by side, and what changes queries and keys before."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.ops.native.description import MAX_HEAD_DIM, PAIRED_TOKENS, DType
from octavo.ops.native.library import Library
from octavo.ops.native.native_alternating import NativeAlternating
from octavo.ops.native.native_elementwise import rows_of
from octavo.ops.native.packed_weight import DTYPES
from octavo.ops.paged_cache import GROUP, INT4, KVCache
from octavo.ops.plans import AttentionPlan, FullRun
from octavo.ops.specs import AttentionSpec, DistanceBias, HeadClip, NormSpec, PositionScores, RankColumns, RotaryTable
from octavo.ops.torch import TorchBackend
from octavo.token_windows import Chunk

CACHE_DTYPES = DTYPES | {torch.int8: DType.INT8, INT4: DType.INT4}
NEVER = (1 << 63) - 1
"""A length that no sequence has."""


class NativeAttention(NativeAlternating):
    """Attention, of one of the compiled libraries; arguments as of NativeElementwise."""

    def __init__(self, library: Library, reference: TorchBackend) -> None:
        super().__init__(library, reference)
        self._multiplies_pairs = library.name in ("avx512_bf16", "amx")
        """Whether the processor multiplies pairs of bfloat16 faster than float32."""
        multiplies_words = self._multiplies_pairs or library.name in ("avx_vnni", "avx512_vnni")
        self._paired_dtypes = {
            **({torch.bfloat16: PAIRED_TOKENS, INT4: GROUP} if self._multiplies_pairs else {}),
            **({torch.int8: PAIRED_TOKENS} if multiplies_words else {}),
        }
        """Caches in which numbers lie in pairs, and what a head's numbers are then a multiple of."""

    def angles(self, table: RotaryTable, positions: Tensor, lengths: Tensor, offset: int = 0) -> tuple[Tensor, Tensor]:
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
            offset=offset,
        )
        return cos, sin

    def attend(
        self,
        qkv: Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        spec: AttentionSpec,
        angles: tuple[Tensor, Tensor] | None,
        query_factors: Tensor | None = None,
    ) -> Tensor:
        if max(cache.dims) > MAX_HEAD_DIM:
            return self._reference.attend(qkv, cache, plan, spec, angles, query_factors)
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
            num_kv_heads=spec.num_kv_heads if spec.stores else 0,
            head_dim=spec.head_dim,
            value_dim=cache.dims[1],
            pairs=angles[0].shape[1] if angles else 0,
            interleaved=spec.interleaved,
            dtype=DTYPES[qkv.dtype],
            cache_dtype=CACHE_DTYPES[cache.keys.dtype],
            paired=paired,
        )
        if spec.query_weights is not None:
            query = self.scale_columns(query.view(-1, spec.head_dim), spec.query_weights).view(query.shape)
        if query_factors is not None:
            query = self.scale_rows(query, query_factors[: plan.num_tokens])
        return self._attend(query, cache, plan, spec, rows, qkv.dtype, paired).flatten(1)

    def _transform_heads(self, qkv: Tensor, spec: AttentionSpec) -> Tensor:
        """Queries, keys and values after the spec's transforms, in place."""
        for transform in spec.transforms:
            if isinstance(transform, HeadClip):
                rows, columns, dtype = rows_of(qkv)
                self.library.core.clip(rows=rows, x=qkv.data_ptr(), columns=columns, limit=transform.limit, dtype=dtype)
                continue
            first = 0
            for norm, heads, others in (
                (transform.query, spec.num_heads, transform.query_columns),
                (transform.key, spec.num_kv_heads, transform.key_columns),
                (transform.value, spec.num_kv_heads, None),
            ):
                if norm is None:
                    pass
                elif others is None:
                    self._norm_heads(qkv, first, heads, spec.head_dim, norm, transform.full_width)
                else:
                    self._norm_with_others(qkv[:, first : first + heads * spec.head_dim], norm, others)
                first += heads * spec.head_dim
        return qkv

    def _norm_with_others(self, x: Tensor, norm: NormSpec, columns: RankColumns) -> None:
        """Norm columns `x` of rows, of which other ranks have more, as one row with those, in place."""
        whole = self._together(self.all_gather(self._together(x[:, : columns.given]), columns.widths))
        self._norm_heads(whole, 0, 1, whole.shape[1], norm, full_width=True)
        own = whole[:, columns.first : columns.first + x.shape[1]]
        self._copy_rows(own, x)

    def all_gather(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        """See octavo.ops.rank_operations."""
        raise NotImplementedError

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
        """Whether a cache's tokens lie as the processor's product of pairs reads them."""
        multiple = self._paired_dtypes.get(cache.keys.dtype)
        if multiple is None or cache.keys.shape[2] % PAIRED_TOKENS:
            return False
        return not any(dim % multiple for dim in cache.dims)

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
        _, num_heads, key_dim = query.shape
        if key_dim > MAX_HEAD_DIM or (plan.window is not None and ratio == 1):
            return self._reference.select_keys(query, weights, cache, plan, top_k, rows, ratio)
        query, weights = self._together(query), self._together(weights)
        make = torch.empty if rows == plan.num_tokens and not plan.has_gaps else torch.zeros
        lists = make(rows, top_k, dtype=torch.int32)
        self.library.core.select_keys(
            num_runs=plan.run_table.shape[0],
            query=query.data_ptr(),
            weights=weights.data_ptr(),
            key_cache=cache.keys.data_ptr(),
            out=lists.data_ptr(),
            runs=plan.run_table.data_ptr(),
            block_table=plan.block_table.data_ptr(),
            table_width=plan.block_table.shape[1],
            block_size=plan.block_size,
            num_heads=num_heads,
            key_dim=key_dim,
            cache_dtype=CACHE_DTYPES[cache.keys.dtype],
            top_k=top_k,
            ratio=ratio,
        )
        return lists

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
        if max(cache.dims) > MAX_HEAD_DIM:
            return self._reference.attend_stored(query, cache, plan, spec, rows, dtype, key_lists)
        return self._attend(self._together(query), cache, plan, spec, rows, dtype, paired=False, key_lists=key_lists)

    def _attend(
        self,
        query: Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        spec: AttentionSpec,
        rows: int,
        dtype: torch.dtype,
        paired: bool,
        key_lists: Tensor | None = None,
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
            sinks=None if spec.sinks is None else spec.sinks.data_ptr(),
            **bias_arguments(spec.distance_bias),
            window=plan.window if isinstance(plan.window, int) else 0,
            chunk=plan.window.size if isinstance(plan.window, Chunk) else 0,
            cache_dtype=CACHE_DTYPES[cache.keys.dtype],
            out_dtype=DTYPES[dtype],
            paired=paired,
            sparse_block=sparse.block_size if sparse else 0,
            local_blocks=sparse.local_blocks if sparse else 0,
            sparse_stride=sparse.stride if sparse else 0,
            head_step=sparse.head_step if sparse else 0,
            first_head=sparse.first_head if sparse else 0,
            key_lists=None if key_lists is None else key_lists.data_ptr(),
            list_size=0 if key_lists is None else key_lists.shape[1],
        )
        return out

    def full_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        runs: Sequence[FullRun],
        bias: DistanceBias | PositionScores | None = None,
    ) -> Tensor:
        num_heads, key_dim = query.shape[1:]
        num_kv_heads, value_dim = value.shape[1:]
        if max(key_dim, value_dim) > MAX_HEAD_DIM:
            return self._reference.full_attention(query, key, value, scale, runs, bias)
        table = torch.tensor([run for run in runs if run[1] and run[3]], dtype=torch.int64).view(-1, 4)
        make = torch.empty if int(table[:, 1].sum()) == len(query) else torch.zeros
        out = make(len(query), num_heads, value_dim, dtype=query.dtype)
        query, key, value = (_heads_together(x) for x in (query, key, value))
        by_vectors, by_distance = (bias, None) if isinstance(bias, PositionScores) else (None, bias)
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
            **{**bias_arguments(by_distance), **position_arguments(by_vectors)},
            dtype=DTYPES[query.dtype],
        )
        return out


def bias_arguments(bias: DistanceBias | None) -> dict[str, Any]:
    """What the core's operations take of it."""
    if bias is None:
        return {"distance_bias": None, "num_distances": 0, "bias_origin": 0}
    return {
        "distance_bias": bias.table.data_ptr(),
        "num_distances": bias.table.shape[1],
        "bias_origin": bias.origin,
    }


def position_arguments(scores: PositionScores | None) -> dict[str, Any]:
    """What the core's operations take of it."""
    if scores is None:
        return {"query_vectors": None, "key_vectors": None, "vector_numbers": None, "num_vectors": 0}
    given = [x for x in (scores.query, scores.key) if x is not None]
    assert all(x.is_contiguous() for x in given)
    return {
        "query_vectors": None if scores.query is None else scores.query.data_ptr(),
        "key_vectors": None if scores.key is None else scores.key.data_ptr(),
        "vector_numbers": scores.numbers.data_ptr(),
        "num_vectors": given[0].shape[2],
        "num_distances": len(scores.numbers),
        "bias_origin": scores.origin,
    }


def _heads_together(x: Tensor) -> Tensor:
    """`[rows, heads, dim]` with the heads of a row side by side."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
