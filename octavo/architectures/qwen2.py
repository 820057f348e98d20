"""Qwen2 and Qwen2.5 (Yang et al. 2024): Llama's body with biases on q, k and v, and windows on some late layers."""

from collections.abc import Callable

from octavo.architectures.decoder import attention, decoder, gated_mlp, rms_norm
from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import CLASSIFIES, EMBEDS, REWARDS, architecture
from octavo.architectures.rope_settings import SLIDING, layer_type, layer_types
from octavo.architectures.score_heads import with_classes, with_reward
from octavo.parts import CausalLM, PreNorm


@architecture(
    "Qwen2ForCausalLM",
    about="Qwen2, Qwen2.5, QwQ",
    examples=("Qwen/Qwen2-7B-Instruct", "Qwen/Qwen2-7B"),
    # Positions on three axes are those of plain rope where there are no pictures.
    gguf=GGUFFormat("qwen2", also=("qwen2vl",)),
)
@architecture(
    "Qwen2Model", about="Qwen2-based embedders", examples=("Alibaba-NLP/gte-Qwen2-1.5B-instruct",), tasks=EMBEDS
)
def qwen2(c: Config) -> CausalLM:
    late = windows(c, lambda layer: layer >= c.max_window_layers)
    norm, attn, mlp = rms_norm(c), attention(c, window=late, bias=True), gated_mlp(c)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()))


@architecture(
    "Qwen2ForSequenceClassification",
    about="Qwen2-based classifiers",
    examples=("jason9693/Qwen2.5-1.5B-apeach",),
    tasks=CLASSIFIES,
)
def qwen2_classifier(c: Config) -> CausalLM:
    return with_classes(qwen2)(c)


@architecture(
    "Qwen2ForRewardModel",
    about="Qwen2-based reward models",
    examples=("Qwen/Qwen2.5-Math-RM-72B",),
    tasks=REWARDS,
)
def qwen2_reward(c: Config) -> CausalLM:
    return with_reward(qwen2)(c)


def windows(c: Config, slides: Callable[[int], bool]) -> list[int | None]:
    """Each layer's window: none unless use_sliding_window, and then by layer_types, or where `slides` says so."""
    window = c.get("sliding_window") if c.use_sliding_window else None
    usual = [layer_type(window if slides(i) else None) for i in range(c.num_hidden_layers)]
    return [window if kind == SLIDING else None for kind in layer_types(c, usual)]
