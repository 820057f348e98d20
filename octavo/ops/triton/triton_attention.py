"""Attention by the kernels of octavo.ops.triton.attention_kernel."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from octavo.ops.paged_cache import INT4, KVCache
from octavo.ops.plans import AttentionPlan, FullRun
from octavo.ops.specs import AttentionSpec, DistanceBias, PositionScores
from octavo.ops.triton import attention_kernel, attention_launch
from octavo.ops.triton.attention_launch import PlanTables, Tiles, are_known, plan_tables, split_width, tiles_for
from octavo.ops.triton.launching import power_of_two
from octavo.token_windows import Chunk, Window

TL_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def takes(dims: tuple[int, int]) -> bool:
    """Whether there is room for keys and values of these widths in a tile; all else that specs say is taken."""
    return max(dims) <= attention_launch.MAX_DIM


@dataclass(frozen=True)
class _Keys:
    """Keys and values, and how they lie."""

    keys: Tensor
    values: Tensor
    block_table: Tensor | None
    """None where they lie side by side."""
    block_size: int
    kv_heads: int
    dims: tuple[int, int]
    compute: torch.dtype
    """What products are of."""

    def constants(self) -> dict[str, Any]:
        (dim, value_dim), is_shared = self.dims, self.values is self.keys
        width, rest = split_width(dim)
        value_width, value_rest = split_width(value_dim)
        return {
            "KV_HEADS": self.kv_heads,
            "DIM": dim,
            "WIDTH": width,
            "REST": rest,
            "VALUE_DIM": value_dim,
            "VALUE_WIDTH": value_width,
            "VALUE_REST": value_rest,
            "ROW": self.keys.shape[-1],
            "VALUE_ROW": self.values.shape[-1],
            "BLOCK": self.block_size,
            "COMPUTE": TL_DTYPES[self.compute],
            "IS_INT8": self.keys.dtype == torch.int8,
            "IS_INT4": self.keys.dtype == INT4,
            "IS_SHARED": is_shared,
        }


@dataclass(frozen=True)
class _Scores:
    """What becomes of products of queries and keys."""

    scale: float
    sight: Any
    window: int
    softcap: float | None = None
    slopes: Tensor | None = None
    bias: DistanceBias | PositionScores | None = None
    sinks: Tensor | None = None
    sparse: tuple[int, ...] | None = None
    key_lists: Tensor | None = None

    def arguments(self, unused: Tensor) -> dict[str, Any]:
        by_distance = self.bias if isinstance(self.bias, DistanceBias) else None
        by_vector = self.bias if isinstance(self.bias, PositionScores) else None
        of_queries, of_keys = (None, None) if by_vector is None else (by_vector.query, by_vector.key)
        vectors = of_queries if of_queries is not None else of_keys
        distances = 0
        if self.bias is not None:
            distances = by_distance.table.shape[1] if by_distance else len(by_vector.numbers)  # type: ignore[union-attr]
        given = {
            "key_lists": self.key_lists,
            "slopes": self.slopes,
            "distances": by_distance.table if by_distance else None,
            "query_vectors": of_queries,
            "key_vectors": of_keys,
            "vector_numbers": by_vector.numbers if by_vector else None,
            "sinks": self.sinks,
        }
        return {
            **{name: unused if tensor is None else tensor.contiguous() for name, tensor in given.items()},
            "list_size": 0 if self.key_lists is None else self.key_lists.shape[1],
            "num_distances": distances,
            "origin": 0 if self.bias is None else self.bias.origin,
            "num_vectors": 0 if vectors is None else vectors.shape[2],
            "scale": self.scale,
            "softcap": self.softcap or 1.0,
            "window": self.window,
            "SIGHT": self.sight,
            "HAS_LISTS": self.key_lists is not None,
            "HAS_SOFTCAP": self.softcap is not None,
            "HAS_SLOPES": self.slopes is not None,
            "HAS_DISTANCES": by_distance is not None,
            "HAS_QUERY_VECTORS": of_queries is not None,
            "HAS_KEY_VECTORS": of_keys is not None,
            "HAS_SINKS": self.sinks is not None,
            "SPARSE": self.sparse,
        }


JOIN_ARGUMENTS = (
    *("SPLIT", "GROUP", "KV_HEADS", "QUERIES", "TILE_HEADS", "VALUE_DIM", "VALUE_WIDTH", "VALUE_REST"),
    *("list_size", "sinks", "window", "SIGHT", "HAS_LISTS", "HAS_SINKS"),
)
"""What `join_kernel` takes of what `attend_kernel` takes."""


def sight_of(window: Window | None) -> tuple[Any, int]:
    """What the kernel calls a window, and its size."""
    if window is None:
        return attention_kernel.ALL, 0
    if isinstance(window, Chunk):
        return attention_kernel.CHUNK, window.size
    return attention_kernel.LAST, window


def compute_dtype(held: torch.dtype, rows: torch.dtype) -> torch.dtype:
    """What products are of: numbers as a cache has them, or where it has codes as the step's rows are."""
    return held if held.is_floating_point else rows


