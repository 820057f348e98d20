"""Which experts each row goes to."""

import torch
from torch import Tensor

from octavo.ops.specs import RouterSpec
from octavo.ops.torch.activations import sigmoid, softplus


def route(
    logits: Tensor, spec: RouterSpec, bias: Tensor | None = None, chosen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The chosen experts' weights, and their numbers, `[rows, top_k]` each, by `logits` `[rows, experts]`.

    `bias` `[experts]` is added to the scores that choose, and not to the weights. `chosen` has the numbers where
    something else has chosen. Of equal experts, and of equal groups, the first are chosen.
    """
    if chosen is not None:
        return _weights(_scores(logits, spec.scores).gather(-1, chosen), spec), chosen
    if spec.noise is not None:
        return _sparse_mixer(logits, spec.top_k, spec.noise)
    scores = _scores(logits, spec.scores)
    choice = scores if bias is None else scores + bias
    if spec.num_groups > 1:
        by_group = choice.view(choice.shape[0], spec.num_groups, -1)
        ranks = by_group.topk(min(spec.group_best, by_group.shape[-1]), dim=-1).values.sum(-1)
        _, groups = _largest(ranks, spec.top_groups)
        left_out = torch.ones(ranks.shape, dtype=torch.bool, device=ranks.device).scatter(-1, groups, False)
        choice = by_group.masked_fill(left_out.unsqueeze(-1), -torch.inf).flatten(-2)
    best, experts = _largest(choice, spec.top_k)
    weights = scores.gather(-1, experts).masked_fill(best == -torch.inf, 0.0)
    return _weights(weights, spec), experts


def _largest(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `topk`, which takes any of equals."""
    values, places = x.sort(dim=-1, descending=True, stable=True)
    return values[:, :count].contiguous(), places[:, :count].contiguous()


def _weights(weights: Tensor, spec: RouterSpec) -> Tensor:
    """Of the chosen experts' scores."""
    if spec.norm is not None:
        norm = weights.sum(-1, keepdim=True) if spec.norm == 1 else weights.norm(p=spec.norm, dim=-1, keepdim=True)
        weights = weights / (norm.clamp(min=spec.min_norm) + spec.eps)
    return weights * spec.factor


def _scores(logits: Tensor, kind: str) -> Tensor:
    if kind == "softmax":
        return torch.softmax(logits, -1)
    if kind == "logits":
        return logits
    return sigmoid(logits) if kind == "sigmoid" else softplus(logits).sqrt()


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
