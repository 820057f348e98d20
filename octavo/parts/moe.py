"""Mixture of experts: a router chooses a few feed-forwards for each token."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.parts.batch import Batch
from octavo.parts.linear import Linear

Choose = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Router logits [rows, experts] in float32 to the chosen experts' weights and numbers, [rows, top_k] each."""


def softmax_then_choose(top_k: int, renormalize: bool = True) -> Choose:
    """Mixtral's router: the `top_k` largest probabilities, scaled to a sum of one where `renormalize`."""

    def choose(logits: Tensor) -> tuple[Tensor, Tensor]:
        weights, experts = torch.softmax(logits, -1).topk(top_k, dim=-1)
        return (weights / weights.sum(-1, keepdim=True) if renormalize else weights), experts

    return choose


class MoE(nn.Module):
    """The weighted sum of the chosen experts.

    Tokens are grouped by expert, and an expert that nobody chose costs nothing. Each token's sum goes over its choices
    in the router's order, so that it does not depend on the other tokens.
    """

    def __init__(self, width: int, experts: list[nn.Module], choose: Choose) -> None:
        super().__init__()
        self.router = Linear(width, len(experts), exact=True)
        self.experts = nn.ModuleList(experts)
        self.choose = choose

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        weights, chosen = self.choose(self.router(x)[: batch.num_tokens].float())  # padding chooses nobody
        rows, top_k = chosen.shape
        flat = chosen.flatten()
        order = torch.argsort(flat, stable=True)
        counts = torch.bincount(flat, minlength=len(self.experts)).tolist()
        outputs = x.new_empty(rows * top_k, x.shape[1])
        first = 0
        for expert, count in enumerate(counts):
            if count:
                places = order[first : first + count]
                outputs[places] = self.experts[expert](x[places // top_k], batch)
                first += count
        terms = outputs.view(rows, top_k, -1).float() * weights.unsqueeze(-1)
        total = terms[:, 0]
        for k in range(1, top_k):
            total = total + terms[:, k]
        return functional.pad(total.to(x.dtype), (0, 0, 0, x.shape[0] - rows))
