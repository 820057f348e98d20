"""DBRX (Databricks 2024): clipped queries, keys and values, fine experts in fused tensors."""

from functools import partial
from typing import Any

from torch import Tensor

from octavo.architectures.decoder import decoder, moe
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_config import make_rope
from octavo.ops import RouterSpec
from octavo.parts import Attention, CausalLM, Clip, GatedMLP, LayerNorm, Names, PreNorm, stacked

MLP = "layers.{i}.mlp"


def names(experts: int) -> Names:
    published = "transformer.blocks.{i}.ffn"

    def unstack(weight: Tensor) -> Tensor:
        return weight.reshape(experts, -1, weight.shape[-1])

    def unstack_down(weight: Tensor) -> Tensor:
        return unstack(weight).transpose(1, 2)

    return Names(
        {
            "transformer.wte": "embed",
            "transformer.blocks.{i}.norm_attn_norm.norm_1": "layers.{i}.attn_norm",
            "transformer.blocks.{i}.norm_attn_norm.attn.Wqkv": "layers.{i}.attn.qkv",
            "transformer.blocks.{i}.norm_attn_norm.attn.out_proj": "layers.{i}.attn.o",
            "transformer.blocks.{i}.norm_attn_norm.norm_2": "layers.{i}.mlp_norm",
            f"{published}.router.layer": f"{MLP}.router",
            f"{published}.experts.mlp.{{w1|v1}}": stacked(
                MLP + ".experts.{e}.gate_up.{gate|up}.weight", unstack, full_name=True
            ),
            f"{published}.experts.mlp.w2": stacked(MLP + ".experts.{e}.down.weight", unstack_down, full_name=True),
            "transformer.norm_f": "norm",
            "lm_head": "head",
        },
        prefix="transformer.",
    )


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    return {
        "d_model": shared["hidden_size"],
        "n_heads": shared["num_attention_heads"],
        "n_layers": shared["num_hidden_layers"],
        "max_seq_len": shared["max_position_embeddings"],
        "attn_config": {
            "kv_n_heads": shared["num_key_value_heads"],
            "clip_qkv": shared.get("clip_qkv"),
            "rope_theta": shared["rope_theta"],
        },
        "ffn_config": {
            "ffn_hidden_size": shared["intermediate_size"],
            "moe_num_experts": shared["num_experts"],
            "moe_top_k": shared["num_experts_per_tok"],
        },
    }


@architecture(
    "DbrxForCausalLM",
    about="DBRX",
    examples=("databricks/dbrx-base", "databricks/dbrx-instruct"),
    gguf=GGUFFormat(
        "dbrx",
        config=_from_gguf,
        names={
            "transformer.blocks.{i}.ffn.experts.{e}.mlp.{w1|v1}": MLP + ".experts.{e}.gate_up.{gate|up}",
            "transformer.blocks.{i}.ffn.experts.{e}.mlp.w2": MLP + ".experts.{e}.down",
        },
    ),
)
def dbrx(c: Config) -> CausalLM:
    hidden_size, num_heads = c.d_model, c.n_heads
    settings, experts = c.section("attn_config"), c.section("ffn_config")
    head_dim, limit = hidden_size // num_heads, settings.get("clip_qkv")
    attn = partial(
        Attention,
        hidden_size,
        num_heads,
        settings.kv_n_heads,
        head_dim,
        rope=make_rope(c, head_dim, base=settings.get("rope_theta")),
        qk_transform=None if limit is None else Clip(limit),
    )
    count, top_k = experts.moe_num_experts, experts.moe_top_k
    activation = experts.section("ffn_act_fn").get("name", "silu")
    expert = partial(GatedMLP, hidden_size, experts.ffn_hidden_size, activation)
    router = RouterSpec(top_k, norm=experts.get("moe_normalize_expert_weights"))
    norm = partial(LayerNorm, hidden_size, 1e-5, bias=False)
    mlp = moe(c, expert, count, router)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(), mlp=mlp()), names(count))
