"""Llama (Touvron et al. 2023) and the models that share its body: norm, rotary attention, norm, gated feed-forward."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from octavo.architectures.gguf_format import UNPERMUTE, GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import EMBEDS, architecture
from octavo.architectures.rope import make_rope
from octavo.architectures.rope_settings import layer_type
from octavo.parts import Attention, Block, CausalLM, Embedding, GatedMLP, Linear, Names, Residual, RMSNorm

FRAME_NAMES = {
    "model.embed_tokens": "embed",
    "model.layers.{i}.input_layernorm": "layers.{i}.attention.norm",
    "model.layers.{i}.self_attn.o_proj": "layers.{i}.attention.inner.o",
    "model.layers.{i}.post_attention_layernorm": "layers.{i}.mlp.norm",
    "model.norm": "norm",
    "lm_head": "head",
}
ATTENTION_NAMES = {
    **FRAME_NAMES,
    "model.layers.{i}.self_attn.{q|k|v}_proj": "layers.{i}.attention.inner.qkv.{q|k|v}",
}
MLP_NAMES = {
    "model.layers.{i}.mlp.{gate|up}_proj": "layers.{i}.mlp.inner.gate_up.{gate|up}",
    "model.layers.{i}.mlp.down_proj": "layers.{i}.mlp.inner.down",
}
# Buffers of older transformers, recomputed here.
IGNORED = ("model.layers.{i}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")
NAMES = Names({**ATTENTION_NAMES, **MLP_NAMES}, IGNORED, prefix="model.")


def llama_body(
    c: Config,
    *,
    mlp: Callable[[int], nn.Module],
    names: Names = NAMES,
    norm: Callable[[], nn.Module] | None = None,
    layer: Callable[[int, Residual, Residual], nn.Module] = lambda i, attention, mlp: Block(
        attention=attention, mlp=mlp
    ),
    attend: Callable[[int], nn.Module] | None = None,
    window: Callable[[int], int | None] = lambda layer: None,
    rotates: bool = True,
    qk_transform: Callable[[], nn.Module | None] = lambda: None,
    embed_scale: float = 1.0,
    residual_scale: float = 1.0,
    logit_scale: float = 1.0,
    tied_if_absent: bool = False,
    head_bias: bool = False,
    **attention: Any,
) -> CausalLM:
    """The shared body.

    Args:
        mlp: makes the feed-forward of the layer of a given index.
        names: where the published tensors go.
        norm: makes a norm; an RMSNorm of rms_norm_eps if None.
        layer: wires the two residuals of the layer of a given index.
        attend: makes the attention of the layer of a given index, in place of the usual one.
        window: each layer's sliding window.
        rotates: whether positions come by rope.
        qk_transform: makes what changes queries and keys before rope.
        embed_scale, residual_scale, logit_scale: multipliers.
        tied_if_absent: where the config does not say, the head is tied if the checkpoint stores none.
        head_bias: whether the head has a bias.
        attention: more of Attention's arguments (biases, scale).
    """
    num_heads = c.num_attention_heads
    head_dim = c.get("head_dim", c.hidden_size // num_heads)
    kinds = [layer_type(window(i)) for i in range(c.num_hidden_layers)]
    ropes = {kind: make_rope(c, head_dim, layer=kind, layers=kinds) for kind in kinds if rotates and not attend}
    norm = norm or partial(RMSNorm, c.hidden_size, eps=c.rms_norm_eps)

    def usual(i: int) -> nn.Module:
        return Attention(
            c.hidden_size,
            num_heads,
            c.get("num_key_value_heads", num_heads),
            head_dim,
            rope=ropes.get(kinds[i]),
            window=window(i),
            qk_transform=qk_transform(),
            **attention,
        )

    def make_layer(i: int) -> nn.Module:
        first = Residual(norm(), (attend or usual)(i), scale=residual_scale)
        return layer(i, first, Residual(norm(), mlp(i), scale=residual_scale))

    return CausalLM(
        embed=Embedding(c.vocab_size, c.hidden_size, embed_scale),
        layer=make_layer,
        layers=c.num_hidden_layers,
        norm=norm(),
        head=None if c.get("tie_word_embeddings", False) else Linear(c.hidden_size, c.vocab_size, head_bias),
        names=names,
        tied_if_absent=tied_if_absent and "tie_word_embeddings" not in c,
        logit_scale=logit_scale,
    )


def gated_mlp(c: Config, bias: bool = False) -> Callable[[int], GatedMLP]:
    return lambda layer: GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias)


@architecture(
    "LlamaForCausalLM",
    "LLaMAForCausalLM",
    "YiForCausalLM",
    about="Llama 3.1, Llama 3, Llama 2, LLaMA, Yi, SmolLM",
    examples=("meta-llama/Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-2-70b-hf", "01-ai/Yi-34B"),
    gguf=GGUFFormat("llama", undo=UNPERMUTE, when=lambda file: not file.value("expert_count")),
)
@architecture("LlamaModel", about="Llama-based embedders", examples=("intfloat/e5-mistral-7b-instruct",), tasks=EMBEDS)
def llama(c: Config) -> CausalLM:
    bias = c.attention_bias
    return llama_body(c, bias=bias, out_bias=bias, mlp=gated_mlp(c, c.mlp_bias))


@architecture(
    "AquilaForCausalLM", "AquilaModel", about="Aquila, Aquila2", examples=("BAAI/Aquila-7B", "BAAI/AquilaChat-7B")
)
@architecture(
    "XverseForCausalLM",
    about="XVERSE",
    examples=("xverse/XVERSE-7B-Chat", "xverse/XVERSE-65B-Chat"),
    gguf=GGUFFormat("xverse", undo=UNPERMUTE),
)
def plain_llama(c: Config) -> CausalLM:
    return llama_body(c, mlp=gated_mlp(c))


@architecture("InternLMForCausalLM", about="InternLM", examples=("internlm/internlm-7b", "internlm/internlm-chat-7b"))
def internlm(c: Config) -> CausalLM:
    bias = c.bias
    if base := c.section("rotary").get("base"):  # as 7B's later configs spell it
        c = c.replace(rope_theta=base)
    return llama_body(c, bias=bias, out_bias=bias, mlp=gated_mlp(c))
