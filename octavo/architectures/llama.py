"""Llama (Touvron et al. 2023) and its twins: norm, rotary attention, norm, gated feed-forward."""

from octavo.architectures.decoder import attention, decoder, gated_mlp, rms_norm
from octavo.architectures.gguf_format import UNPERMUTE, GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import EMBEDS, architecture
from octavo.parts import CausalLM, PreNorm


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
    norm, mlp, bias = rms_norm(c), gated_mlp(c, c.mlp_bias), c.attention_bias
    attn = attention(c, bias=bias, out_bias=bias)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()))


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
    norm, attn, mlp = rms_norm(c), attention(c), gated_mlp(c)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()))


@architecture("InternLMForCausalLM", about="InternLM", examples=("internlm/internlm-7b", "internlm/internlm-chat-7b"))
def internlm(c: Config) -> CausalLM:
    if base := c.section("rotary").get("base"):  # as 7B's later configs spell it
        c = c.replace(rope_theta=base)
    norm, mlp, bias = rms_norm(c), gated_mlp(c), c.bias
    attn = attention(c, bias=bias, out_bias=bias)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()))
