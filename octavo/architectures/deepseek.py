"""DeepSeek-MoE (Dai et al. 2024): Llama's body with fine experts, and a wide one that every token shares."""

from functools import partial

from torch import Tensor, nn

from octavo.architectures.gguf_format import UNPERMUTE, GGUFFormat
from octavo.architectures.llama import ATTENTION_NAMES, IGNORED, MLP_NAMES, gated_mlp, llama_body
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import Batch, CausalLM, GatedMLP, MoE, Names, softmax_then_topk

MOE_NAMES = {
    "model.layers.{i}.mlp.gate": "layers.{i}.mlp.inner.routed.router",
    "model.layers.{i}.mlp.experts.{e}.{gate|up}_proj": "layers.{i}.mlp.inner.routed.experts.{e}.gate_up.{gate|up}",
    "model.layers.{i}.mlp.experts.{e}.down_proj": "layers.{i}.mlp.inner.routed.experts.{e}.down",
    "model.layers.{i}.mlp.shared_experts.{gate|up}_proj": "layers.{i}.mlp.inner.shared.gate_up.{gate|up}",
    "model.layers.{i}.mlp.shared_experts.down_proj": "layers.{i}.mlp.inner.shared.down",
}
NAMES = Names({**ATTENTION_NAMES, **MLP_NAMES, **MOE_NAMES}, IGNORED, prefix="model.")


class RoutedAndShared(nn.Module):
    """`routed(x) + shared(x)`; no shared expert where there is none."""

    def __init__(self, routed: MoE, shared: GatedMLP | None) -> None:
        super().__init__()
        self.routed, self.shared = routed, shared

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        routed: Tensor = self.routed(x, batch)
        return routed if self.shared is None else routed + self.shared(x, batch)


@architecture(
    "DeepseekForCausalLM",
    about="DeepSeek, DeepSeek-MoE",
    examples=("deepseek-ai/deepseek-llm-67b-base", "deepseek-ai/deepseek-moe-16b-base"),
    gguf=GGUFFormat("deepseek", undo=UNPERMUTE),
)
def deepseek(c: Config) -> CausalLM:
    hidden_size, activation = c.hidden_size, c.hidden_act
    expert = partial(GatedMLP, hidden_size, c.moe_intermediate_size, activation)
    route = softmax_then_topk(c.get("num_experts_per_tok", 0), c.norm_topk_prob)
    count, shared, bias = c.get("n_routed_experts", 0), c.get("n_shared_experts", 0), c.attention_bias
    first, every = c.first_k_dense_replace, c.moe_layer_freq

    def mlp(layer: int) -> nn.Module:
        if not count or layer < first or layer % every:
            return gated_mlp(c)(layer)
        wide = GatedMLP(hidden_size, shared * c.moe_intermediate_size, activation) if shared else None
        return RoutedAndShared(MoE(hidden_size, [expert() for _ in range(count)], route), wide)

    return llama_body(c, mlp=mlp, names=NAMES, bias=bias, out_bias=bias)
