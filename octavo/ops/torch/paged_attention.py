"""Paged attention: queries of a flat batch over keys and values that lie in blocks.

A step's queries are cut into tiles: sequences whose runs are of like size, computed together over like spans of keys.
The plan is made once a step and serves all layers that share a block table.

Batch invariance: scores are products of a fixed length (head_dim). Sums over keys go in groups at fixed absolute
positions, in ascending order, and spans begin where groups do. Keys that a query may not see weigh exactly zero, and
adding zeros before or after changes no bit, so that neither padding, nor chunking, nor neighbours show in the result.

Keys that no query sees may hold anything finite: the executor keeps the caches free of infinities and NaN.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from octavo.ops.paged_cache import KVCache
from octavo.ops.plans import AttentionPlan, SequenceRun
from octavo.ops.specs import AttentionSpec, BlockSparse, HeadClip, NormSpec, RankColumns
from octavo.ops.torch.cached_rows import from_cache, to_cache
from octavo.ops.torch.products import ROW_GRAIN, TERMS, grouped_sum
from octavo.ops.torch.rope import rotate
from octavo.ops.torch.torch_norms import apply_norm
from octavo.token_windows import Chunk, Window, first_seen

T = TypeVar("T")

KEY_GROUP = TERMS
"""Keys whose weighted values are summed in one product."""
KEY_GRAIN = 16
"""Spans are rounded up to it: a vector of the softmax, so that its sums have no ragged end."""
QUERY_TILE = 128
"""Most queries of one sequence in a tile."""
TILE_SCORES = 1 << 20
"""Most scores a head in one tile, which bounds the memory of a step."""


@dataclass(slots=True)
class _Part:
    """At most QUERY_TILE queries of a run."""

    run: SequenceRun
    first_row: int
    start: int
    num_tokens: int
    first_key: int
    """The first key that any of them sees, rounded down to a group."""
    end: int
    """After the last key that any of them sees."""


@dataclass(slots=True)
class Tile:
    """`n` parts of at most `t` queries over `span` keys each."""

    rows: Tensor | None
    """[n * t] rows of the queries in the batch; None where that is all of the batch in order."""
    kept: Tensor | None
    """Which of the n * t are queries, not padding; None where all are."""
    targets: Tensor | None
    """Rows of the kept queries; None with `rows`."""
    n: int
    t: int
    blocks: Tensor
    """[n, span // block_size]"""
    bias: Tensor
    """[n, 1, t, 1, span] float32: 0 for keys that the query sees, -inf for the others."""
    distance: Tensor
    """[n, 1, t, 1, span] float32: key position minus query position."""
    keys: Tensor
    """[n, 1, 1, 1, span] int64: key positions."""


def _once(plan: AttentionPlan, key: Hashable, make: Callable[[], T]) -> T:
    """`make()`, computed once a plan."""
    if key not in plan.memo:
        plan.memo[key] = make()
    value: T = plan.memo[key]
    return value


def tiles(plan: AttentionPlan) -> list[Tile]:
    """The plan's runs cut and grouped into padded tensors."""
    return _once(plan, "tiles", lambda: _make_tiles(plan))


def _sparse_bias(sparse: BlockSparse, tile: Tile, heads: int) -> Tensor:
    """[n, heads, t, 1, span] float32: 0 where a head's query sees a key, else -inf. Causality is another's."""
    key_block = tile.keys // sparse.block_size
    query_block = torch.div(tile.keys - tile.distance, sparse.block_size, rounding_mode="floor")
    of_head = torch.arange(heads, device=tile.keys.device).view(1, heads, 1, 1, 1) + sparse.first_head
    strided = (key_block + of_head * sparse.head_step + 1) % sparse.stride == 0
    seen = (query_block - key_block < sparse.local_blocks) | strided
    return torch.where(seen, 0.0, -torch.inf)


def _bias(plan: AttentionPlan, index: int, kv_heads: int, group: int, sparse: BlockSparse | None) -> Tensor:
    """[n * kv_heads, rows, span] float32: 0 for keys that a query sees, else -inf; rows as in the products."""

    def make() -> Tensor:
        tile = tiles(plan)[index]
        bias = tile.bias.expand(tile.n, kv_heads, tile.t, group, -1)
        if sparse is not None:
            by_head = _sparse_bias(sparse, tile, kv_heads * group).view(tile.n, kv_heads, group, tile.t, -1)
            bias = bias + by_head.transpose(2, 3)
        bias = bias.reshape(tile.n * kv_heads, tile.t * group, -1)
        return functional.pad(bias, (0, 0, 0, -bias.shape[1] % ROW_GRAIN))

    return _once(plan, ("bias", index, kv_heads, group, sparse), make)


def _block_rows(plan: AttentionPlan, index: int, heads: int) -> Tensor:
    """Rows of a cache seen as `[blocks * heads, block_size * dim]`, in the order (run, head, block)."""

    def make() -> Tensor:
        blocks = tiles(plan)[index].blocks
        of_head = torch.arange(heads, device=blocks.device).view(1, heads, 1)
        return (blocks.unsqueeze(1) * heads + of_head).flatten()

    return _once(plan, ("blocks", index, heads), make)


def _slot_rows(plan: AttentionPlan, heads: int) -> Tensor:
    """Rows of a cache seen as `[blocks * heads * block_size, dim]`, in the order (token, head)."""

    def make() -> Tensor:
        block, offset = plan.slot_mapping // plan.block_size, plan.slot_mapping % plan.block_size
        of_head = torch.arange(heads, device=block.device)
        return ((block.unsqueeze(1) * heads + of_head) * plan.block_size + offset.unsqueeze(1)).flatten()

    return _once(plan, ("slots", heads), make)


def _round_up(value: int, grain: int) -> int:
    return -(-value // grain) * grain


def _bucket(size: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, ...: runs of one bucket waste at most half on padding."""
    power = 1 << max(0, size - 1).bit_length()
    return power * 3 // 4 if power >= 4 and size <= power * 3 // 4 else power


def _parts(runs: Sequence[SequenceRun], window: Window | None) -> Iterator[_Part]:
    for run in runs:
        for offset in range(0, run.num_tokens, QUERY_TILE):
            start, count = run.start + offset, min(QUERY_TILE, run.num_tokens - offset)
            first = first_seen(window, start)
            first = max(run.first_key, min(first, run.start) if run.sees_all else first)
            end = run.start + run.num_tokens if run.sees_all else start + count
            yield _Part(run, run.first_row + offset, start, count, first // KEY_GROUP * KEY_GROUP, end)


def _make_tiles(plan: AttentionPlan) -> list[Tile]:
    groups: dict[tuple[int, int], list[_Part]] = {}
    for part in _parts(plan.runs, plan.window):
        span = part.end - part.first_key
        groups.setdefault((_bucket(part.num_tokens), _bucket(-(-span // KEY_GRAIN))), []).append(part)
    tiles = []
    for (t, span), members in groups.items():
        most = max(1, TILE_SCORES // (t * span * KEY_GRAIN))
        for i in range(0, len(members), most):
            part_of = members[i : i + most]
            tiles.append(_make_tile(part_of, plan.block_table, plan.block_size, plan.window, plan.num_tokens))
    return tiles


def _make_tile(
    members: list[_Part], block_table: Tensor, block_size: int, window: Window | None, num_tokens: int
) -> Tile:
    n, t = len(members), max(m.num_tokens for m in members)
    start = np.array([m.start for m in members])
    count = np.array([m.num_tokens for m in members])
    first_row = np.array([m.first_row for m in members])
    first_key = np.array([m.first_key for m in members])
    span = _round_up(max(m.end - m.first_key for m in members), max(block_size, KEY_GRAIN))

    offset = np.minimum(np.arange(t), (count - 1)[:, None])  # padding repeats the last query
    query = start[:, None] + offset
    key = first_key[:, None] + np.arange(span)
    distance = key[:, None, :] - query[:, :, None]
    seen = distance <= 0
    if isinstance(window, Chunk):
        seen &= (key // window.size)[:, None, :] == (query // window.size)[:, :, None]
    elif window is not None:
        seen &= distance > -window
    for i, part in enumerate(members):
        if part.run.sees_all:
            seen[i] |= (key[i] >= part.run.start) & (key[i] < part.end)
        if part.run.first_key:
            seen[i] &= key[i] >= part.run.first_key

    device = block_table.device
    rows = first_row[:, None] + offset
    kept = np.arange(t) < count[:, None]
    in_order = n * t == num_tokens and bool((rows.ravel() == np.arange(num_tokens)).all()) and bool(kept.all())
    columns = torch.from_numpy(first_key[:, None] // block_size + np.arange(span // block_size)).to(device)
    columns = columns.clamp_(max=block_table.shape[1] - 1)
    table_rows = torch.tensor([m.run.table_row for m in members], device=device)
    bias = np.where(seen, np.float32(0), np.float32(-np.inf))
    return Tile(
        rows=None if in_order else torch.from_numpy(rows.ravel()).to(device),
        kept=None if kept.all() else torch.from_numpy(kept.ravel()).to(device),
        targets=None if in_order else torch.from_numpy(rows[kept]).to(device),
        n=n,
        t=t,
        blocks=block_table[table_rows.unsqueeze(1), columns],
        bias=torch.from_numpy(bias).to(device).view(n, 1, t, 1, span),
        distance=torch.from_numpy(distance.astype(np.float32)).to(device).view(n, 1, t, 1, span),
        keys=torch.from_numpy(key).to(device).view(n, 1, 1, 1, span),
    )


def store(cache: Tensor, values: Tensor, plan: AttentionPlan) -> None:
    """Store `values` `[tokens, heads, dim]` in `cache` `[blocks, heads, block_size, row]` at the plan's slots."""
    heads, dim = values.shape[1:]
    rows = to_cache(values.reshape(-1, dim), cache.dtype)
    cache.view(-1, cache.shape[-1]).index_copy_(0, _slot_rows(plan, heads), rows)


AllGather = Callable[[Tensor, Sequence[int]], Tensor]
"""See octavo.ops.ranks."""


def transform_heads(qk: Tensor, value: Tensor, spec: AttentionSpec, all_gather: AllGather) -> tuple[Tensor, Tensor]:
    """Queries and keys `[rows, heads + kv heads, head_dim]`, and values, after the spec's transforms."""
    for transform in spec.transforms:
        if isinstance(transform, HeadClip):
            qk, value = (x.clamp(-transform.limit, transform.limit) for x in (qk, value))
            continue
        query, key = qk[:, : spec.num_heads], qk[:, spec.num_heads :]
        if transform.full_width:
            query = _norm_all_heads(transform.query, query, transform.query_columns, all_gather)
            if transform.key is not None:
                key = _norm_all_heads(transform.key, key, transform.key_columns, all_gather)
        else:
            query = apply_norm(transform.query, query)
            key = key if transform.key is None else apply_norm(transform.key, key)
            value = value if transform.value is None else apply_norm(transform.value, value)
        qk = torch.cat([query, key], dim=1)
    return qk, value


def _norm_all_heads(norm: NormSpec, x: Tensor, columns: RankColumns | None, all_gather: AllGather) -> Tensor:
    """`x` `[rows, heads, head_dim]`, whose heads side by side, and those of other ranks with them, are normed."""
    flat = x.flatten(1)
    if columns is None:
        return apply_norm(norm, flat).view(x.shape)
    whole = all_gather(flat[:, : columns.given], columns.widths)
    return apply_norm(norm, whole)[:, columns.first : columns.first + flat.shape[1]].reshape(x.shape)


def rotate_store(
    qk: Tensor,
    value: Tensor,
    angles: tuple[Tensor, Tensor] | None,
    cache: KVCache,
    plan: AttentionPlan,
    spec: AttentionSpec,
) -> Tensor:
    """Rotate queries and keys by their positions, store keys and values, and give back the queries.

    Args:
        qk: [rows, heads + kv heads, head_dim]: queries, keys; rows past the plan's tokens are padding.
        value: [rows, kv heads, value_dim]
        angles: cos and sin, [rows, pairs] float32 each, or None where positions come otherwise.
        cache: where keys and values go.
        plan: in which of its slots.
        spec: of the layer.

    Returns: [tokens, heads, head_dim] float32.
    """
    tokens, key_head = plan.num_tokens, spec.num_heads
    turned = qk[:tokens]
    if angles is None:
        turned = turned.float()
    else:
        turned = rotate(turned, angles[0][:tokens], angles[1][:tokens], spec.interleaved)
    if spec.stores:
        store(cache.keys, turned[:, key_head:], plan)
        store(cache.values, value[:tokens], plan)
    return turned[:, :key_head]


def attend(
    query: Tensor,
    cache: KVCache,
    plan: AttentionPlan,
    spec: AttentionSpec,
    out: Tensor,
    key_lists: Tensor | None = None,
) -> None:
    """Attention of a step's queries over their sequences' cached keys and values, those that their runs let them see.

    Args:
        query: [tokens, heads, head_dim] float32; `heads` is a multiple of the cache's heads (grouped queries).
        cache: the keys and values.
        plan: where each sequence's queries and blocks are.
        spec: of the layer.
        out: [tokens, heads, value_dim], filled. Computed in float32, rounded once.
        key_lists: which of the keys each row sees, as `select_keys` gives them; None for all.
    """
    for index, tile in enumerate(tiles(plan)):
        result = _attend(query, cache, plan, index, spec, key_lists)
        if tile.targets is None:  # one tile holds all queries in order
            out.copy_(result)
        else:
            out.index_copy_(0, tile.targets, (result if tile.kept is None else result[tile.kept]).to(out.dtype))


def gather(cache: Tensor, dim: int, plan: AttentionPlan, index: int) -> Tensor:
    """The tile's keys or values of `dim` numbers, [n * heads, span, dim] in float32.

    dim is padded with zeros to a multiple of a grain: products of ragged widths are another matter of the library's
    choice.
    """
    _, heads, block_size, row = cache.shape
    rows = cache.view(-1, block_size * row).index_select(0, _block_rows(plan, index, heads))
    return pad_width(from_cache(rows.view(tiles(plan)[index].n * heads, -1, row), dim))


def pad_width(x: Tensor) -> Tensor:
    return functional.pad(x, (0, -x.shape[-1] % ROW_GRAIN)) if x.shape[-1] % ROW_GRAIN else x


def _attend(
    query: Tensor, cache: KVCache, plan: AttentionPlan, index: int, spec: AttentionSpec, key_lists: Tensor | None
) -> Tensor:
    """[n * t, heads, value_dim] of one tile."""
    tile = tiles(plan)[index]
    n, t, kv_heads, scale = tile.n, tile.t, spec.num_kv_heads, spec.scale
    heads, head_dim = query.shape[1:]
    group = heads // kv_heads
    rows = t * group

    queries = query if tile.rows is None else query.index_select(0, tile.rows)
    queries = queries[: n * t].view(n, t, kv_heads, group, head_dim).transpose(1, 2)
    queries = pad_width(queries.reshape(n * kv_heads, rows, head_dim))
    if rows % ROW_GRAIN:
        queries = functional.pad(queries, (0, 0, 0, -rows % ROW_GRAIN))

    keys = gather(cache.keys, cache.dims[0], plan, index).transpose(1, 2)
    bias = _bias(plan, index, kv_heads, group, spec.sparse)
    if key_lists is not None:
        bias = bias + _listed_bias(tile, key_lists, kv_heads, group)
    if spec.distance_bias is not None:
        by_distance = spec.distance_bias.at(tile.distance.view(n, t, -1).long())
        by_distance = by_distance.view(kv_heads, group, n, t, -1).permute(2, 0, 3, 1, 4)
        by_distance = by_distance.reshape(n * kv_heads, rows, -1)
        bias = bias + functional.pad(by_distance, (0, 0, 0, -rows % ROW_GRAIN))
        scores = torch.bmm(queries, keys).mul_(scale).add_(bias)
    elif spec.alibi_slopes is not None:
        # Not in one product: where in its sum a bias other than zero comes in is the library's choice.
        bias = bias + _alibi(tile, spec.alibi_slopes, kv_heads, group)
        scores = torch.bmm(queries, keys).mul_(scale).add_(bias)
    elif spec.softcap is None:
        scores = torch.baddbmm(bias, queries, keys, alpha=scale)
    else:
        scores = torch.bmm(queries, keys).mul_(scale / spec.softcap).tanh_().mul_(spec.softcap).add_(bias)

    weights = torch.softmax(scores, -1)
    values = gather(cache.values, cache.dims[1], plan, index)
    mixed = grouped_sum(weights, values)
    mixed = mixed[:, :rows, : cache.dims[1]]
    if spec.sinks is not None:
        # The heaviest weight is 1 over the sum of all, in units of itself.
        peak, heaviest = scores[:, :rows].amax(-1), weights[:, :rows].amax(-1)
        sinks = spec.sinks.view(1, kv_heads, 1, group).expand(n, -1, t, -1).reshape(peak.shape)
        mixed = mixed / (torch.exp(sinks - peak) * heaviest + 1.0).unsqueeze(-1)
    return mixed.reshape(n, kv_heads, t, group, -1).transpose(1, 2).reshape(n * t, heads, -1)


def _listed_bias(tile: Tile, key_lists: Tensor, kv_heads: int, group: int) -> Tensor:
    """[n * kv_heads, rows, span] float32: 0 where a key is in its row's list, else -inf."""
    lists = key_lists if tile.rows is None else key_lists.index_select(0, tile.rows)
    span = tile.keys.shape[-1]
    places = lists[: tile.n * tile.t].view(tile.n, tile.t, -1).long() - tile.keys.view(tile.n, 1, -1)[..., :1]
    places = torch.where((places < 0) | (places >= span), span, places)  # what follows a list's end: past the span
    bias = torch.full((tile.n, tile.t, span + 1), -torch.inf, device=lists.device).scatter_(2, places, 0.0)
    bias = bias[:, None, :, None, :span].expand(-1, kv_heads, -1, group, -1)
    bias = bias.reshape(tile.n * kv_heads, tile.t * group, span)
    return functional.pad(bias, (0, 0, 0, -bias.shape[1] % ROW_GRAIN))


def _alibi(tile: Tile, slopes: Tensor, kv_heads: int, group: int) -> Tensor:
    """[n * kv_heads, rows, span]: each head's slope times key position minus query position."""
    bias = (tile.distance * slopes.view(1, kv_heads, 1, group, 1)).view(tile.n * kv_heads, tile.t * group, -1)
    return functional.pad(bias, (0, 0, 0, -bias.shape[1] % ROW_GRAIN))
