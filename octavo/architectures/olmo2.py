"""Llama's body with norms after the pieces: OLMo 2 and 3 (Team OLMo 2024, 2025), EXAONE 4 (LG AI Research 2025)."""

from octavo.architectures.decoder import (
    NORMS_AFTER,
    attention,
    decoder,
    full_width_norms,
    gated_mlp,
    head_norms,
    rms_norm,
)
from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_layers import rope_by_layer
from octavo.architectures.rope_settings import FULL, SLIDING, layer_types
from octavo.parts import BranchNorm, CausalLM

SLIDING_BASE = 500_000.0
"""Of OLMo 3's sliding layers, unless rope_parameters has another for them."""


def body(c: Config, windows: list[int | None] | None = None) -> CausalLM:
    norm, mlp, bias = rms_norm(c), gated_mlp(c), c.attention_bias
    attn = attention(c, window=windows, qk_transform=full_width_norms(c), bias=bias, out_bias=bias)
    return decoder(c, norm, lambda i: BranchNorm(norm, attn=attn(i), mlp=mlp()), NORMS_AFTER)


@architecture(
    "Olmo2ForCausalLM",
    about="OLMo 2",
    examples=("allenai/OLMo-2-1124-7B", "allenai/OLMo-2-0325-32B"),
    gguf=GGUFFormat("olmo2", when=lambda file: not file.value("attention.sliding_window")),
)
def olmo2(c: Config) -> CausalLM:
    return body(c)


@architecture(
    "Olmo3ForCausalLM",
    about="OLMo 3",
    examples=("allenai/Olmo-3-7B-Instruct", "allenai/Olmo-3-32B-Think"),
    gguf=GGUFFormat("olmo2", when=lambda file: bool(file.value("attention.sliding_window"))),
)
def olmo3(c: Config) -> CausalLM:
    """A base that the config has for the whole model counts for full layers alone."""
    types = layer_types(c, [SLIDING if (i + 1) % 4 else FULL for i in range(c.num_hidden_layers)])
    windows = [c.get("sliding_window") if kind == SLIDING else None for kind in types]
    return body(rope_by_layer(c, types, SLIDING_BASE), windows)


@architecture(
    "Exaone4ForCausalLM",
    about="EXAONE 4",
    examples=("LGAI-EXAONE/EXAONE-4.0-32B", "LGAI-EXAONE/EXAONE-4.0-1.2B"),
    gguf=GGUFFormat("exaone4"),
)
def exaone4(c: Config) -> CausalLM:
    """Full layers do not rotate, unless there is no window at all."""
    window, count = c.value("sliding_window"), c.num_hidden_layers
    every: int | str = c.get("sliding_window_pattern", 0)
    if isinstance(every, str):  # the last layer is full, whatever its letter
        slides = [every[i % len(every)] == "L" and i < count - 1 for i in range(count)]
    else:
        slides = [bool(every) and (i + 1) % every != 0 for i in range(count)]
    types = layer_types(c, [SLIDING if window and slide else FULL for slide in slides])
    norm, mlp = rms_norm(c), gated_mlp(c)
    attn = attention(
        c,
        window=[window if kind == SLIDING else None for kind in types],
        rotates=[not window or kind == SLIDING for kind in types],
        qk_transform=head_norms(c),
    )
    return decoder(c, norm, lambda i: BranchNorm(norm, attn=attn(i), mlp=mlp()), NORMS_AFTER)
