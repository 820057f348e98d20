"""DeepSeek-MoE (Dai et al. 2024): Llama's body with fine experts, and a wide one that every token shares."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import Tensor, nn

from octavo.architectures.decoder import NAMES, attention, decoder, gated_mlp, rms_norm
from octavo.architectures.gguf_format import UNPERMUTE, GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.ops import RouterSpec
from octavo.parts import Batch, CausalLM, GatedMLP, Linear, MoE, PreNorm, softmax_then_topk
from octavo.parts.moe import FeedForward

DEEPSEEK_NAMES = NAMES.extended(
    {
        "model.layers.{i}.mlp.shared_experts.{gate|up}_proj": "layers.{i}.mlp.shared.gate_up.{gate|up}",
        "model.layers.{i}.mlp.shared_experts.down_proj": "layers.{i}.mlp.shared.down",
    }
)


class MoEWithShared(MoE):
    """Experts, and one that serves every token, if there is one."""

    def __init__(self, router: Linear, experts: Sequence[GatedMLP], route: RouterSpec, shared: GatedMLP | None) -> None:
        super().__init__(router, experts, route)
        self.shared = shared

    def feed_forwards(self) -> Iterator[FeedForward]:
        yield from super().feed_forwards()
        if self.shared is not None:
            yield self.shared

    def mixed(self, x: Tensor, batch: Batch) -> Tensor:
        routed = super().mixed(x, batch)
        return routed if self.shared is None else self._backend.add(routed, self.shared(x, batch))


def feed_forwards(c: Config, make_route: Callable[[Config], RouterSpec]) -> Callable[[int], nn.Module]:
    """Makes the feed-forward of the layer of a given index, with experts or without."""
    expert, dense = partial(GatedMLP, c.hidden_size, activation=c.hidden_act), gated_mlp(c)
    count, shared, size = c.get("n_routed_experts", 0), c.get("n_shared_experts", 0), c.moe_intermediate_size
    first, every, route = c.first_k_dense_replace, c.moe_layer_freq, make_route(c) if count else None

    def make(layer: int) -> nn.Module:
        if route is None or layer < first or layer % every:
            return dense()
        router, experts = Linear(c.hidden_size, count, exact=True), [expert(size) for _ in range(count)]
        return MoEWithShared(router, experts, route, expert(shared * size) if shared else None)

    return make


@architecture(
    "DeepseekForCausalLM",
    about="DeepSeek, DeepSeek-MoE",
    examples=("deepseek-ai/deepseek-llm-67b-base", "deepseek-ai/deepseek-moe-16b-base"),
    gguf=GGUFFormat("deepseek", undo=UNPERMUTE),
)
def deepseek(c: Config) -> CausalLM:
    norm, bias = rms_norm(c), c.attention_bias
    attn = attention(c, bias=bias, out_bias=bias)
    mlp = feed_forwards(c, lambda c: softmax_then_topk(c.num_experts_per_tok, c.norm_topk_prob))
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp(i)), DEEPSEEK_NAMES)
