"""Keys that are pooled of several tokens each: see octavo.ops.pooled_keys.

What a token adds up depends on that token alone: its keys lie one after the other from its own first one on, and what
stands behind the last one weighs exactly zero.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from octavo.ops.paged_cache import KVCache
from octavo.ops.plans import AttentionPlan
from octavo.ops.pooled_keys import PooledKeys, PoolSpec
from octavo.ops.specs import AttentionSpec
from octavo.ops.torch.cached_rows import from_cache, to_cache
from octavo.ops.torch.key_lists import NO_KEY
from octavo.ops.torch.paged_attention import KEY_GRAIN
from octavo.ops.torch.products import ROW_GRAIN, grouped_sum
from octavo.ops.torch.rope import rotate
from octavo.token_windows import Chunk

MOST_KEYS = 1 << 18
"""Of all tokens that are computed together, which bounds the memory of a step."""


def rotate_tail(
    x: Tensor, angles: tuple[Tensor, Tensor], interleaved: bool, dtype: torch.dtype, backwards: bool
) -> Tensor:
    """See octavo.ops.pooled_keys."""
    rows, (cos, sin) = len(x), angles
    first = x.shape[-1] - 2 * cos.shape[1]
    turned = rotate(x[..., first:], cos[:rows], -sin[:rows] if backwards else sin[:rows], interleaved)
    return torch.cat([x[..., :first].float(), turned], dim=-1).to(dtype)


def _tokens(plan: AttentionPlan) -> tuple[Tensor, Tensor]:
    """Each token's position, and its sequence's row of the block table, `[tokens]` int64 each."""
    if "tokens" not in plan.memo:
        counts = [r.num_tokens for r in plan.runs]
        starts = np.array([r.start - r.first_row for r in plan.runs], dtype=np.int64)
        positions = np.arange(plan.num_tokens) + np.repeat(starts, counts)
        rows = np.repeat(np.array([r.table_row for r in plan.runs], dtype=np.int64), counts)
        device = plan.block_table.device
        plan.memo["tokens"] = torch.from_numpy(positions).to(device), torch.from_numpy(rows).to(device)
    found: tuple[Tensor, Tensor] = plan.memo["tokens"]
    return found


def _slots(plan: AttentionPlan, table_rows: Tensor, numbers: Tensor, ratio: int) -> Tensor:
    """Rows of a cache seen as `[blocks * rows of a block, row]` of entries `numbers`, each of a sequence."""
    last = (numbers + 1) * ratio - 1
    # What is masked may lie past the table's end.
    columns = (last // plan.block_size).clamp(max=plan.block_table.shape[1] - 1)
    blocks = plan.block_table[table_rows, columns]
    return blocks * -(-plan.block_size // ratio) + last % plan.block_size // ratio


def pool_keys(cache: KVCache, plan: AttentionPlan, spec: PoolSpec) -> Tensor:
    """See octavo.ops.pooled_keys."""
    positions, table_rows = _tokens(plan)
    ratio, dim = spec.ratio, spec.dim
    out = torch.zeros(plan.num_tokens, dim, device=positions.device)
    ends = ((positions + 1) % ratio == 0).nonzero().flatten()
    if not len(ends):
        return out
    width, rows = spec.bias.shape[1], cache.keys.view(-1, cache.keys.shape[-1])
    values, gates = [], []
    for place in range(-spec.reach, 0):  # before the end of the group
        at = positions[ends] + 1 + place
        found = rows[_slots(plan, table_rows[ends], at.clamp(min=0), 1)]
        first = dim if spec.is_overlapping and place >= -ratio else 0
        gate = found[:, width + first : width + first + dim] + spec.bias[place % ratio, first : first + dim]
        values.append(found[:, first : first + dim])
        gates.append(gate.masked_fill((at < 0).unsqueeze(1), -torch.inf))
    peak = torch.stack(gates).amax(0)
    total, mean = torch.zeros_like(peak), torch.zeros_like(peak)
    for value, gate in zip(values, gates, strict=True):
        weight = torch.exp(gate - peak)
        total, mean = total + weight, mean + weight * torch.where(weight > 0, value, 0.0)
    out[ends] = mean / total
    return out


def store_pooled(keys: Tensor, cache: KVCache, plan: AttentionPlan, ratio: int) -> None:
    """See octavo.ops.pooled_keys."""
    positions, table_rows = _tokens(plan)
    ends = ((positions + 1) % ratio == 0).nonzero().flatten()
    if not len(ends):
        return
    slots = _slots(plan, table_rows[ends], positions[ends] // ratio, ratio)
    cache.keys.view(-1, cache.keys.shape[-1])[slots] = to_cache(keys[ends], cache.keys.dtype)


def _together(counts: Tensor) -> Iterator[tuple[slice, int]]:
    """Tokens that are computed together, and room for the keys of each, by how many each has."""
    grain, first, number = KEY_GRAIN, 0, counts.tolist()
    while first < len(number):
        most, end = 0, first
        while end < len(number):
            wider = max(most, -(-number[end] // grain) * grain)
            if end > first and wider * (end + 1 - first) > MOST_KEYS:
                break
            most, end = wider, end + 1
        yield slice(first, end), most
        first = end


def attend_pooled(
    query: Tensor, cache: KVCache, plan: AttentionPlan, pooled: PooledKeys | None, spec: AttentionSpec, rows: int
) -> Tensor:
    """See octavo.ops.pooled_keys."""
    assert not isinstance(plan.window, Chunk), "no model has pooled keys beside chunks"
    positions, table_rows = _tokens(plan)
    first = torch.zeros_like(positions) if plan.window is None else (positions + 1 - plan.window).clamp(min=0)
    near = positions + 1 - first
    counts = near if pooled is None else near + _num_entries(pooled, positions)
    heads, dim = spec.num_heads, cache.dims[0]
    short_heads, short = -heads % ROW_GRAIN, -dim % ROW_GRAIN
    out = torch.zeros(rows, heads, dim, device=query.device)
    for part, room in _together(counts):
        places = torch.arange(room, device=query.device).expand(part.stop - part.start, -1)
        is_near = places < near[part].unsqueeze(1)
        numbers = torch.where(is_near, places + first[part].unsqueeze(1), 0)
        slots = _slots(plan, table_rows[part, None], numbers, 1)
        keys = from_cache(cache.keys.view(-1, cache.keys.shape[-1])[slots], dim)
        seen = places < counts[part].unsqueeze(1)
        if pooled is not None:
            far = _entries(pooled, table_rows[part], (places - near[part].unsqueeze(1)).clamp(min=0), seen, part)
            keys = torch.where(is_near.unsqueeze(2), keys, far)
        keys = functional.pad(torch.where(seen.unsqueeze(2), keys, 0.0), (0, short))
        queries = functional.pad(query[part], (0, short, 0, short_heads))
        bias = torch.where(seen, 0.0, -torch.inf).unsqueeze(1)
        scores = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=spec.scale)
        weights = torch.softmax(scores, -1)
        mixed = grouped_sum(weights, keys)[:, :heads, :dim]
        if spec.sinks is not None:
            # The heaviest weight is 1 over the sum of all, in units of itself.
            peak, heaviest = scores[:, :heads].amax(-1), weights[:, :heads].amax(-1)
            mixed = mixed / (torch.exp(spec.sinks - peak) * heaviest + 1.0).unsqueeze(-1)
        out[part] = mixed
    return out


def _num_entries(pooled: PooledKeys, positions: Tensor) -> Tensor:
    """How many entries each token sees."""
    if pooled.selected is None:
        return (positions + 1) // pooled.ratio
    return (pooled.selected[: len(positions)] != NO_KEY).sum(-1)


def _entries(pooled: PooledKeys, table_rows: Tensor, places: Tensor, seen: Tensor, part: slice) -> Tensor:
    """`[tokens, room, dim]` float32: the entries at these places among those that each token sees."""
    if pooled.selected is not None:
        places = pooled.selected[part].long().gather(1, places.clamp(max=pooled.selected.shape[1] - 1))
    numbers = torch.where(seen, places, 0).clamp(min=0)
    rows = pooled.cache.keys.view(-1, pooled.cache.keys.shape[-1])
    return from_cache(rows[_slots(pooled.plan, table_rows.unsqueeze(1), numbers, pooled.ratio)], pooled.cache.dims[0])


class TorchPooledAttention:
    """The reference's operations of octavo.ops.pooled_keys.PooledAttention."""

    def rotate_tail(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        interleaved: bool,
        dtype: torch.dtype = torch.float32,
        backwards: bool = False,
    ) -> Tensor:
        return rotate_tail(x, angles, interleaved, dtype, backwards)

    def pool_keys(self, cache: KVCache, plan: AttentionPlan, spec: PoolSpec) -> Tensor:
        return pool_keys(cache, plan, spec)

    def store_pooled(self, keys: Tensor, cache: KVCache, plan: AttentionPlan, ratio: int) -> None:
        store_pooled(keys, cache, plan, ratio)

    def attend_pooled(
        self,
        query: Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        pooled: PooledKeys | None,
        spec: AttentionSpec,
        rows: int,
    ) -> Tensor:
        return attend_pooled(query, cache, plan, pooled, spec, rows)
