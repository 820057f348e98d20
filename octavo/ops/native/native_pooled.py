"""The core's operations with keys of several tokens each, and with several residual streams."""

import torch
from torch import Tensor

from octavo.ops.native.description import MAX_HEAD_DIM
from octavo.ops.native.native_attention import CACHE_DTYPES, NativeAttention
from octavo.ops.native.packed_weight import DTYPES
from octavo.ops.paged_cache import KVCache
from octavo.ops.plans import AttentionPlan
from octavo.ops.pooled_keys import PooledKeys, PoolSpec
from octavo.ops.specs import AttentionSpec
from octavo.ops.streams import StreamSpec
from octavo.token_windows import Chunk


class NativePooled(NativeAttention):
    """Operations of octavo.ops.pooled_keys and octavo.ops.streams; arguments as of NativeElementwise."""

    def rotate_tail(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        interleaved: bool,
        dtype: torch.dtype = torch.float32,
        backwards: bool = False,
    ) -> Tensor:
        rows, num_heads, dim = x.shape
        assert x.stride(2) == 1
        out = torch.empty(rows, num_heads, dim, dtype=dtype)
        self.library.core.rotate_tail(
            rows=rows,
            x=x.data_ptr(),
            x_dtype=DTYPES[x.dtype],
            x_stride=x.stride(0),
            x_head_stride=x.stride(1),
            cos=angles[0].data_ptr(),
            sin=angles[1].data_ptr(),
            out=out.data_ptr(),
            out_dtype=DTYPES[dtype],
            num_heads=num_heads,
            dim=dim,
            pairs=angles[0].shape[1],
            interleaved=interleaved,
            backwards=backwards,
        )
        return out

    def pool_keys(self, cache: KVCache, plan: AttentionPlan, spec: PoolSpec) -> Tensor:
        assert cache.keys.dtype == torch.float32
        out = torch.empty(plan.num_tokens, spec.dim)
        self.library.core.pool_keys(
            num_runs=plan.run_table.shape[0],
            cache=cache.keys.data_ptr(),
            out=out.data_ptr(),
            runs=plan.run_table.data_ptr(),
            block_table=plan.block_table.data_ptr(),
            table_width=plan.block_table.shape[1],
            block_size=plan.block_size,
            bias=spec.bias.data_ptr(),
            ratio=spec.ratio,
            dim=spec.dim,
            overlapping=spec.is_overlapping,
        )
        return out

    def store_pooled(self, keys: Tensor, cache: KVCache, plan: AttentionPlan, ratio: int) -> None:
        keys = self._together(keys)
        self.library.core.store_pooled(
            num_runs=plan.run_table.shape[0],
            x=keys.data_ptr(),
            cache=cache.keys.data_ptr(),
            runs=plan.run_table.data_ptr(),
            block_table=plan.block_table.data_ptr(),
            table_width=plan.block_table.shape[1],
            block_size=plan.block_size,
            ratio=ratio,
            dim=keys.shape[1],
            cache_dtype=CACHE_DTYPES[cache.keys.dtype],
        )

    def attend_pooled(
        self,
        query: Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        pooled: PooledKeys | None,
        spec: AttentionSpec,
        rows: int,
    ) -> Tensor:
        if spec.head_dim > MAX_HEAD_DIM:
            return self._reference.attend_pooled(query, cache, plan, pooled, spec, rows)
        assert not isinstance(plan.window, Chunk), "no model has pooled keys beside chunks"
        query = self._together(query)
        make = torch.empty if rows == plan.num_tokens else torch.zeros
        out = make(rows, spec.num_heads, spec.head_dim)
        selected = None if pooled is None else pooled.selected
        self.library.core.attend_pooled(
            num_runs=plan.run_table.shape[0],
            query=query.data_ptr(),
            cache=cache.keys.data_ptr(),
            out=out.data_ptr(),
            runs=plan.run_table.data_ptr(),
            block_table=plan.block_table.data_ptr(),
            table_width=plan.block_table.shape[1],
            block_size=plan.block_size,
            window=plan.window or 0,
            pooled_cache=None if pooled is None else pooled.cache.keys.data_ptr(),
            pooled_table=None if pooled is None else pooled.plan.block_table.data_ptr(),
            pooled_width=0 if pooled is None else pooled.plan.block_table.shape[1],
            ratio=1 if pooled is None else pooled.ratio,
            selected=None if selected is None else selected.data_ptr(),
            top_k=0 if selected is None else selected.shape[1],
            num_heads=spec.num_heads,
            dim=spec.head_dim,
            scale=spec.scale,
            sinks=None if spec.sinks is None else spec.sinks.data_ptr(),
            cache_dtype=CACHE_DTYPES[cache.keys.dtype],
        )
        return out

    def stream_weights(self, products: Tensor, spec: StreamSpec) -> tuple[Tensor, Tensor]:
        rows, count, writes = len(products), spec.count, products.shape[1] > spec.count
        read, weights = torch.empty(rows, count), torch.empty(rows, count, 1 + count if writes else 0)
        self.library.core.stream_weights(
            rows=rows,
            products=products.data_ptr(),
            scale=spec.scale.data_ptr(),
            bias=spec.bias.data_ptr(),
            count=count,
            eps=spec.eps,
            iterations=spec.iterations,
            read=read.data_ptr(),
            weights=weights.data_ptr() if writes else None,
        )
        return read, weights

    def mix_streams(self, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        x, y = self._together(x), self._together(y)
        out = torch.empty_like(x)
        self.library.core.mix_streams(
            rows=len(x),
            x=x.data_ptr(),
            y=y.data_ptr(),
            weights=weights.data_ptr(),
            out=out.data_ptr(),
            count=weights.shape[1],
            columns=y.shape[1],
            dtype=DTYPES[x.dtype],
        )
        return out
