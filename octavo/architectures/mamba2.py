"""Mamba-2 (Dao & Gu 2024), and what models with its mixer have in common."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from octavo.architectures.config_kinds import INFINITY
from octavo.architectures.decoder import decoder
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader, flat, has, log_of_negative
from octavo.architectures.mamba import drop_middle
from octavo.architectures.model_config import NONE, Config
from octavo.architectures.registry import architecture
from octavo.parts import (
    CausalLM,
    GroupedRMSNorm,
    Into,
    Mamba2Mixer,
    Mamba2Sizes,
    Names,
    PreNorm,
    RMSNorm,
    parameter,
)

LEGACY = {"mamba": "linear_attention", "mamba2": "linear_attention", "attention": "full_attention"}


def mixer_names(published: str, path: str) -> dict[str, str | Into]:
    """Where the tensors of a mixer go that a checkpoint has under `published`."""
    return {
        published + ".{in|out}_proj": path + ".{in|out}_proj",
        published + ".norm": path + ".norm",
        published + ".conv1d.weight": parameter(path + ".conv.weight", drop_middle),
        published + ".conv1d.bias": parameter(path + ".conv.bias"),
        published + ".A_log": parameter(path + ".a_log"),
        published + ".D": parameter(path + ".d"),
        published + ".dt_bias": parameter(path + ".dt_bias"),
    }


SHORT = {
    "mamba_n_heads": "num_heads",
    "mamba_d_head": "head_dim",
    "mamba_n_groups": "n_groups",
    "mamba_d_state": "state_size",
    "mamba_d_conv": "conv_kernel",
    "mamba_proj_bias": "use_bias",
    "mamba_conv_bias": "use_conv_bias",
}
"""The names of keys of configs that have nothing but mixers."""


def mamba_from_gguf(file: GGUFHeader, names: Mapping[str, str] = NONE) -> dict[str, Any]:
    """What a file says of its mixers, by the keys of configs that have other layers too, or by other `names`."""
    heads = file.value("ssm.time_step_rank")
    values = {
        "mamba_n_heads": heads,
        "mamba_d_head": file.value("ssm.inner_size") // heads,
        "mamba_n_groups": file.value("ssm.group_count"),
        "mamba_d_state": file.value("ssm.state_size"),
        "mamba_d_conv": file.value("ssm.conv_kernel"),
        "mamba_proj_bias": has(file, "ssm_in.bias"),
        "mamba_conv_bias": has(file, "ssm_conv1d.bias"),
    }
    return {names.get(key, key): value for key, value in values.items()}


def mixer_undo(published: str) -> dict[str, Callable[[Tensor, Config], Tensor]]:
    """What llama.cpp changed of a mixer that a checkpoint has under `published`."""
    return {published + ".A_log": log_of_negative, published + ".D": flat, published + ".norm": flat}


def layer_kinds(types: Sequence[str]) -> list[str]:
    """Types of layers as transformers 5 calls them: linear_attention for a mixer like this, full_attention, others."""
    return [LEGACY.get(kind, kind) for kind in types]


def mamba2_mixer(c: Config, sizes: Mamba2Sizes, eps: float, **options: Any) -> Mamba2Mixer:
    """A mixer whose norm, of each group, comes after the gate; `options` as of Mamba2Mixer."""
    given: Sequence[Any] = c.get("time_step_limit", (0.0, math.inf))
    low, high = (math.inf if v == INFINITY else v for v in given)
    norm = GroupedRMSNorm(sizes.channels, sizes.num_groups, eps)
    return Mamba2Mixer(c.hidden_size, sizes, **{"norm": norm, "dt_limit": (low, high), **options})


def mamba_sizes(c: Config, channels: int) -> Mamba2Sizes:
    """Of configs that call them mamba_n_heads, mamba_d_head and so on."""
    head_dim: int | str = c.get("mamba_d_head", "auto")
    num_heads: int = c.mamba_n_heads
    head_dim = head_dim if isinstance(head_dim, int) else channels // num_heads
    return Mamba2Sizes(num_heads, head_dim, c.mamba_n_groups, c.mamba_d_state, c.mamba_d_conv)


NAMES = Names(
    {
        "backbone.embeddings": "embed",
        "backbone.layers.{i}.norm": "layers.{i}.mixer_norm",
        **mixer_names("backbone.layers.{i}.mixer", "layers.{i}.mixer"),
        "backbone.norm_f": "norm",
        "lm_head": "head",
    },
    prefix="backbone.",
)


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    return {
        **mamba_from_gguf(file, SHORT),
        "layer_norm_epsilon": shared["rms_norm_eps"],
        "max_position_embeddings": None,
    }


@architecture(
    "Mamba2ForCausalLM",
    about="Mamba-2, Codestral Mamba",
    examples=("mistralai/Mamba-Codestral-7B-v0.1", "AntonV/mamba2-130m-hf"),
    gguf=GGUFFormat("mamba2", config=_from_gguf, undo=mixer_undo("backbone.layers.{i}.mixer")),
)
def mamba2(c: Config) -> CausalLM:
    norm = partial(RMSNorm, c.hidden_size, eps=c.layer_norm_epsilon)
    sizes = Mamba2Sizes(c.num_heads, c.head_dim, c.n_groups, c.state_size, c.conv_kernel)
    options = {"activation": c.hidden_act, "bias": c.use_bias, "conv_bias": c.use_conv_bias}

    def layer(_: int) -> PreNorm:
        return PreNorm(norm, mixer=mamba2_mixer(c, sizes, c.layer_norm_epsilon, **options))

    return decoder(c, norm, layer, NAMES)
