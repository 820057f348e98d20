"""Falcon-H1 (TII 2025): attention and Mamba-2 side by side in each layer, and a multiplier for each path."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from octavo.architectures.bamba import BAMBA_NAMES
from octavo.architectures.decoder import attention, decoder, rms_norm
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.mamba2 import mamba2_mixer, mamba_from_gguf, mamba_sizes, mixer_names, mixer_undo
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.ops import Backend
from octavo.parts import Batch, CausalLM, Embedding, GatedMLP, GroupedRMSNorm, PreNorm, Wiring

FALCON_H1_NAMES = BAMBA_NAMES.replacing(mixer_names("model.layers.{i}.mamba", "layers.{i}.attn.mamba")).replacing(
    {
        "model.layers.{i}.self_attn.{q|k|v}_proj": "layers.{i}.attn.attention.qkv.{q|k|v}",
        "model.layers.{i}.self_attn.o_proj": "layers.{i}.attn.attention.o",
    }
)


class ScaledPieces(nn.Module):
    """The sum of what several parts make of the same rows, by factors of what goes in and comes out of each."""

    def __init__(self, factors: dict[str, tuple[float, float]], **parts: nn.Module) -> None:
        super().__init__()
        self.factors = factors
        for name, part in parts.items():
            self.add_module(name, part)

    def prepare(self, backend: Backend) -> None:
        self._scale, self._add = backend.scale, backend.add

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        total: Tensor | None = None
        for name, (before, after) in self.factors.items():
            y = getattr(self, name)(x if before == 1.0 else self._scale(x, before), batch)
            y = y if after == 1.0 else self._scale(y, after)
            total = y if total is None else self._add(total, y)
        assert total is not None
        return total


class ScaledMLP(GatedMLP):
    """`down_factor * down(activation(gate_factor * gate(x)) * up(x))`."""

    def __init__(self, *sizes: Any, factors: tuple[float, float]) -> None:
        super().__init__(*sizes)
        self.factors = factors

    def prepare(self, backend: Backend) -> None:
        self._backend = backend
        size = self.gate_up.own_outputs // 2
        factors = [torch.full((size,), self.factors[0]), torch.ones(size)]
        self._columns = torch.cat(factors).to(backend.device)

    def forward(self, x: Tensor, batch: Any) -> Tensor:
        backend = self._backend
        y = backend.scale_columns(self.gate_up(x, batch), self._columns)
        return backend.scale(self.down(backend.gated(y, self.gate), batch), self.factors[1])


FACTORS = (
    *(f"{path}_{way}_multiplier" for path in ("attention", "ssm") for way in ("in", "out")),
    *("key_multiplier", "embedding_multiplier", "lm_head_multiplier"),
)


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    """llama.cpp multiplies the weights with all factors."""
    return {
        **mamba_from_gguf(file),
        **dict.fromkeys(FACTORS, 1.0),
        "mlp_multipliers": [1.0] * 2,
        "ssm_multipliers": [1.0] * 5,
        "mamba_d_ssm": file.value("ssm.inner_size"),
        "mamba_rms_norm": "blk.0.ssm_norm.weight" in file.tensors,
        "mamba_norm_before_gate": False,
    }


@architecture(
    "FalconH1ForCausalLM",
    about="Falcon-H1",
    examples=("tiiuae/Falcon-H1-1.5B-Deep-Instruct", "tiiuae/Falcon-H1-7B-Instruct", "tiiuae/Falcon-H1-34B-Instruct"),
    gguf=GGUFFormat("falcon-h1", config=_from_gguf, undo=mixer_undo("model.layers.{i}.mamba")),
)
def falcon_h1(c: Config) -> CausalLM:
    norm, bias = rms_norm(c), c.attention_bias
    head_dim = c.get("head_dim", c.hidden_size // c.num_attention_heads)
    attn = attention(c, bias=bias, out_bias=bias, scale=head_dim**-0.5 * c.key_multiplier)
    channels = c.get("mamba_d_ssm", int(c.mamba_expand * c.hidden_size))
    sizes = mamba_sizes(c, channels)
    has_norm, norm_first = c.mamba_rms_norm, c.mamba_norm_before_gate
    gate_factor, down_factor = c.get("mlp_multipliers", [1.0, 1.0])
    mixer = partial(
        mamba2_mixer,
        c,
        sizes,
        c.rms_norm_eps,
        activation=c.hidden_act,
        bias=(c.mamba_proj_bias, c.projectors_bias),
        conv_bias=c.mamba_conv_bias,
        norm_first=has_norm and norm_first,
        factors=dict(zip(("gate", "x", "b", "c", "dt"), c.get("ssm_multipliers", [1.0] * 5), strict=True)),
    )
    factors = {
        "mamba": (c.ssm_in_multiplier, c.ssm_out_multiplier),
        "attention": (c.attention_in_multiplier, c.attention_out_multiplier),
    }

    def layer(i: int) -> Wiring:
        gated_norm = GroupedRMSNorm(channels, sizes.num_groups, c.rms_norm_eps) if has_norm else None
        pieces = ScaledPieces(factors, mamba=mixer(norm=gated_norm), attention=attn(i))
        mlp_sizes = c.hidden_size, c.intermediate_size, c.hidden_act, c.mlp_bias
        return PreNorm(norm, attn=pieces, mlp=ScaledMLP(*mlp_sizes, factors=(gate_factor, down_factor)))

    embed = Embedding(c.vocab_size, c.hidden_size, c.embedding_multiplier)
    return decoder(c, norm, layer, FALCON_H1_NAMES, embed=embed, logit_scale=c.lm_head_multiplier)
