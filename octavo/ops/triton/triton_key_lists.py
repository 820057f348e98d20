"""Which keys a token attends to: scores by a kernel, the best of them by PyTorch's stable sort."""

import torch
from torch import Tensor

from octavo.ops.paged_cache import INT4, KVCache
from octavo.ops.plans import AttentionPlan
from octavo.ops.torch.key_lists import NO_KEY
from octavo.ops.triton import key_lists_kernel
from octavo.ops.triton.attention_launch import plan_tables, split_width, tiles_for
from octavo.ops.triton.launching import PRODUCT_ROWS, cdiv, power_of_two
from octavo.ops.triton.triton_attention import TL_DTYPES, compute_dtype, sight_of

MOST_SCORES = 1 << 26
"""Of tokens that are computed together, which bounds the memory of a step."""
LAST_NUMBER = torch.iinfo(torch.int64).max


def select_keys(
    query: Tensor, weights: Tensor, cache: KVCache, plan: AttentionPlan, top_k: int, rows: int, ratio: int = 1
) -> Tensor:
    """See octavo.ops.backend."""
    lists = torch.full((rows, top_k), NO_KEY, dtype=torch.int32, device=query.device)
    tables = plan_tables(plan, 1)
    width = max(1, tables.end // ratio)
    most = max(1, MOST_SCORES // width)
    for first in range(0, len(tables.tiles), most):
        tiles = tables.tiles[first : first + most]
        scores = _scores(query.contiguous(), weights.contiguous(), cache, plan, tables.runs, tiles, width, ratio)
        best = _best(scores, top_k)
        targets = tables.runs[tiles[:, 0].long(), 0] + tiles[:, 1]
        lists[targets, : best.shape[1]] = best
    return lists


def _scores(
    query: Tensor,
    weights: Tensor,
    cache: KVCache,
    plan: AttentionPlan,
    runs: Tensor,
    tiles: Tensor,
    width: int,
    ratio: int,
) -> Tensor:
    """[tiles, width] float32, of keys that a tile's token does not see -inf."""
    heads, dim = query.shape[1:]
    compute = compute_dtype(cache.keys.dtype, torch.float32)
    sizes, (first, rest), (sight, window) = tiles_for(dim, 1, compute), split_width(dim), sight_of(plan.window)
    scores = torch.full((len(tiles), width), -torch.inf, device=query.device)
    key_lists_kernel.key_scores_kernel[(len(tiles), cdiv(width, key_lists_kernel.SPLIT.value))](
        query,
        weights,
        cache.keys,
        scores,
        width,
        runs,
        tiles,
        plan.block_table,
        plan.block_table.stride(0),
        window,
        HEADS=heads,
        HEAD_ROWS=max(PRODUCT_ROWS, power_of_two(heads)),
        KEYS=sizes.keys,
        DIM=dim,
        WIDTH=first,
        REST=rest,
        ROW=cache.keys.shape[-1],
        BLOCK=plan.block_size,
        RATIO=ratio,
        SIGHT=sight,
        COMPUTE=TL_DTYPES[compute],
        IS_INT8=cache.keys.dtype == torch.int8,
        IS_INT4=cache.keys.dtype == INT4,
        num_warps=sizes.warps,
        num_stages=sizes.stages,
        enable_fp_fusion=False,
    )
    return scores


def _best(scores: Tensor, top_k: int) -> Tensor:
    """[tiles, up to top_k] int32: the numbers of the best keys, ascending, NO_KEY after them."""
    best, order = torch.sort(scores, dim=-1, descending=True, stable=True)
    found = order[:, :top_k].masked_fill(best[:, :top_k] == -torch.inf, LAST_NUMBER).sort(dim=-1).values
    return found.masked_fill(found == LAST_NUMBER, NO_KEY).to(torch.int32)
