"""The layer of Gemma 4: experts beside the feed-forward, a vector of the token, and a number that scales all of it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from octavo.ops import Backend, RouterSpec
from octavo.parts import Batch, GatedMLP, Linear, MoE, PerLayerInput, RMSNorm, SandwichNorm
from octavo.parts.norms import norm_rows


class ScaledExperts(MoE):
    """Experts that read the normed stream, chosen by the stream in another norm, with factors of their own."""

    float32_parameters = True

    def __init__(self, norm: RMSNorm, router_norm: RMSNorm, experts: Sequence[GatedMLP], route: RouterSpec) -> None:
        super().__init__(Linear(norm.size, len(experts), exact=True), experts, route)
        self.norm, self.router_norm = norm, router_norm
        self.expert_scale = nn.Parameter(torch.empty(len(experts)), requires_grad=False)

    def mixed(self, x: Tensor, batch: Batch) -> Tensor:
        weights, chosen = self.choose(norm_rows(self.router_norm, x, batch), batch)
        factors = self._backend.table_rows(self.expert_scale.view(-1, 1), chosen.view(-1)).view(weights.shape)
        return self.of_chosen(norm_rows(self.norm, x, batch), self._backend.multiply(weights, factors), chosen, batch)


class Gemma4Layer(SandwichNorm):
    """Attention and feed-forward, beside which may be experts; then the layer's vector; all times a stored number."""

    def __init__(
        self,
        norm: Callable[[], RMSNorm],
        attn: nn.Module,
        mlp: nn.Module,
        moe: MoE | None = None,
        per_layer: PerLayerInput | None = None,
    ) -> None:
        super().__init__(norm, attn=attn, mlp=mlp)
        self.moe, self.per_layer = moe, per_layer
        self.mlp_out_norm, self.moe_out_norm = (None if moe is None else norm() for _ in range(2))
        self.per_layer_norm = None if per_layer is None else norm()
        self.scalar: nn.Parameter | None = nn.Parameter(torch.empty(1), requires_grad=False)

    def prepare(self, backend: Backend) -> None:
        super().prepare(backend)
        self._scale, self._factor = backend.scale, 1.0 if self.scalar is None else float(self.scalar)

    def branch(self, name: str, x: Tensor, batch: Batch) -> Tensor:
        if name != "mlp" or self.moe is None or self.mlp_out_norm is None or self.moe_out_norm is None:
            return super().branch(name, x, batch)
        dense = norm_rows(self.mlp_out_norm, self.piece(name, self.norm(name, x, batch), batch), batch)
        both = self._add(dense, norm_rows(self.moe_out_norm, self.moe(x, batch), batch))
        return self.norm("mlp_post", both, batch)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        x = super().forward(x, batch)
        if self.per_layer is not None and self.per_layer_norm is not None:
            x = self._add(x, norm_rows(self.per_layer_norm, self.per_layer(x, batch), batch))
        return x if self._factor == 1.0 else self._scale(x, self._factor)
