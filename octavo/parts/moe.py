"""Mixture of experts: a router chooses a few feed-forwards for each token."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.ops import Backend
from octavo.parts.batch import Batch
from octavo.parts.linear_layer import ExpertLinear, Linear
from octavo.parts.mlp import GatedFeedForward

Route = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Router logits [rows, experts] in float32 to the chosen experts' weights and numbers, [rows, top_k] each."""


def softmax_then_topk(top_k: int, renormalize: bool = True) -> Route:
    """Mixtral's router: the `top_k` largest probabilities, scaled to a sum of one where `renormalize`."""

    def route(logits: Tensor) -> tuple[Tensor, Tensor]:
        weights, experts = torch.softmax(logits, -1).topk(top_k, dim=-1)
        return (weights / weights.sum(-1, keepdim=True) if renormalize else weights), experts

    return route


class MoE(nn.Module):
    """The weighted sum of the chosen experts.

    Args:
        router: an exact Linear from the stream to a logit for each expert.
        experts: gated feed-forwards that are all alike but for their weights.
        route: chooses among them by the router's logits.
    """

    def __init__(self, router: Linear, experts: Sequence[GatedFeedForward], route: Route) -> None:
        super().__init__()
        check_route(route, len(experts))
        self.router, self.route = router, route
        self.experts = nn.ModuleList(experts)
        self._combine = experts[0].combine

    def prepare(self, backend: Backend) -> None:
        self._weighted_sum = backend.weighted_sum
        self._gate_up = ExpertLinear([e.gate_up for e in self.experts], backend)  # type: ignore[misc]
        self._down = ExpertLinear([e.down for e in self.experts], backend)  # type: ignore[misc]

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        rows = batch.num_tokens  # padding chooses nobody
        weights, chosen = self.route(self.router(x, batch)[:rows].float())
        inner = self._combine(self._gate_up(x[:rows], chosen, batch))
        total = self._weighted_sum(self._down(inner, chosen, batch), weights)
        return total if rows == x.shape[0] else functional.pad(total, (0, 0, 0, x.shape[0] - rows))


def check_route(route: Route, experts: int) -> None:
    """Raises ValueError where `route` cannot choose among so many `experts`."""
    try:
        chosen = route(torch.zeros(1, experts, device="cpu"))[1].shape[1]
    except (IndexError, RuntimeError) as error:
        raise ValueError(f"the router cannot choose among {experts} experts: {error}") from error
    if not chosen:
        raise ValueError(f"the router chooses none of {experts} experts")
