"""Mistral (Jiang et al. 2023): Llama's body with a sliding window; Mixtral (2024): with experts."""

from functools import partial

from octavo.architectures.gguf_format import UNPERMUTE, GGUFFormat
from octavo.architectures.llama import ATTENTION_NAMES, IGNORED, gated_mlp, llama_body
from octavo.architectures.model_config import Config
from octavo.architectures.registry import EMBEDS, architecture
from octavo.parts import CausalLM, GatedMLP, MoE, Names, softmax_then_topk

MIXTRAL_NAMES = Names(
    {
        **ATTENTION_NAMES,
        "model.layers.{i}.block_sparse_moe.gate": "layers.{i}.mlp.inner.router",
        "model.layers.{i}.block_sparse_moe.experts.{e}.{w1|w3}": "layers.{i}.mlp.inner.experts.{e}.gate_up.{gate|up}",
        "model.layers.{i}.block_sparse_moe.experts.{e}.w2": "layers.{i}.mlp.inner.experts.{e}.down",
    },
    IGNORED,
    prefix="model.",
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
    return llama_body(c, window=lambda layer: c.get("sliding_window"), mlp=gated_mlp(c))


@architecture(
    "MixtralForCausalLM",
    "QuantMixtralForCausalLM",
    about="Mixtral-8x7B, Mixtral-8x22B",
    examples=("mistralai/Mixtral-8x7B-v0.1", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
    gguf=GGUFFormat("llama", undo=UNPERMUTE, when=lambda file: bool(file.value("expert_count"))),
)
def mixtral(c: Config) -> CausalLM:
    expert = partial(GatedMLP, c.hidden_size, c.intermediate_size, c.hidden_act)
    count, top_k = c.num_local_experts, c.num_experts_per_tok
    return llama_body(
        c,
        window=lambda layer: c.get("sliding_window"),
        mlp=lambda layer: MoE(c.hidden_size, [expert() for _ in range(count)], softmax_then_topk(top_k)),
        names=MIXTRAL_NAMES,
    )
