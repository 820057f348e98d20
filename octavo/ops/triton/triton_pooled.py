"""Keys of several tokens each: what TritonBackend has of octavo.ops.pooled_keys."""

import torch
from torch import Tensor

from octavo.ops.paged_cache import INT4, KVCache
from octavo.ops.plans import AttentionPlan
from octavo.ops.pooled_keys import PooledKeys, PoolSpec
from octavo.ops.specs import AttentionSpec
from octavo.ops.torch import TorchBackend
from octavo.ops.triton.attention_launch import plan_tables, split_width, tiles_for
from octavo.ops.triton.launching import PRODUCT_ROWS, cdiv, columns_of, power_of_two, together, warps_of
from octavo.ops.triton.pooled_kernels import (
    ALL_ENTRIES,
    LISTED_ENTRIES,
    NO_ENTRIES,
    attend_pooled_kernel,
    pool_kernel,
    store_entries_kernel,
)
from octavo.ops.triton.triton_attention import TL_DTYPES, compute_dtype, sight_of, takes
from octavo.ops.triton.triton_heads import row_width
from octavo.token_windows import Chunk


class TritonPooled(TorchBackend):
    """Entries by kernels, a program or a few for each token; those too wide for a tile are the reference's."""

    def pool_keys(self, cache: KVCache, plan: AttentionPlan, spec: PoolSpec) -> Tensor:
        out, tables = torch.zeros(plan.num_tokens, spec.dim, device=cache.keys.device), plan_tables(plan, 1)
        columns = columns_of(spec.dim)
        if len(tables.tiles):
            pool_kernel[(len(tables.tiles), cdiv(spec.dim, columns))](
                cache.keys, spec.bias.contiguous(), out, tables.runs, tables.tiles, plan.block_table,
                plan.block_table.stride(0), DIM=spec.dim, GIVEN=spec.bias.shape[1], RATIO=spec.ratio,
                REACH=spec.reach, BLOCK=plan.block_size, COLUMNS=columns, num_warps=warps_of(columns),
                enable_fp_fusion=False,
            )  # fmt: skip
        return out

    def store_pooled(self, keys: Tensor, cache: KVCache, plan: AttentionPlan, ratio: int) -> None:
        keys, tables = together(keys), plan_tables(plan, 1)
        if len(tables.tiles):
            store_entries_kernel[(len(tables.tiles),)](
                keys, keys.stride(0), cache.keys, tables.runs, tables.tiles, plan.block_table,
                plan.block_table.stride(0), DIM=keys.shape[1], WIDTH=row_width(keys.shape[1], cache.keys), RATIO=ratio,
                BLOCK=plan.block_size, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip

    def attend_pooled(
        self,
        query: Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        pooled: PooledKeys | None,
        spec: AttentionSpec,
        rows: int,
    ) -> Tensor:
        if not takes(cache.dims):
            return super().attend_pooled(query, cache, plan, pooled, spec, rows)
        assert not isinstance(plan.window, Chunk), "no model has pooled keys beside chunks"
        query, tables, dim = query.contiguous(), plan_tables(plan, 1), cache.dims[0]
        out = torch.zeros(rows, spec.num_heads, dim, device=query.device)
        compute = compute_dtype(cache.keys.dtype, torch.float32)
        sizes, (width, rest), (sight, window) = tiles_for(dim, dim, compute), split_width(dim), sight_of(plan.window)
        queries = max(PRODUCT_ROWS, min(sizes.queries, power_of_two(spec.num_heads)))
        far, lists = (cache, plan, 1) if pooled is None else (pooled.cache, pooled.plan, pooled.ratio), None
        if pooled is not None and pooled.selected is not None:
            lists = pooled.selected.contiguous()
        if len(tables.tiles):
            attend_pooled_kernel[(len(tables.tiles), cdiv(spec.num_heads, queries))](
                query, cache.keys, far[0].keys, out, tables.runs, tables.tiles, plan.block_table,
                plan.block_table.stride(0), far[1].block_table, far[1].block_table.stride(0),
                query if lists is None else lists, 0 if lists is None else lists.shape[1],
                query if spec.sinks is None else spec.sinks, spec.scale, window,
                HEADS=spec.num_heads, QUERIES=queries, KEYS=sizes.keys, DIM=dim, WIDTH=width, REST=rest,
                ROW=cache.keys.shape[-1], BLOCK=plan.block_size, RATIO=far[2], SIGHT=sight,
                ENTRIES=NO_ENTRIES if pooled is None else ALL_ENTRIES if lists is None else LISTED_ENTRIES,
                COMPUTE=TL_DTYPES[compute], IS_INT8=cache.keys.dtype == torch.int8, IS_INT4=cache.keys.dtype == INT4,
                HAS_SINKS=spec.sinks is not None, num_warps=sizes.warps, num_stages=sizes.stages,
                enable_fp_fusion=False,
            )  # fmt: skip
        return out
