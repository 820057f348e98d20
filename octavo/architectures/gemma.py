"""Gemma (Gemma Team 2024): Llama's body with norms around 1, scaled embeddings, wide heads and a tanh-gelu gate."""

from functools import partial

from octavo.architectures.decoder import NAMES, attention, decoder
from octavo.architectures.gguf_format import GGUFFormat, minus_one
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import CausalLM, Embedding, GatedMLP, PreNorm, RMSNorm


@architecture(
    "GemmaForCausalLM",
    about="Gemma",
    examples=("google/gemma-2b", "google/gemma-7b"),
    gguf=GGUFFormat("gemma", undo={name: minus_one for name in NAMES.table if name.endswith("norm")}),
)
def gemma(c: Config) -> CausalLM:
    size, bias = c.hidden_size, c.attention_bias
    # The first release says hidden_act gelu and means its tanh approximation.
    activation = c.get("hidden_activation", "gelu_pytorch_tanh" if c.hidden_act == "gelu" else c.hidden_act)
    norm = partial(RMSNorm, size, eps=c.rms_norm_eps, offset=1.0)
    attn, mlp = attention(c, bias=bias, out_bias=bias), partial(GatedMLP, size, c.intermediate_size, activation)
    embed = Embedding(c.vocab_size, size, size**0.5)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()), embed=embed)
