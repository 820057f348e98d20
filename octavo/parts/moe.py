"""Mixture of experts: a router chooses a few feed-forwards for each token."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.ops import Backend, RouterSpec
from octavo.parts.batch import Batch
from octavo.parts.linear_layer import ExpertLinear, Linear
from octavo.parts.mlp import MLP, GatedMLP
from octavo.parts.split import Split

FeedForward = GatedMLP | MLP


def softmax_then_topk(top_k: int, renormalize: bool = True) -> RouterSpec:
    """Mixtral's router: the `top_k` largest probabilities, scaled to a sum of one where `renormalize`."""
    return RouterSpec(top_k, norm=1.0 if renormalize else None)


class MoE(nn.Module):
    """The weighted sum of the chosen experts.

    Args:
        router: an exact Linear from the stream to a logit for each expert.
        experts: feed-forwards that are all alike but for their weights.
        route: chooses among them by the router's logits, and where it is biased by `choice_bias`.
    """

    float32_parameters = True

    def __init__(self, router: Linear, experts: Sequence[FeedForward], route: RouterSpec) -> None:
        super().__init__()
        route.check(len(experts))
        self.router, self.route = router, route
        self.choice_bias = nn.Parameter(torch.empty(len(experts)), requires_grad=False) if route.is_biased else None
        self.experts = nn.ModuleList(experts)
        for linear in (part for expert in experts for part in expert.modules() if isinstance(part, Linear)):
            linear.share = route.top_k / len(experts)
        self._inner = experts[0].inner
        self._is_split = False
        self._all_reduce: Callable[[Tensor], Tensor] | None = None

    def split(self, split: Split) -> None:
        """See octavo.parts.split: each expert's inner values are divided, and the ranks' results summed at the end."""
        for feed_forward in self.feed_forwards():
            feed_forward.split(split, is_summed=False)
        self._is_split = True

    def feed_forwards(self) -> Iterator[FeedForward]:
        """All whose results are in the sum."""
        yield from self.experts  # type: ignore[misc]

    def prepare(self, backend: Backend) -> None:
        self._backend = backend
        self._first = ExpertLinear([e.first for e in self.experts], backend)  # type: ignore[misc]
        self._down = ExpertLinear([e.down for e in self.experts], backend)  # type: ignore[misc]
        self._all_reduce = backend.all_reduce if self._is_split else None

    def enable_adapters(self, backend: Backend, slots: int) -> None:
        """Of all experts at once: their products are computed together."""
        for layer in (self._first, self._down):
            layer.enable_adapters(backend, slots)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self.summed(self.mixed(x, batch))

    def choose(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Weights in float32, and numbers, of the experts for rows `x` that are not padding: `[rows, top_k]` each."""
        logits = self._backend.floats(self.router(x, batch)[: batch.num_tokens])
        return self._backend.route(logits, self.route, self.choice_bias)

    def mixed(self, x: Tensor, batch: Batch) -> Tensor:
        """The result, or this rank's terms of it: `[rows, hidden_size]`."""
        return self.of(x, x, batch)

    def summed(self, total: Tensor) -> Tensor:
        """The sum of the ranks' terms."""
        return total if self._all_reduce is None else self._all_reduce(total)

    def of(self, x: Tensor, values: Tensor, batch: Batch) -> Tensor:
        """What the experts that rows `x` choose make of the rows' `values`, or this rank's terms of it."""
        return self.of_chosen(values, *self.choose(x, batch), batch)

    def of_chosen(self, x: Tensor, weights: Tensor, chosen: Tensor, batch: Batch) -> Tensor:
        """`mixed`, of experts that are chosen already. Padding chooses nobody."""
        rows = batch.num_tokens
        inner = self._inner(self._first(x[:rows], chosen, batch), self._backend)
        total = self._backend.weighted_sum(self._down(inner, chosen, batch), weights, self.route.top_k)
        return self.padded(total, x.shape[0])

    def padded(self, total: Tensor, rows: int) -> Tensor:
        """`total` with zeros for padding, `[rows, hidden_size]`."""
        return total if rows == len(total) else functional.pad(total, (0, 0, 0, rows - len(total)))
