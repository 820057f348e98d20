"""Attention in which all queries of a run see all of its keys: encoders, towers, cross-attention of towers."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from octavo.ops.plans import FullRun
from octavo.ops.specs import DistanceBias, PositionScores
from octavo.ops.torch.products import ROW_GRAIN, grouped_sum

QUERY_TILE = 128
"""Most queries of one run whose scores are there at a time."""


def full_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    runs: Sequence[FullRun],
    bias: DistanceBias | PositionScores | None = None,
) -> Tensor:
    """See octavo.ops.backend."""
    group, dtype = query.shape[1] // key.shape[1], query.dtype
    query, key, value = query.float(), key.float(), value.float()
    if group > 1:
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    out = query.new_zeros(*query.shape[:2], value.shape[2])
    for first, count, first_key, keys in runs:
        if not count or not keys:
            continue
        asks, seen = slice(first, first + count), slice(first_key, first_key + keys)
        own = bias
        if isinstance(bias, PositionScores):
            of_queries = None if bias.query is None else bias.query[asks]
            own = PositionScores(of_queries, None if bias.key is None else bias.key[seen], bias.numbers, bias.origin)
        out[asks] = _attend(query[asks], key[seen], value[seen], scale, own)
    return out.to(dtype)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, bias: DistanceBias | PositionScores | None
) -> Tensor:
    """`[queries, heads, value dim]`: each query over all keys, `[keys, heads, dim]`."""
    keys, values = key.permute(1, 2, 0).contiguous(), value.transpose(0, 1).contiguous()
    parts = []
    before = keys.shape[2] - len(query)
    for first in range(0, len(query), QUERY_TILE):
        part = query[first : first + QUERY_TILE]
        short = -part.shape[0] % ROW_GRAIN
        queries = functional.pad(part.transpose(0, 1), (0, 0, 0, short)).contiguous()
        scores = torch.bmm(queries, keys)
        position = torch.arange(first, first + len(part), device=query.device).unsqueeze(1) + before
        distance = torch.arange(keys.shape[2], device=query.device) - position
        if isinstance(bias, PositionScores):
            scores[:, : len(part)] += _with_positions(bias, slice(first, first + len(part)), distance)
        scores.mul_(scale)
        if isinstance(bias, DistanceBias):
            scores[:, : len(part)] += bias.at(distance)
        weights = torch.softmax(scores, -1)
        parts.append(grouped_sum(weights, values)[:, : part.shape[0]].transpose(0, 1))
    return torch.cat(parts)


def _with_positions(scores: PositionScores, queries: slice, distance: Tensor) -> Tensor:
    """`[heads, queries, keys]`: what joins the scores of some queries of a run at `distance` `[queries, keys]`."""
    number = scores.numbers[(distance + scores.origin).clamp(0, len(scores.numbers) - 1)]
    parts = []
    if scores.query is not None:
        of_heads = scores.query[queries].transpose(0, 1)
        parts.append(of_heads.gather(2, number.expand(of_heads.shape[0], -1, -1)))
    if scores.key is not None:
        of_heads = scores.key.transpose(0, 1)
        parts.append(of_heads.gather(2, number.t().expand(of_heads.shape[0], -1, -1)).transpose(1, 2))
    return sum(parts[1:], start=parts[0])
