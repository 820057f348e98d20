"""Llama's body with layer norms: Orion, OLMo, Starcoder 2 and Nemotron."""

from functools import partial

from octavo.architectures.decoder import NAMES, attention, decoder, gated_mlp
from octavo.architectures.gguf_format import UNPERMUTE, GGUFFormat, minus_one
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import MLP, CausalLM, Clip, LayerNorm, PreNorm


@architecture(
    "OrionForCausalLM",
    about="Orion",
    examples=("OrionStarAI/Orion-14B-Base", "OrionStarAI/Orion-14B-Chat"),
    gguf=GGUFFormat("orion", config=lambda shared, file: {"rms_norm_eps": shared["layer_norm_epsilon"]}),
)
def orion(c: Config) -> CausalLM:
    norm, attn, mlp = partial(LayerNorm, c.hidden_size, c.rms_norm_eps), attention(c), gated_mlp(c)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()))


@architecture(
    "OlmoForCausalLM",
    "OLMoForCausalLM",
    about="OLMo",
    examples=("allenai/OLMo-1B-hf", "allenai/OLMo-7B-hf"),
    gguf=GGUFFormat("olmo", undo=UNPERMUTE),
)
def olmo(c: Config) -> CausalLM:
    """Norms without weights; queries, keys and values are clipped where the config says."""
    limit, bias = c.get("clip_qkv"), c.attention_bias
    norm, mlp = partial(LayerNorm, c.hidden_size, 1e-5, weight=False, bias=False), gated_mlp(c)
    attn = attention(c, qk_transform=lambda: None if limit is None else Clip(limit), bias=bias, out_bias=bias)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()))


STARCODER2_NAMES = NAMES.replacing({"model.layers.{i}.mlp.{c_fc|c_proj}": "layers.{i}.mlp.{up|down}"})


@architecture(
    "Starcoder2ForCausalLM",
    about="Starcoder 2",
    examples=("bigcode/starcoder2-3b", "bigcode/starcoder2-7b", "bigcode/starcoder2-15b"),
    gguf=GGUFFormat("starcoder2"),
)
def starcoder2(c: Config) -> CausalLM:
    bias = c.use_bias
    norm = partial(LayerNorm, c.hidden_size, c.norm_epsilon)
    attn = attention(c, window=c.get("sliding_window"), bias=bias, out_bias=bias)
    mlp = partial(MLP, c.hidden_size, c.intermediate_size, c.hidden_act, bias)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()), STARCODER2_NAMES)


NEMOTRON_NAMES = NAMES.replacing({"model.layers.{i}.mlp.{up|down}_proj": "layers.{i}.mlp.{up|down}"})


@architecture(
    "NemotronForCausalLM",
    about="Nemotron-3, Nemotron-4, Minitron",
    examples=("nvidia/Minitron-8B-Base", "mgoin/Nemotron-4-340B-Base-hf-FP8"),
    gguf=GGUFFormat(
        "nemotron", undo={f"{name}.weight": minus_one for name in NEMOTRON_NAMES.table if name.endswith("norm")}
    ),
)
def nemotron(c: Config) -> CausalLM:
    """Layer norms around 1, a squared relu, and rotary over half a head."""
    bias = c.attention_bias
    norm = partial(LayerNorm, c.hidden_size, c.norm_eps, offset=1.0)
    attn = attention(c, bias=bias, out_bias=bias)
    mlp = partial(MLP, c.hidden_size, c.intermediate_size, c.hidden_act, c.mlp_bias)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()), NEMOTRON_NAMES)
