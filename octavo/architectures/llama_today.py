"""Llama's body again: SmolLM3, Helium, ERNIE 4.5, Seed-OSS, Arcee's AFM, and Llama-based classifiers."""

from functools import partial

from octavo.architectures.decoder import NAMES, attention, decoder, gated_mlp, rms_norm
from octavo.architectures.gguf_format import UNPERMUTE, GGUFFormat, input_biases
from octavo.architectures.llama import llama
from octavo.architectures.model_config import Config
from octavo.architectures.qwen2 import windows
from octavo.architectures.registry import CLASSIFIES, architecture
from octavo.architectures.score_heads import with_classes
from octavo.parts import MLP, CausalLM, PreNorm


@architecture(
    "LlamaForSequenceClassification",
    about="Llama-based reward models and classifiers",
    examples=("Skywork/Skywork-Reward-Llama-3.1-8B-v0.2",),
    tasks=CLASSIFIES,
)
def llama_classifier(c: Config) -> CausalLM:
    return with_classes(llama)(c)


@architecture(
    "SmolLM3ForCausalLM",
    about="SmolLM3",
    examples=("HuggingFaceTB/SmolLM3-3B",),
    gguf=GGUFFormat("smollm3", undo=UNPERMUTE),
)
def smollm3(c: Config) -> CausalLM:
    """Layers with a 0 in no_rope_layers do not rotate; they are those that may have a window."""
    every, count = c.no_rope_layer_interval, c.num_hidden_layers
    listed: list[int] = c.get("no_rope_layers", [int((i + 1) % every != 0) for i in range(count)])
    rotates = [bool(each) for each in (*listed, *[1] * (count - len(listed)))]
    norm, mlp, bias = rms_norm(c), gated_mlp(c, c.mlp_bias), c.attention_bias
    window = windows(c, lambda layer: not rotates[layer])
    attn = attention(c, window=window, rotates=rotates, bias=bias, out_bias=bias)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()))


@architecture("HeliumForCausalLM", about="Helium", examples=("kyutai/helium-1-2b", "kyutai/helium-1-preview-2b"))
def helium(c: Config) -> CausalLM:
    norm, mlp = rms_norm(c), gated_mlp(c, c.mlp_bias)
    attn = attention(c, interleaved=True, bias=c.attention_bias)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()))


@architecture(
    "Ernie4_5ForCausalLM",
    "Ernie4_5_ForCausalLM",
    about="ERNIE 4.5",
    examples=("baidu/ERNIE-4.5-0.3B-PT",),
    gguf=GGUFFormat("ernie4_5", config=lambda shared, file: {"use_bias": shared["attention_bias"]}),
)
def ernie4_5(c: Config) -> CausalLM:
    norm, mlp, bias = rms_norm(c), gated_mlp(c, c.use_bias), c.use_bias
    attn = attention(c, interleaved=True, bias=bias, out_bias=bias)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()))


@architecture(
    "SeedOssForCausalLM",
    about="Seed-OSS",
    examples=("ByteDance-Seed/Seed-OSS-36B-Instruct",),
    gguf=GGUFFormat(
        "seed_oss", config=lambda shared, file: {**input_biases(file), "attention_out_bias": shared["attention_bias"]}
    ),
)
def seed_oss(c: Config) -> CausalLM:
    norm, mlp = rms_norm(c), gated_mlp(c, c.mlp_bias)
    attn = attention(c, bias=c.attention_bias, out_bias=c.attention_out_bias)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()))


ARCEE_NAMES = NAMES.replacing({"model.layers.{i}.mlp.{up|down}_proj": "layers.{i}.mlp.{up|down}"})


@architecture(
    "ArceeForCausalLM",
    about="AFM",
    examples=("arcee-ai/AFM-4.5B",),
    gguf=GGUFFormat("arcee", config=lambda shared, file: {"hidden_act": "relu2"}, undo=UNPERMUTE),
)
def arcee(c: Config) -> CausalLM:
    """A squared relu without a gate."""
    norm, bias = rms_norm(c), c.attention_bias
    attn = attention(c, bias=bias, out_bias=bias)
    mlp = partial(MLP, c.hidden_size, c.intermediate_size, c.hidden_act, c.mlp_bias)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()), ARCEE_NAMES)
