"""Which experts each row goes to."""

import torch
from torch import Tensor

from octavo.ops.specs import RouterSpec


def route(logits: Tensor, spec: RouterSpec) -> tuple[Tensor, Tensor]:
    """The chosen experts' weights, float32, and numbers, `[rows, top_k]` each, by `logits` `[rows, experts]`."""
    if spec.noise is not None:
        return _sparse_mixer(logits, spec.top_k, spec.noise)
    scores = torch.softmax(logits, -1)
    if spec.num_groups > 1:
        by_group = scores.view(scores.shape[0], spec.num_groups, -1)
        groups = by_group.amax(-1).topk(spec.top_groups, dim=-1).indices
        kept = torch.zeros(by_group.shape[:-1], device=scores.device).scatter(-1, groups, 1.0)
        scores = (by_group * kept.unsqueeze(-1)).flatten(-2)
    weights, experts = scores.topk(spec.top_k, dim=-1)
    if spec.norm is not None:
        norm = weights.sum(-1, keepdim=True) if spec.norm == 1 else weights.norm(p=spec.norm, dim=-1, keepdim=True)
        weights = weights / (norm + spec.eps)
    return weights * spec.factor, experts


def _sparse_mixer(logits: Tensor, top_k: int, noise: float) -> tuple[Tensor, Tensor]:
    weights, chosen = [], []
    left = logits
    for _ in range(top_k):
        best, expert = left.max(-1, keepdim=True)
        worse = (best - logits) / logits.abs().maximum(best) > 2 * noise
        weights.append(torch.softmax(left.masked_fill(worse, -torch.inf), -1).gather(-1, expert))
        chosen.append(expert)
        left = left.scatter(-1, expert, -torch.inf)
    return torch.cat(weights, -1), torch.cat(chosen, -1)
