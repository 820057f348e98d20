"""Snowflake Arctic (2024): Llama's body where every other layer has experts beside a small dense feed-forward."""

from functools import partial

from torch import Tensor, nn

from octavo.architectures.decoder import NAMES, attention, decoder, gated_mlp, moe, rms_norm
from octavo.architectures.gguf_format import UNPERMUTE, GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import Batch, CausalLM, GatedMLP, PreNorm, Wiring, softmax_then_topk

MOE = "model.layers.{i}.block_sparse_moe"
ARCTIC_NAMES = NAMES.replacing(
    {
        f"{MOE}.mlp.{{w1|w3}}": "layers.{i}.mlp.gate_up.{gate|up}",
        f"{MOE}.mlp.w2": "layers.{i}.mlp.down",
        f"{MOE}.gate": "layers.{i}.mlp.router",
        f"{MOE}.experts.{{e}}.{{w1|w3}}": "layers.{i}.mlp.experts.{e}.gate_up.{gate|up}",
        f"{MOE}.experts.{{e}}.w2": "layers.{i}.mlp.experts.{e}.down",
        "model.layers.{i}.residual_layernorm": "layers.{i}.dense_norm",
        "model.layers.{i}.residual_mlp.{w1|w3}": "layers.{i}.dense.gate_up.{gate|up}",
        "model.layers.{i}.residual_mlp.w2": "layers.{i}.dense.down",
    }
)


class DenseBesideExperts(Wiring):
    """Attention, then a dense feed-forward of its result beside experts of the layer's own input."""

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        y = self._add(x, self.branch("attn", x, batch))
        y = self._add(y, self.branch("dense", y, batch))
        return self._add(y, self.branch("mlp", x, batch))


@architecture(
    "ArcticForCausalLM",
    about="Arctic",
    examples=("Snowflake/snowflake-arctic-base", "Snowflake/snowflake-arctic-instruct"),
    gguf=GGUFFormat(
        "arctic",
        config=lambda shared, file: {"parallel_attn_mlp_res": True, "moe_layer_frequency": 1},
        undo=UNPERMUTE,
    ),
)
def arctic(c: Config) -> CausalLM:
    mlp, top_k = gated_mlp(c), c.num_experts_per_tok
    every: int = c.moe_layer_frequency
    parallel: bool = c.parallel_attn_mlp_res
    norm, attn = rms_norm(c), attention(c, window=c.get("sliding_window"))
    experts = moe(c, mlp, c.num_local_experts, softmax_then_topk(top_k, renormalize=top_k > 1))
    dense = partial(GatedMLP, c.hidden_size, c.hidden_size, c.hidden_act)

    def layer(i: int) -> nn.Module:
        if (i + 1) % every:
            return PreNorm(norm, attn=attn(i), mlp=mlp())
        if not parallel:
            return PreNorm(norm, attn=attn(i), mlp=experts())
        return DenseBesideExperts(norm, attn=attn(i), dense=dense(), mlp=experts())

    return decoder(c, norm, layer, ARCTIC_NAMES)
