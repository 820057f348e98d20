"""LFM2 (Liquid AI 2025): gated short convolutions, and a few layers of attention; dense, and with experts."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from octavo.architectures.decoder import NAMES, attention, decoder, moe
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader, has
from octavo.architectures.mamba import drop_middle
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.ops import RouterSpec
from octavo.parts import CausalLM, GatedMLP, PreNorm, QKNorm, RMSNorm, ShortConvolution, parameter

MIXER, MLP = "layers.{i}.attn", "layers.{i}.mlp"
LFM2_NAMES = NAMES.replacing(
    {
        "model.layers.{i}.operator_norm": "layers.{i}.attn_norm",
        "model.layers.{i}.self_attn.{q|k}_layernorm": MIXER + ".qk_transform.{q|k}",
        "model.layers.{i}.self_attn.out_proj": MIXER + ".o",
        "model.layers.{i}.conv.{in|out}_proj": MIXER + ".{in|out}_proj",
        "model.layers.{i}.conv.conv.weight": parameter(MIXER + ".conv.weight", drop_middle),
        "model.layers.{i}.conv.conv.bias": parameter(MIXER + ".conv.bias"),
        "model.layers.{i}.ffn_norm": "layers.{i}.mlp_norm",
        "model.layers.{i}.feed_forward.{w1|w3}": MLP + ".gate_up.{gate|up}",
        "model.layers.{i}.feed_forward.w2": MLP + ".down",
        "model.layers.{i}.feed_forward.gate": MLP + ".router",
        "model.layers.{i}.feed_forward.expert_bias": parameter(MLP + ".choice_bias"),
        "model.layers.{i}.feed_forward.experts.{e}.{w1|w3}": MLP + ".experts.{e}.gate_up.{gate|up}",
        "model.layers.{i}.feed_forward.experts.{e}.w2": MLP + ".experts.{e}.down",
        "model.embedding_norm": "norm",
    }
)


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    counts: list[int] = shared["num_key_value_heads"]
    return {
        "layer_types": ["full_attention" if count else "conv" for count in counts],
        "num_key_value_heads": max(counts),
        "norm_eps": shared["rms_norm_eps"],
        "conv_L_cache": file.value("shortconv.l_cache"),
        "conv_bias": has(file, "shortconv.conv.bias"),
        "block_auto_adjust_ff_dim": False,  # it is adjusted already
    }


def _moe_from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    has_bias = has(file, "exp_probs_b.bias")
    dense = file.value("leading_dense_block_count", 0)
    return {**_from_gguf(shared, file), "num_dense_layers": dense, "use_expert_bias": has_bias}


def body(c: Config, kinds: Sequence[str], mlp: Callable[[int], nn.Module]) -> CausalLM:
    """Convolutions or attention, as `kinds` says of each layer, and feed-forwards by the layer's index."""
    norm = partial(RMSNorm, c.hidden_size, c.norm_eps)
    head_norm = partial(RMSNorm, c.get("head_dim", c.hidden_size // c.num_attention_heads), c.norm_eps)
    attn = attention(c, qk_transform=lambda: QKNorm(head_norm(), head_norm()))

    def layer(i: int) -> PreNorm:
        is_conv = kinds[i] == "conv"
        mixer = ShortConvolution(c.hidden_size, c.conv_L_cache, c.conv_bias) if is_conv else attn(i)
        return PreNorm(norm, attn=mixer, mlp=mlp(i))

    tied = c.first("tie_embedding", "tie_word_embeddings")
    return decoder(c, norm, layer, LFM2_NAMES, tied=tied)


@architecture(
    "Lfm2ForCausalLM",
    about="LFM2",
    examples=("LiquidAI/LFM2-1.2B", "LiquidAI/LFM2.5-1.2B-Instruct"),
    gguf=GGUFFormat("lfm2", config=_from_gguf),
)
def lfm2(c: Config) -> CausalLM:
    layers = range(c.num_hidden_layers)
    attention_at = c.get("full_attn_idxs", list(layers))
    kinds = ["full_attention" if i in attention_at else "conv" for i in layers]
    size = c.first("block_ff_dim", "intermediate_size")
    if c.block_auto_adjust_ff_dim:
        size = int(2 * size / 3)
        if (factor := c.get("block_ffn_dim_multiplier")) is not None:
            grain = c.block_multiple_of
            size = -(-int(factor * size) // grain) * grain
    return body(c, c.get("layer_types", kinds), lambda i: GatedMLP(c.hidden_size, size, "silu"))


@architecture(
    "Lfm2MoeForCausalLM",
    about="LFM2 MoE",
    examples=("LiquidAI/LFM2-8B-A1B",),
    gguf=GGUFFormat("lfm2moe", config=_moe_from_gguf),
)
def lfm2_moe(c: Config) -> CausalLM:
    route = RouterSpec(
        c.num_experts_per_tok,
        norm=1.0 if c.norm_topk_prob else None,
        eps=1e-6,
        factor=c.routed_scaling_factor,
        scores="sigmoid",
        is_biased=c.use_expert_bias,
    )
    dense = partial(GatedMLP, c.hidden_size, c.intermediate_size, "silu")
    experts = moe(c, partial(GatedMLP, c.hidden_size, c.moe_intermediate_size, "silu"), c.num_experts, route)
    kinds = c.get("layer_types", ["full_attention"] * c.num_hidden_layers)
    return body(c, kinds, lambda i: dense() if i < c.num_dense_layers else experts())
