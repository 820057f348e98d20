"""OLMo hybrid (Team OLMo 2026): gated delta nets with norms before the pieces, and OLMo 2's attention in between."""

from octavo.architectures.decoder import NAMES, attention, decoder, full_width_norms, gated_mlp, rms_norm
from octavo.architectures.mamba import drop_middle
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_settings import FULL, layer_types
from octavo.parts import (
    BranchNorm,
    CausalLM,
    DeltaNet,
    DeltaSizes,
    GatedRMSNorm,
    Into,
    Names,
    PreNorm,
    of_layer,
    parameter,
)

LAYER, NET = "model.layers.{i}.", "model.layers.{i}.linear_attn."
LINEAR = "linear_attention"
DELTA: dict[str, str | Into] = {
    LAYER + "{input_layernorm|attention_layer_norm}": "layers.{i}.{attn_norm|attn_norm}",
    LAYER + "{post_attention_layernorm|feedforward_layer_norm}": "layers.{i}.{mlp_norm|mlp_norm}",
    NET + "{q|k|v|g|b|a}_proj": "layers.{i}.attn.in_proj.{q|k|v|z|b|a}",
    NET + "{q|k|v}_conv1d": Into("layers.{i}.attn.conv.{q|k|v}", drop_middle, cut_freely=True),
    NET + "A_log": parameter("layers.{i}.attn.a_log"),
    NET + "dt_bias": parameter("layers.{i}.attn.dt_bias"),
    NET + "o_norm": "layers.{i}.attn.norm",
    NET + "o_proj": "layers.{i}.attn.out_proj",
}
ATTENTION: dict[str, str | Into] = {  # transformers calls the first as in the other layers when it writes
    LAYER + "{post_attention_layernorm|feedforward_layer_norm}": "layers.{i}.{attn_norm|attn_norm}",
    LAYER + "post_feedforward_layernorm": "layers.{i}.mlp_norm",
}
GATE_EPS = 1e-5
"""Of the gated norm, whatever rms_norm_eps is."""


def delta_net(c: Config) -> DeltaNet:
    heads, key_heads = (c.get(f"linear_num_{of}_heads", c.num_attention_heads) for of in ("value", "key"))
    key_dim = c.get("linear_key_head_dim", int(0.75 * c.hidden_size / key_heads))
    value_dim = c.get("linear_value_head_dim", 2 * key_dim)
    return DeltaNet(
        c.hidden_size,
        DeltaSizes(heads, key_heads, key_dim, value_dim, c.linear_conv_kernel_dim),
        activation=c.hidden_act,
        norm=GatedRMSNorm(value_dim, GATE_EPS, "silu"),
        beta_scale=2.0 if c.linear_allow_neg_eigval else 1.0,
    )


def kinds(c: Config) -> list[str]:
    """Of the layers; by default every fourth has attention, and one at least."""
    every = [LINEAR if i % 4 != 3 else FULL for i in range(c.num_hidden_layers)]
    if FULL not in every:
        every[-1] = FULL
    return layer_types(c, every, (LINEAR, FULL))


def rotates(c: Config) -> bool:
    """Whether attention has positions: not where rope_parameters have null for the base, as the released models do."""
    given: dict[str, object] = c.get("rope_parameters", {})
    return given.get("rope_theta", "left out") is not None


@architecture("OlmoHybridForCausalLM", about="OLMo hybrid", examples=("allenai/Olmo-Hybrid-7B",))
def olmo_hybrid(c: Config) -> CausalLM:
    norm, mlp, types, bias = rms_norm(c), gated_mlp(c), kinds(c), c.attention_bias
    turns = [rotates(c)] * len(types)
    attn = attention(c, qk_transform=full_width_norms(c), rotates=turns, bias=bias, out_bias=bias)

    def layer(i: int) -> PreNorm | BranchNorm:
        if types[i] == LINEAR:
            return PreNorm(norm, attn=delta_net(c), mlp=mlp())
        return BranchNorm(norm, attn=attn(i), mlp=mlp())

    table = dict[str, str | Into]()
    for i, kind in enumerate(types):
        table |= of_layer(DELTA if kind == LINEAR else ATTENTION, i)
    shared = {key: into for key, into in NAMES.table.items() if "_layernorm" not in key}
    return decoder(c, norm, layer, Names({**table, **shared}, NAMES.ignored, "model."))
