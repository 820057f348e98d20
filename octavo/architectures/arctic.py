"""Snowflake Arctic (2024): Llama's body where every other layer has experts beside a small dense feed-forward."""

from functools import partial

from torch import Tensor, nn

from octavo.architectures.gguf_format import UNPERMUTE, GGUFFormat
from octavo.architectures.llama import ATTENTION_NAMES, IGNORED, llama_body
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import Batch, Block, CausalLM, GatedMLP, MoE, Names, Residual, RMSNorm, softmax_then_topk

MOE = "model.layers.{i}.block_sparse_moe"
NAMES = Names(
    {
        **ATTENTION_NAMES,
        f"{MOE}.mlp.{{w1|w3}}": "layers.{i}.mlp.inner.gate_up.{gate|up}",
        f"{MOE}.mlp.w2": "layers.{i}.mlp.inner.down",
        f"{MOE}.gate": "layers.{i}.mlp.inner.router",
        f"{MOE}.experts.{{e}}.{{w1|w3}}": "layers.{i}.mlp.inner.experts.{e}.gate_up.{gate|up}",
        f"{MOE}.experts.{{e}}.w2": "layers.{i}.mlp.inner.experts.{e}.down",
        "model.layers.{i}.residual_layernorm": "layers.{i}.dense.norm",
        "model.layers.{i}.residual_mlp.{w1|w3}": "layers.{i}.dense.inner.gate_up.{gate|up}",
        "model.layers.{i}.residual_mlp.w2": "layers.{i}.dense.inner.down",
    },
    IGNORED,
    prefix="model.",
)


class DenseBesideExperts(nn.Module):
    """Attention, then a dense feed-forward of its result beside experts of the layer's own input."""

    def __init__(self, attention: Residual, dense: Residual, mlp: Residual) -> None:
        super().__init__()
        self.attention, self.dense, self.mlp = attention, dense, mlp

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self.dense(self.attention(x, batch), batch) + self.mlp.branch(x, batch)  # type: ignore[no-any-return]


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
    hidden_size = c.hidden_size
    feed_forward = partial(GatedMLP, hidden_size, activation=c.hidden_act)
    count, top_k = c.num_local_experts, c.num_experts_per_tok
    every: int = c.moe_layer_frequency
    parallel: bool = c.parallel_attn_mlp_res

    def has_experts(i: int) -> bool:
        return (i + 1) % every == 0

    def mlp(i: int) -> nn.Module:
        if not has_experts(i):
            return feed_forward(c.intermediate_size)
        experts = [feed_forward(c.intermediate_size) for _ in range(count)]
        return MoE(hidden_size, experts, softmax_then_topk(top_k, renormalize=top_k > 1))

    def layer(i: int, attention: Residual, mlp: Residual) -> nn.Module:
        if parallel and has_experts(i):
            return DenseBesideExperts(
                attention, Residual(RMSNorm(hidden_size, c.rms_norm_eps), feed_forward(hidden_size)), mlp
            )
        return Block(attention=attention, mlp=mlp)

    return llama_body(
        c,
        mlp=mlp,
        names=NAMES,
        layer=layer,
        window=lambda i: c.get("sliding_window"),
    )
