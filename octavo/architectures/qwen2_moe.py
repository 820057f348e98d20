"""Qwen2-MoE (Qwen Team 2024): Qwen2's body with many experts, and one that every token shares behind a gate."""

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor, nn

from octavo.architectures.decoder import NAMES, attention, decoder, gated_mlp, rms_norm
from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.qwen2 import windows
from octavo.architectures.registry import architecture
from octavo.ops import RouterSpec
from octavo.parts import Batch, CausalLM, GatedMLP, Linear, MoE, PreNorm, softmax_then_topk
from octavo.parts.moe import FeedForward

QWEN2_MOE_NAMES = NAMES.extended(
    {
        "model.layers.{i}.mlp.shared_expert.{gate|up}_proj": "layers.{i}.mlp.shared.gate_up.{gate|up}",
        "model.layers.{i}.mlp.shared_expert.down_proj": "layers.{i}.mlp.shared.down",
        "model.layers.{i}.mlp.shared_expert_gate": "layers.{i}.mlp.shared_gate",
    }
)


class MoEWithGatedShared(MoE):
    """Experts, and one that serves every token, times `sigmoid(shared_gate(x))`."""

    def __init__(self, router: Linear, experts: Sequence[GatedMLP], route: RouterSpec, shared: GatedMLP) -> None:
        super().__init__(router, experts, route)
        self.shared = shared
        self.shared_gate = Linear(router.inputs, 1, exact=True)

    def feed_forwards(self) -> Iterator[FeedForward]:
        yield from super().feed_forwards()
        yield self.shared

    def mixed(self, x: Tensor, batch: Batch) -> Tensor:
        routed, gate = super().mixed(x, batch), self.shared_gate(x, batch)
        return self._backend.add_gated(routed, self.shared(x, batch), gate)


@architecture(
    "Qwen2MoeForCausalLM",
    about="Qwen1.5-MoE, Qwen2-MoE",
    examples=("Qwen/Qwen1.5-MoE-A2.7B", "Qwen/Qwen1.5-MoE-A2.7B-Chat"),
    gguf=GGUFFormat("qwen2moe"),
)
def qwen2_moe(c: Config) -> CausalLM:
    gated = partial(GatedMLP, c.hidden_size, activation=c.hidden_act)
    size, shared_size, dense = c.moe_intermediate_size, c.shared_expert_intermediate_size, gated_mlp(c)
    route = softmax_then_topk(c.num_experts_per_tok, c.norm_topk_prob)
    count, every = c.num_experts, c.decoder_sparse_step
    plain: list[int] = c.get("mlp_only_layers", [])

    def mlp(layer: int) -> nn.Module:
        if layer in plain or count == 0 or (layer + 1) % every:
            return dense()
        router, experts = Linear(c.hidden_size, count, exact=True), [gated(size) for _ in range(count)]
        return MoEWithGatedShared(router, experts, route, gated(shared_size))

    slides = windows(c, lambda layer: layer % 2 == 0 and layer < c.max_window_layers)
    norm, attn = rms_norm(c), attention(c, window=slides, bias=c.qkv_bias)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp(i)), QWEN2_MOE_NAMES)
