"""Mistral (Jiang et al. 2023): Llama's body with a sliding window; Mixtral (2024): with experts."""

from typing import Any

from octavo.architectures.composite import text_alone
from octavo.architectures.decoder import NAMES, attention, decoder, gated_mlp, moe, rms_norm
from octavo.architectures.gguf_format import UNPERMUTE, GGUFFormat, GGUFHeader
from octavo.architectures.model_config import Config
from octavo.architectures.registry import EMBEDS, architecture
from octavo.architectures.rope_settings import original_length, rope_settings
from octavo.architectures.text_config import text_model
from octavo.parts import CausalLM, PreNorm, QueryScale, softmax_then_topk

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


MINISTRAL3_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def position_scale(c: Config) -> QueryScale | None:
    """How queries grow with their positions; None where the config does not say so."""
    settings = rope_settings(c)
    beta: float | None = settings.get("llama_4_scaling_beta")
    return QueryScale(beta, original_length(c, settings)) if beta else None


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    """Mistral Small 3.x is a Ministral 3 whose positions are not stretched."""
    scaling = {**(shared.get("rope_scaling") or {"rope_type": "default"}), "rope_theta": shared["rope_theta"]}
    if (multiplier := file.value("rope.scaling.yarn_log_multiplier")) is not None:
        scaling |= {"mscale": multiplier, "mscale_all_dim": multiplier}
    if (beta := file.value("attention.temperature_scale")) is not None:
        scaling["llama_4_scaling_beta"] = beta
    return {"rope_parameters": scaling, "rope_scaling": None}


@architecture(
    "Ministral3ForCausalLM",
    about="Ministral 3",
    examples=("mistralai/Ministral-3-3B-Instruct-2512",),
    gguf=GGUFFormat("mistral3", config=_from_gguf, undo=UNPERMUTE),
)
def ministral3(c: Config) -> CausalLM:
    """Queries grow with the logarithm of how often they passed the original length."""
    if not c.get("rope_parameters", {}) and not c.get("rope_scaling", {}):
        c = c.replace(rope_parameters=MINISTRAL3_ROPE)
    norm, mlp = rms_norm(c), gated_mlp(c)
    attn = attention(c, window=c.get("sliding_window"), query_scale=position_scale(c))
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()))


@architecture(
    "Mistral3ForConditionalGeneration",
    about="Mistral Small 3.x, Ministral 3 (text)",
    examples=("mistralai/Mistral-Small-3.2-24B-Instruct-2506", "mistralai/Ministral-3-8B-Instruct-2512"),
    defaults={"text_config": {"model_type": "mistral"}},
    read_as="mistral3",
)
def mistral3(c: Config) -> CausalLM:
    """Its text is a Mistral, a Ministral 3 or another that text_config names."""
    return text_alone(c, text_model(c.section("text_config")), "vision_tower.", "multi_modal_projector.")


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
