"""Mistral (Jiang et al. 2023): Llama's body with a sliding window; Mixtral (2024): with experts."""

from octavo.architectures.decoder import NAMES, attention, decoder, gated_mlp, moe, rms_norm
from octavo.architectures.gguf_format import UNPERMUTE, GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import EMBEDS, architecture
from octavo.parts import CausalLM, PreNorm, softmax_then_topk

MIXTRAL_NAMES = NAMES.replacing(
    {
        "model.layers.{i}.block_sparse_moe.gate": "layers.{i}.mlp.router",
        "model.layers.{i}.block_sparse_moe.experts.{e}.{w1|w3}": "layers.{i}.mlp.experts.{e}.gate_up.{gate|up}",
        "model.layers.{i}.block_sparse_moe.experts.{e}.w2": "layers.{i}.mlp.experts.{e}.down",
    }
)


@architecture(
    "MistralForCausalLM",
    about="Mistral, Mistral-Instruct",
    examples=("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.1"),
)
@architecture(
    "MistralModel", about="Mistral-based embedders", examples=("intfloat/e5-mistral-7b-instruct",), tasks=EMBEDS
)
def mistral(c: Config) -> CausalLM:
    norm, attn, mlp = rms_norm(c), attention(c, window=c.get("sliding_window")), gated_mlp(c)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()))


@architecture(
    "MixtralForCausalLM",
    "QuantMixtralForCausalLM",
    about="Mixtral-8x7B, Mixtral-8x22B",
    examples=("mistralai/Mixtral-8x7B-v0.1", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
    gguf=GGUFFormat("llama", undo=UNPERMUTE, when=lambda file: bool(file.value("expert_count"))),
)
def mixtral(c: Config) -> CausalLM:
    norm, attn = rms_norm(c), attention(c, window=c.get("sliding_window"))
    mlp = moe(c, gated_mlp(c), c.num_local_experts, softmax_then_topk(c.num_experts_per_tok))
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()), MIXTRAL_NAMES)
