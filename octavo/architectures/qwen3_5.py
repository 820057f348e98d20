"""Qwen3.5 and 3.6 (Qwen Team 2026), text: Qwen3-Next's layers, whose products are stored one by one."""

from collections.abc import Callable
from typing import Any

from torch import nn

from octavo.architectures.decoder import gated_mlp
from octavo.architectures.model_config import Config
from octavo.architectures.qwen2_moe import QWEN2_MOE_NAMES
from octavo.architectures.qwen3_next import NET, SHARED, gated_body, shared_experts
from octavo.architectures.qwen3_next_gguf import gated_net_format
from octavo.architectures.registry import architecture
from octavo.parts import CausalLM, gates_first

TEXT = "model.language_model."


def _text(c: Config, mlp: Callable[[Config], Callable[[], nn.Module]]) -> CausalLM:
    """The language model of a config that describes more, or nothing else.

    Its three axes of positions are one where there is text.
    """
    is_part = bool(c.get("text_config"))
    text, begins = (c.section("text_config"), TEXT) if is_part else (c, "model.")
    axes = {"mrope_section", "mrope_interleaved"}
    plain: dict[str, Any] = {
        key: {name: value for name, value in text.get(key).items() if name not in axes}
        for key in ("rope_scaling", "rope_parameters")
        if text.get(key)
    }
    tied = c.first("tie_word_embeddings", default=text.get("tie_word_embeddings", False))
    text = text.replace(tie_word_embeddings=tied, **plain)
    table = {
        **SHARED,
        NET + "in_proj_{qkv|z|b|a}": "layers.{i}.attn.in_proj.{qkv|z|b|a}",
        "model.layers.{i}.self_attn.q_proj": gates_first("layers.{i}.attn.qkv.gate_q", text.num_attention_heads),
    }
    names = QWEN2_MOE_NAMES.extended(table)
    if is_part:
        names = names.renamed("model.", TEXT)
    spellings = {"language_model.model.": begins, "language_model.lm_head.": "lm_head.", TEXT: begins}
    names = names.spelled(spellings).leaving_out("model.visual.", "visual.", "mtp.", "model.mtp.")
    make = mlp(text)
    return gated_body(text, names, ("qkv", "z", "b", "a"), lambda _: make())


def _experts(text: Config) -> Callable[[], nn.Module]:
    return lambda: shared_experts(text, True)


@architecture("Qwen3_5ForCausalLM", about="Qwen3.5, Qwen3.6 (text alone)", examples=("Qwen/Qwen3.5-9B-Base",))
def qwen3_5_alone(c: Config) -> CausalLM:
    return _text(c, gated_mlp)


@architecture("Qwen3_5MoeForCausalLM", about="Qwen3.5 MoE (text alone)", examples=("Qwen/Qwen3.5-35B-A3B-Base",))
def qwen3_5_moe_alone(c: Config) -> CausalLM:
    return _text(c, _experts)


@architecture(
    "Qwen3_5ForConditionalGeneration",
    about="Qwen3.5, Qwen3.6 (text)",
    examples=("Qwen/Qwen3.5-9B", "Qwen/Qwen3.5-27B"),
    gguf=gated_net_format("qwen35", TEXT, in_turn=True, section="text_config"),
)
def qwen3_5(c: Config) -> CausalLM:
    return _text(c, gated_mlp)


@architecture(
    "Qwen3_5MoeForConditionalGeneration",
    about="Qwen3.5 MoE, Qwen3.6-35B-A3B (text)",
    examples=("Qwen/Qwen3.5-35B-A3B",),
    gguf=gated_net_format("qwen35moe", TEXT, in_turn=True, section="text_config"),
)
def qwen3_5_moe(c: Config) -> CausalLM:
    return _text(c, _experts)
