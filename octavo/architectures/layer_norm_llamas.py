"""Llama's body with layer norms: Orion, OLMo, Starcoder 2 and Nemotron."""

from functools import partial

from octavo.architectures.gguf_format import UNPERMUTE, GGUFFormat, minus_one
from octavo.architectures.llama import ATTENTION_NAMES, IGNORED, gated_mlp, llama_body
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import MLP, CausalLM, Clip, LayerNorm, Names


@architecture(
    "OrionForCausalLM",
    about="Orion",
    examples=("OrionStarAI/Orion-14B-Base", "OrionStarAI/Orion-14B-Chat"),
    gguf=GGUFFormat("orion", config=lambda shared, file: {"rms_norm_eps": shared["layer_norm_epsilon"]}),
)
def orion(c: Config) -> CausalLM:
    return llama_body(c, mlp=gated_mlp(c), norm=partial(LayerNorm, c.hidden_size, c.rms_norm_eps))


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
    return llama_body(
        c,
        mlp=gated_mlp(c),
        norm=partial(LayerNorm, c.hidden_size, 1e-5, weight=False, bias=False),
        qk_transform=lambda: None if limit is None else Clip(limit),
        bias=bias,
        out_bias=bias,
    )


STARCODER2_NAMES = Names(
    {
        **ATTENTION_NAMES,
        "model.layers.{i}.mlp.c_fc": "layers.{i}.mlp.inner.up",
        "model.layers.{i}.mlp.c_proj": "layers.{i}.mlp.inner.down",
    },
    IGNORED,
    prefix="model.",
)


@architecture(
    "Starcoder2ForCausalLM",
    about="Starcoder 2",
    examples=("bigcode/starcoder2-3b", "bigcode/starcoder2-7b", "bigcode/starcoder2-15b"),
    gguf=GGUFFormat("starcoder2"),
)
def starcoder2(c: Config) -> CausalLM:
    bias = c.use_bias
    activation = c.hidden_act
    return llama_body(
        c,
        mlp=lambda layer: MLP(c.hidden_size, c.intermediate_size, activation, bias),
        names=STARCODER2_NAMES,
        norm=partial(LayerNorm, c.hidden_size, c.norm_epsilon),
        window=lambda layer: c.get("sliding_window"),
        bias=bias,
        out_bias=bias,
    )


NEMOTRON_NAMES = Names(
    {
        **ATTENTION_NAMES,
        "model.layers.{i}.mlp.up_proj": "layers.{i}.mlp.inner.up",
        "model.layers.{i}.mlp.down_proj": "layers.{i}.mlp.inner.down",
    },
    IGNORED,
    prefix="model.",
)


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
    activation = c.hidden_act
    return llama_body(
        c,
        mlp=lambda layer: MLP(c.hidden_size, c.intermediate_size, activation, c.mlp_bias),
        names=NEMOTRON_NAMES,
        norm=partial(LayerNorm, c.hidden_size, c.norm_eps, offset=1.0),
        bias=bias,
        out_bias=bias,
    )
