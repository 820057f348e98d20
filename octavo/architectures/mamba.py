"""Mamba (Gu & Dao 2023): a state of fixed size in place of attention."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from octavo.architectures.config import Config
from octavo.architectures.gguf import GGUFFormat, GGUFHeader
from octavo.architectures.registry import architecture
from octavo.ops.norm import rms_norm
from octavo.parts import Block, CausalLM, Embedding, Into, Linear, MambaMixer, Names, Residual, RMSNorm, parameter


def drop_middle(weight: Tensor) -> Tensor:
    """A depthwise convolution's [channels, 1, kernel] as [channels, kernel]."""
    return weight.squeeze(1) if weight.dim() == 3 else weight


MIXER = "backbone.layers.{i}.mixer"
NAMES = Names(
    {
        "backbone.embeddings": "embed",
        "backbone.layers.{i}.norm": "layers.{i}.mixer.norm",
        f"{MIXER}.{{in|x|dt|out}}_proj": "layers.{i}.mixer.inner.{in|x|dt|out}_proj",
        f"{MIXER}.conv1d.weight": parameter("layers.{i}.mixer.inner.conv_weight", drop_middle),
        f"{MIXER}.conv1d.bias": parameter("layers.{i}.mixer.inner.conv_bias"),
        f"{MIXER}.A_log": parameter("layers.{i}.mixer.inner.a_log"),
        f"{MIXER}.D": parameter("layers.{i}.mixer.inner.d"),
        "backbone.norm_f": "norm",
        "lm_head": Into("head"),
    },
    prefix="backbone.",
)


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    return {
        "state_size": file.value("ssm.state_size"),
        "conv_kernel": file.value("ssm.conv_kernel"),
        "intermediate_size": file.value("ssm.inner_size"),
        "time_step_rank": file.value("ssm.time_step_rank"),
        "layer_norm_epsilon": shared["rms_norm_eps"],
        "max_position_embeddings": None,
    }


def _gguf(normed: bool) -> GGUFFormat:
    """The two models share a name, and differ by norms inside the mixer."""
    return GGUFFormat(
        "mamba",
        config=_from_gguf,
        undo={f"{MIXER}.A_log": lambda a, c: torch.log(-a)},
        when=lambda file: bool(file.value("ssm.dt_b_c_rms")) == normed,
    )


@architecture(
    "MambaForCausalLM",
    about="Mamba",
    examples=("state-spaces/mamba-130m-hf", "state-spaces/mamba-790m-hf", "state-spaces/mamba-2.8b-hf"),
    gguf=_gguf(normed=False),
)
def mamba(c: Config) -> CausalLM:
    return body(c, tied=True)


class PlainRMSNorm(nn.Module):
    """A root mean square norm without weights."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.ones, self.eps = torch.ones(width, device="cpu"), eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.ones.to(x.device), self.eps)


@architecture(
    "FalconMambaForCausalLM",
    about="FalconMamba",
    examples=("tiiuae/falcon-mamba-7b", "tiiuae/falcon-mamba-7b-instruct"),
    gguf=_gguf(normed=True),
)
def falcon_mamba(c: Config) -> CausalLM:
    return body(c, tied=False, inner_norm=partial(PlainRMSNorm, eps=c.get("mixer_rms_eps", 1e-6)))


def body(c: Config, *, tied: bool, inner_norm: Callable[[int], nn.Module] | None = None) -> CausalLM:
    """Mixers behind norms, nothing else."""
    width = c.hidden_size
    norm = partial(RMSNorm, width, eps=c.get("layer_norm_epsilon", 1e-5))
    channels = c.get("intermediate_size", int(c.get("expand", 2) * width))
    rank = c.get("time_step_rank")
    mixer = partial(
        MambaMixer,
        width,
        channels,
        c.get("state_size", 16),
        c.get("conv_kernel", 4),
        rank if isinstance(rank, int) else math.ceil(width / 16),  # "auto"
        c.get("hidden_act", "silu"),
        bias=c.get("use_bias", False),
        conv_bias=c.get("use_conv_bias", True),
        inner_norm=inner_norm,
    )
    return CausalLM(
        embed=Embedding(c.vocab_size, width),
        layer=lambda i: Block(mixer=Residual(norm(), mixer())),
        layers=c.num_hidden_layers,
        norm=norm(),
        head=None if c.get("tie_word_embeddings", tied) else Linear(width, c.vocab_size),
        names=NAMES,
    )
