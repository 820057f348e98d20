"""Choosing tokens from logits: the likeliest, or one drawn by temperature, min_p, top_k and top_p.

A draw is looked up in the distribution of what is left, in the vocabulary's order. So the choice depends on the row and
its number alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.ops.plans import NOT_FINITE, DrawBy

CANDIDATES = 1024
"""A nucleus is looked for among so many of the likeliest tokens before the whole vocabulary is sorted."""
SPAN = 256
"""Tokens in a partial sum when a draw is looked up."""


def sample(logits: Tensor, by: Sequence[DrawBy]) -> Tensor:
    """[rows] int64: a token for each row of `logits` `[rows, vocab]` float32, or NOT_FINITE. Of equals, the first."""
    peak = logits.amax(-1)
    greedy = torch.tensor([b.temperature == 0 for b in by], device=logits.device)
    tokens = logits.argmax(-1)
    if drawn := [i for i, b in enumerate(by) if b.temperature != 0]:
        tokens[drawn] = _draw(logits[drawn], [by[i] for i in drawn])
    non_finite = peak.isnan() | (peak == torch.inf)
    # A row in which nothing is possible has no distribution: its first token stands for it.
    tokens = torch.where((peak == -torch.inf) & ~greedy, 0, tokens)
    return torch.where(non_finite, NOT_FINITE, tokens)


def left_to_draw(logits: Tensor, by: Sequence[DrawBy], chosen: Tensor) -> Tensor:
    """`logits` `[rows, vocab]` as tokens are drawn by them: divided by the temperature, -inf where min_p, top_k and
    top_p leave out.

    Args:
        logits: in float32; rows whose temperature is 0 stay as they are.
        by: of each row.
        chosen: the rows' tokens, which were left `[rows]`.
    """
    left = logits.clone()
    if drawn := [i for i, b in enumerate(by) if b.temperature != 0]:
        of_drawn, own = [by[i] for i in drawn], chosen[drawn]
        scaled, out = _scaled(logits[drawn], of_drawn)
        for row, b in enumerate(of_drawn):
            if (more := _left_out(torch.exp(scaled[row]), b)) is not None:
                out[row] |= more
        # Where a sum lies at the border, another backend's rounding may have left a token more.
        out[torch.arange(len(drawn), device=out.device), own] = False
        heat = torch.tensor([b.temperature for b in of_drawn], device=logits.device).unsqueeze(1)
        left[drawn] = (logits[drawn] / heat).masked_fill_(out, -torch.inf)
    return left


def _scaled(logits: Tensor, by: Sequence[DrawBy]) -> tuple[Tensor, Tensor]:
    """Logits divided by the temperature, below the largest; -inf where min_p leaves out, and where that is."""
    scaled = logits / torch.tensor([b.temperature for b in by], device=logits.device).unsqueeze(1)
    scaled -= scaled.amax(-1, keepdim=True)
    out = torch.zeros_like(scaled, dtype=torch.bool)
    if any(b.min_p for b in by):
        floor = torch.tensor([b.min_p for b in by], device=logits.device).log().unsqueeze(1)
        out = scaled < floor
        scaled.masked_fill_(out, -torch.inf)
    return scaled, out


def _draw(logits: Tensor, by: Sequence[DrawBy]) -> Tensor:
    scaled, _ = _scaled(logits, by)
    weights = torch.exp(scaled)
    for row, b in enumerate(by):
        if (out := _left_out(weights[row], b)) is not None:
            weights[row].masked_fill_(out, 0.0)
    return _look_up(weights.double(), torch.tensor([b.draw for b in by], dtype=torch.float64, device=logits.device))


def _left_out(weights: Tensor, by: DrawBy) -> Tensor | None:
    """Where top_k and top_p leave out `[vocab]`; None for nowhere."""
    if not (0 < by.top_k < len(weights) or by.top_p < 1):
        return None
    vocab = len(weights)
    limit = by.top_k if 0 < by.top_k < vocab else vocab
    whole = weights.sum(dtype=torch.float64)
    if not whole > 0:  # a row that is not a distribution: `sample` says so
        return None
    found = torch.topk(weights, min(CANDIDATES, vocab)).values.sum(dtype=torch.float64)
    if limit <= CANDIDATES or bool(found >= by.top_p * whole):
        # Of equal ones at the border, topk takes any: they are put in order among all that reach it.
        least = torch.topk(weights, min(CANDIDATES, limit)).values[-1]
        ids = (weights >= least).nonzero().squeeze(1)
    else:
        ids = torch.arange(vocab, device=weights.device)
    values, order = weights[ids].sort(descending=True, stable=True)
    ids = ids[order]
    ends = values[:limit].double().cumsum(-1)
    target = by.top_p * (ends[-1] if limit < vocab else whole)
    kept = int((ends - values[: len(ends)] < target).sum()) if by.top_p < 1 else len(ends)
    left_out = torch.ones(vocab, dtype=torch.bool, device=weights.device)
    left_out[ids[: max(1, kept)]] = False
    return left_out


def _look_up(weights: Tensor, draws: Tensor) -> Tensor:
    """Where each draw falls in the cumulated distribution, found by partial sums, then inside one of them."""
    short = -weights.shape[1] % SPAN
    spans = torch.nn.functional.pad(weights, (0, short)).view(len(weights), -1, SPAN)
    ends = spans.sum(-1).cumsum(-1)
    target = (draws * ends[:, -1]).unsqueeze(1)
    span = torch.searchsorted(ends, target, right=True).clamp_(max=ends.shape[1] - 1)
    before = torch.where(span > 0, ends.gather(1, (span - 1).clamp(min=0)), 0.0)
    inside = spans.gather(1, span.unsqueeze(-1).expand(-1, -1, SPAN)).squeeze(1).cumsum(-1)
    place = torch.searchsorted(inside, target - before, right=True)
    # Rounding may leave a draw at the very end of its span: take the span's last token that has weight.
    last = (inside < inside[:, -1:]).sum(-1, keepdim=True)
    return (span * SPAN + torch.minimum(place, last)).squeeze(1)
