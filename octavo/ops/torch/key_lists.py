"""Which keys a token attends to, by the scores of an indexer (DeepSeek-AI 2025, DeepSeek sparse attention)."""

import torch
from torch import Tensor
from torch.nn import functional

from octavo.ops.paged_cache import KVCache
from octavo.ops.plans import AttentionPlan
from octavo.ops.torch.paged_attention import Tile, gather, pad_width, tiles
from octavo.ops.torch.products import ROW_GRAIN

NO_KEY = -1
"""What follows the last key of a list."""


def select_keys(query: Tensor, weights: Tensor, cache: KVCache, plan: AttentionPlan, top_k: int, rows: int) -> Tensor:
    """See octavo.ops.backend. Scores of equal size stay in their order, so that earlier keys are taken first."""
    lists = torch.full((rows, top_k), NO_KEY, dtype=torch.int32, device=query.device)
    for index, tile in enumerate(tiles(plan)):
        best = _best(_scores(query, weights, gather(cache.keys, plan, index), tile), tile, top_k)
        targets = slice(tile.n * tile.t) if tile.targets is None else tile.targets
        lists[targets, : best.shape[1]] = best if tile.kept is None else best[tile.kept]
    return lists


def _scores(query: Tensor, weights: Tensor, keys: Tensor, tile: Tile) -> Tensor:
    """[n, t, span] float32, of `keys` `[n, span, dim]`. Heads are added up one by one, in their order."""
    n, t, heads = tile.n, tile.t, query.shape[1]
    if tile.rows is not None:
        query, weights = query.index_select(0, tile.rows), weights.index_select(0, tile.rows)
    queries = pad_width(query[: n * t].reshape(n, t * heads, -1))
    queries = functional.pad(queries, (0, 0, 0, -queries.shape[1] % ROW_GRAIN))
    products = torch.bmm(queries, keys.transpose(1, 2))[:, : t * heads].view(n, t, heads, -1).clamp_(min=0.0)
    by_head = weights[: n * t].view(n, t, heads, 1)
    total = products[:, :, 0] * by_head[:, :, 0]
    for head in range(1, heads):
        total += products[:, :, head] * by_head[:, :, head]
    return total


def _best(scores: Tensor, tile: Tile, top_k: int) -> Tensor:
    """[n * t, up to top_k] int32: positions of the best of the keys that are seen, ascending, NO_KEY after them."""
    seen = (tile.bias.view(scores.shape) == 0).expand(scores.shape)
    order = torch.sort(scores.masked_fill(~seen, -torch.inf), dim=-1, descending=True, stable=True).indices[..., :top_k]
    positions = tile.keys.view(tile.n, 1, -1).expand(scores.shape).gather(2, order)
    last = torch.iinfo(torch.int64).max
    positions = positions.masked_fill(~seen.gather(2, order), last).sort(dim=-1).values
    return positions.masked_fill(positions == last, NO_KEY).to(torch.int32).flatten(0, 1)
