"""Qwen3-MoE (Qwen Team 2025): Llama's body with norms of each head, and many experts; Qwen3-VL-MoE's text model."""

from functools import partial
from typing import Any

from torch import nn

from octavo.architectures.decoder import NAMES, attention, decoder, gated_mlp, head_norms, moe, rms_norm
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import CausalLM, GatedMLP, Names, PreNorm, softmax_then_topk, stacked

EXPERT = "layers.{i}.mlp.experts.{e}."
STACKED_NAMES = NAMES.extended(
    {
        "model.layers.{i}.mlp.experts.gate_up_proj": stacked(
            EXPERT + "gate_up.weight", lambda w: w.transpose(1, 2), full_name=True
        ),
        "model.layers.{i}.mlp.experts.down_proj": stacked(
            EXPERT + "down.weight", lambda w: w.transpose(1, 2), full_name=True
        ),
    }
)
VL_NAMES = (
    STACKED_NAMES.renamed("model.", "model.language_model.")
    .spelled({"language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head."})
    .leaving_out("model.visual.", "visual.")
)


def body(c: Config, names: Names) -> CausalLM:
    """Experts on every decoder_sparse_step-th layer, but for mlp_only_layers."""
    expert = partial(GatedMLP, c.hidden_size, c.moe_intermediate_size, c.hidden_act)
    count, every, dense = c.num_experts, c.decoder_sparse_step, gated_mlp(c)
    sparse = moe(c, expert, count, softmax_then_topk(c.num_experts_per_tok, c.norm_topk_prob)) if count else dense
    plain: list[int] = c.get("mlp_only_layers", [])

    def mlp(layer: int) -> nn.Module:
        return dense() if layer in plain or (layer + 1) % every else sparse()

    window, bias = c.get("sliding_window") if c.get("use_sliding_window") else None, c.attention_bias
    norm = rms_norm(c)
    attn = attention(c, window=window, qk_transform=head_norms(c), bias=bias, out_bias=bias)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp(i)), names)


def normed_weights(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    """What files leave out, since all published models have it."""
    return {"norm_topk_prob": True}


@architecture(
    "Qwen3MoeForCausalLM",
    about="Qwen3 MoE, Qwen3-Coder",
    examples=("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-235B-A22B", "Qwen/Qwen3-Coder-30B-A3B-Instruct"),
    gguf=GGUFFormat("qwen3moe", config=normed_weights),
)
def qwen3_moe(c: Config) -> CausalLM:
    return body(c, NAMES)


@architecture(
    "Qwen3VLMoeForConditionalGeneration",
    about="Qwen3-VL MoE (text)",
    examples=("Qwen/Qwen3-VL-30B-A3B-Instruct",),
    gguf=GGUFFormat("qwen3vlmoe", config=normed_weights, section="text_config"),
)
def qwen3_vl_moe(c: Config) -> CausalLM:
    """Its language model. Positions on three axes are those of plain rope where there are no pictures."""
    text = c.section("text_config")
    tied = c.first("tie_word_embeddings", default=text.get("tie_word_embeddings", False))
    axes = {"mrope_section", "mrope_interleaved"}
    plain: dict[str, Any] = {
        key: {name: value for name, value in text.get(key).items() if name not in axes}
        for key in ("rope_scaling", "rope_parameters")
        if text.get(key)
    }
    return body(text.replace(tie_word_embeddings=tied, **plain), VL_NAMES)
