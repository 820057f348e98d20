"""Mamba (Gu & Dao 2023): a state of fixed size in place of attention."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from octavo.architectures.decoder import decoder
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.ops import Backend
from octavo.parts import CausalLM, MambaMixer, Names, PreNorm, RMSNorm, parameter


def drop_middle(weight: Tensor) -> Tensor:
    """A depthwise convolution's [channels, 1, kernel] as [channels, kernel]."""
    return weight.squeeze(1) if weight.dim() == 3 else weight


MIXER = "backbone.layers.{i}.mixer"
NAMES = Names(
    {
        "backbone.embeddings": "embed",
        "backbone.layers.{i}.norm": "layers.{i}.mixer_norm",
        f"{MIXER}.{{in|x|dt|out}}_proj": "layers.{i}.mixer.{in|x|dt|out}_proj",
        f"{MIXER}.conv1d.weight": parameter("layers.{i}.mixer.conv.weight", drop_middle),
        f"{MIXER}.conv1d.bias": parameter("layers.{i}.mixer.conv.bias"),
        f"{MIXER}.A_log": parameter("layers.{i}.mixer.a_log"),
        f"{MIXER}.D": parameter("layers.{i}.mixer.d"),
        "backbone.norm_f": "norm",
        "lm_head": "head",
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
    return body(c)


class PlainRMSNorm(nn.Module):
    """A root mean square norm without weights."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.size, self.eps = size, eps

    def prepare(self, backend: Backend) -> None:
        self._norm, self._ones = backend.rms_norm, torch.ones(self.size, device=backend.device)

    def forward(self, x: Tensor) -> Tensor:
        return self._norm(x, self._ones, self.eps)


@architecture(
    "FalconMambaForCausalLM",
    about="FalconMamba",
    examples=("tiiuae/falcon-mamba-7b", "tiiuae/falcon-mamba-7b-instruct"),
    gguf=_gguf(normed=True),
)
def falcon_mamba(c: Config) -> CausalLM:
    return body(c, inner_norm=partial(PlainRMSNorm, eps=c.mixer_rms_eps))


def body(c: Config, *, inner_norm: Callable[[int], nn.Module] | None = None) -> CausalLM:
    """Mixers behind norms, nothing else."""
    hidden_size = c.hidden_size
    norm = partial(RMSNorm, hidden_size, eps=c.layer_norm_epsilon)
    channels = c.get("intermediate_size", int(c.expand * hidden_size))
    rank = c.get("time_step_rank")
    mixer = partial(
        MambaMixer,
        hidden_size,
        channels,
        c.state_size,
        c.conv_kernel,
        rank if isinstance(rank, int) else math.ceil(hidden_size / 16),  # "auto"
        c.hidden_act,
        bias=c.use_bias,
        conv_bias=c.use_conv_bias,
        inner_norm=inner_norm,
    )
    return decoder(c, norm, lambda i: PreNorm(norm, mixer=mixer()), NAMES)
