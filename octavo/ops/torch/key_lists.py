"""Which keys a token attends to, by the scores of an indexer (DeepSeek-AI 2025, DeepSeek sparse attention)."""

import torch
from torch import Tensor
from torch.nn import functional

from octavo.ops.paged_cache import KVCache
from octavo.ops.plans import AttentionPlan
from octavo.ops.torch.cached_rows import from_cache
from octavo.ops.torch.paged_attention import KEY_GRAIN, Tile, gather, pad_width, tiles
from octavo.ops.torch.products import ROW_GRAIN

NO_KEY = -1
"""What follows the last key of a list."""


def select_keys(
    query: Tensor, weights: Tensor, cache: KVCache, plan: AttentionPlan, top_k: int, rows: int, ratio: int = 1
) -> Tensor:
    """See octavo.ops.backend. Scores of equal size stay in their order, so that earlier keys are taken first."""
    lists = torch.full((rows, top_k), NO_KEY, dtype=torch.int32, device=query.device)
    for index, tile in enumerate(tiles(plan)):
        if ratio == 1:
            keys, numbers = gather(cache.keys, cache.dims[0], plan, index), tile.keys.view(tile.n, 1, -1)
            seen = (tile.bias.view(tile.n, tile.t, -1) == 0).expand(-1, -1, keys.shape[1])
        else:
            keys, numbers, seen = _pooled(cache, plan.block_size, tile, ratio)
        best = _best(_scores(query, weights, keys, tile), seen, numbers, top_k)
        targets = slice(tile.n * tile.t) if tile.targets is None else tile.targets
        lists[targets, : best.shape[1]] = best if tile.kept is None else best[tile.kept]
    return lists


def _pooled(cache: KVCache, block_size: int, tile: Tile, ratio: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys of `ratio` tokens `[n, room, dim]`, their numbers, and which of them each query sees, `[n, t, room]`."""
    room = -(-max(1, tile.keys.shape[-1] // ratio) // KEY_GRAIN) * KEY_GRAIN
    numbers = torch.arange(room, device=tile.keys.device)
    last = (numbers + 1) * ratio - 1
    columns = (last // block_size).clamp(max=tile.blocks.shape[1] - 1)  # those past the end are seen by nobody
    slots = tile.blocks[:, columns] * -(-block_size // ratio) + last % block_size // ratio
    keys = from_cache(cache.keys.view(-1, cache.keys.shape[-1])[slots], cache.dims[0])
    positions = (tile.keys - tile.distance)[:, 0, :, 0, :1].long()
    return pad_width(keys), numbers.view(1, 1, -1), numbers < (positions + 1) // ratio


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


def _best(scores: Tensor, seen: Tensor, numbers: Tensor, top_k: int) -> Tensor:
    """[n * t, up to top_k] int32: the numbers of the best of the keys that are seen, ascending, NO_KEY after them."""
    order = torch.sort(scores.masked_fill(~seen, -torch.inf), dim=-1, descending=True, stable=True).indices[..., :top_k]
    best = numbers.expand(scores.shape).gather(2, order)
    last = torch.iinfo(torch.int64).max
    best = best.masked_fill(~seen.gather(2, order), last).sort(dim=-1).values
    return best.masked_fill(best == last, NO_KEY).to(torch.int32).flatten(0, 1)