def attend_stored(
    query: Tensor,
    cache: KVCache,
    plan: AttentionPlan,
    spec: AttentionSpec,
    rows: int,
    dtype: torch.dtype,
    key_lists: Tensor | None = None,
) -> Tensor:
    """See octavo.ops.backend; `query` may be in any dtype of floats."""
    sight, window = sight_of(plan.window)
    sparse = spec.sparse
    scores = _Scores(
        spec.scale,
        sight,
        window,
        spec.softcap,
        spec.alibi_slopes,
        spec.distance_bias,
        spec.sinks,
        None
        if sparse is None
        else (sparse.block_size, sparse.local_blocks, sparse.stride, sparse.head_step, sparse.first_head),
        None if key_lists is None else key_lists,
    )
    compute = compute_dtype(cache.keys.dtype, dtype)
    held = _Keys(cache.keys, cache.values, plan.block_table, plan.block_size, spec.num_kv_heads, cache.dims, compute)
    fills = rows == plan.num_tokens and not plan.has_gaps and are_known(plan)
    make = torch.empty if fills else torch.zeros
    out = make(rows, spec.num_heads, cache.dims[1], dtype=dtype, device=query.device)
    sizes = tiles_for(*cache.dims, compute)
    tile_heads = min(spec.num_heads // spec.num_kv_heads, sizes.queries)
    if key_lists is not None:  # of one token each
        sizes = replace(sizes, queries=max(16, power_of_two(tile_heads)))
        tile_heads = sizes.queries
    tables = plan_tables(plan, sizes.queries // tile_heads)
    _launch(query, held, scores, tables, out, sizes, tile_heads)
    return out


def _launch(
    query: Tensor, held: _Keys, scores: _Scores, tables: PlanTables, out: Tensor, sizes: Tiles, tile_heads: int
) -> None:
    """Attention of all tiles."""
    if not len(tables.tiles):
        return
    query, heads = query.contiguous(), query.shape[1]
    group = heads // held.kv_heads
    programs = len(tables.tiles), held.kv_heads * -(-group // tile_heads)
    end = tables.end if scores.key_lists is None else scores.key_lists.shape[1]
    constants = {
        "SPLIT": attention_launch.SPLIT,
        "GROUP": group,
        "QUERIES": sizes.queries,
        "TILE_HEADS": tile_heads,
        **held.constants(),
        **scores.arguments(query),
    }
    splits, part_rows = -(-end // attention_launch.SPLIT), len(query) * heads
    part_bytes = splits * part_rows * (held.dims[1] + 2) * 4
    is_shared_out = (
        splits > 1
        and programs[0] * programs[1] < attention_launch.ENOUGH_PROGRAMS
        and part_bytes <= attention_launch.MOST_PART_BYTES
    )
    mixed = sums = query
    if is_shared_out:
        mixed = torch.empty(splits, part_rows, held.dims[1], device=query.device)
        sums = torch.empty(splits, part_rows, 2, device=query.device)
    attention_kernel.attend_kernel[(*programs, splits if is_shared_out else 1)](
        query,
        held.keys,
        held.values,
        out,
        mixed,
        sums,
        tables.runs,
        tables.tiles,
        tables.tiles if held.block_table is None else held.block_table,
        table_width=0 if held.block_table is None else held.block_table.stride(0),
        num_splits=splits if is_shared_out else 0,
        part_rows=part_rows,
        KEYS=sizes.keys,
        **constants,
        num_warps=sizes.warps,
        num_stages=sizes.stages,
        enable_fp_fusion=False,
    )
    if is_shared_out:
        attention_kernel.join_kernel[programs](
            mixed,
            sums,
            out,
            tables.runs,
            tables.tiles,
            part_rows=part_rows,
            **{name: constants[name] for name in JOIN_ARGUMENTS},
            num_warps=sizes.warps,
            num_stages=1,
            enable_fp_fusion=False,
        )


@lru_cache(maxsize=16)
def _full_tables(runs: tuple[FullRun, ...], tokens: int, device: torch.device) -> PlanTables:
    """Of runs that see all of their keys, which an encoder's layers have in common."""
    seen = [run for run in runs if run[1] and run[3]]
    table = [(first, count, keys - count, first_key, keys, 0) for first, count, first_key, keys in seen]
    tiles = attention_launch.cut([count for _, count, _, _ in seen], tokens)
    of_runs = torch.tensor(table, dtype=torch.int64).view(-1, 6)
    return PlanTables(of_runs.to(device), tiles.to(device), max((keys for *_, keys in seen), default=0))


def full_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    runs: Sequence[FullRun],
    bias: DistanceBias | PositionScores | None = None,
) -> Tensor:
    """See octavo.ops.backend."""
    (heads, dim), (kv_heads, value_dim) = query.shape[1:], value.shape[1:]
    out = torch.zeros(*query.shape[:2], value_dim, dtype=query.dtype, device=query.device)
    sizes = tiles_for(dim, value_dim, key.dtype)
    tile_heads = min(heads // kv_heads, sizes.queries)
    tables = _full_tables(tuple(runs), sizes.queries // tile_heads, query.device)
    held = _Keys(key.contiguous(), value.contiguous(), None, 0, kv_heads, (dim, value_dim), key.dtype)
    scores = _Scores(scale, attention_kernel.FULL, 0, bias=bias)
    _launch(query, held, scores, tables, out, sizes, tile_heads)
    return out
