"""Jamba (Lieber et al. 2024): Mamba layers, a few attention layers without positions, experts in every other layer."""

import math
from functools import partial
from typing import Any

import torch

from octavo.architectures.decoder import decoder, gated_mlp, moe, rms_norm
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.mamba import drop_middle
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import Attention, CausalLM, MambaMixer, Names, PreNorm, RMSNorm, parameter, softmax_then_topk

MIXER, MLP = "layers.{i}.mixer", "layers.{i}.mlp"
NAMES = Names(
    {
        "model.embed_tokens": "embed",
        "model.layers.{i}.input_layernorm": "layers.{i}.mixer_norm",
        "model.layers.{i}.mamba.{in|x|dt|out}_proj": MIXER + ".{in|x|dt|out}_proj",
        "model.layers.{i}.mamba.{dt|b|c}_layernorm": MIXER + ".inner_norms.{dt|b|c}",
        "model.layers.{i}.mamba.conv1d.weight": parameter(MIXER + ".conv.weight", drop_middle),
        "model.layers.{i}.mamba.conv1d.bias": parameter(MIXER + ".conv.bias"),
        "model.layers.{i}.mamba.A_log": parameter(MIXER + ".a_log"),
        "model.layers.{i}.mamba.D": parameter(MIXER + ".d"),
        "model.layers.{i}.self_attn.{q|k|v}_proj": MIXER + ".qkv.{q|k|v}",
        "model.layers.{i}.self_attn.o_proj": MIXER + ".o",
        "model.layers.{i}.pre_ff_layernorm": "layers.{i}.mlp_norm",
        "model.layers.{i}.feed_forward.{gate|up}_proj": MLP + ".gate_up.{gate|up}",
        "model.layers.{i}.feed_forward.down_proj": MLP + ".down",
        "model.layers.{i}.feed_forward.router": MLP + ".router",
        "model.layers.{i}.feed_forward.experts.{e}.{gate|up}_proj": MLP + ".experts.{e}.gate_up.{gate|up}",
        "model.layers.{i}.feed_forward.experts.{e}.down_proj": MLP + ".experts.{e}.down",
        "model.final_layernorm": "norm",
        "lm_head": "head",
    },
    prefix="model.",
)


def _every(layers: range, period: int, offset: int) -> list[int]:
    return [i for i in layers if i % period == offset]


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    layers, num_kv_heads = range(shared["num_hidden_layers"]), shared["num_key_value_heads"]
    return {
        "attention_layers": [i for i in layers if num_kv_heads[i]],
        "expert_layers": [i for i in layers if f"blk.{i}.ffn_gate_inp.weight" in file.tensors],
        "num_key_value_heads": max(num_kv_heads),
        "mamba_d_state": file.value("ssm.state_size"),
        "mamba_d_conv": file.value("ssm.conv_kernel"),
        "mamba_expand": file.value("ssm.inner_size") / shared["hidden_size"],
        "mamba_dt_rank": file.value("ssm.time_step_rank"),
    }


@architecture(
    "JambaForCausalLM",
    about="Jamba",
    examples=("ai21labs/Jamba-v0.1", "ai21labs/AI21-Jamba-1.5-Large"),
    gguf=GGUFFormat("jamba", config=_from_gguf, undo={"model.layers.{i}.mamba.A_log": lambda a, c: torch.log(-a)}),
)
def jamba(c: Config) -> CausalLM:
    hidden_size, num_heads, rank = c.hidden_size, c.num_attention_heads, c.mamba_dt_rank
    norm, mlp = rms_norm(c), gated_mlp(c)
    mamba = partial(
        MambaMixer,
        hidden_size,
        int(c.mamba_expand * hidden_size),
        c.mamba_d_state,
        c.mamba_d_conv,
        rank if isinstance(rank, int) else math.ceil(hidden_size / 16),
        c.hidden_act,
        bias=c.mamba_proj_bias,
        conv_bias=c.mamba_conv_bias,
        inner_norm=partial(RMSNorm, eps=c.rms_norm_eps),
    )
    attention = partial(
        Attention,
        hidden_size,
        num_heads,
        c.get("num_key_value_heads", num_heads),
        hidden_size // num_heads,
        window=c.get("sliding_window"),
    )
    count = c.num_experts
    experts = moe(c, mlp, count, softmax_then_topk(c.num_experts_per_tok, renormalize=False))

    layers = range(c.num_hidden_layers)
    attention_at = c.get("attention_layers") or _every(layers, c.attn_layer_period, c.attn_layer_offset)
    experts_at = c.get("expert_layers") or _every(layers, c.expert_layer_period, c.expert_layer_offset)

    def layer(i: int) -> PreNorm:
        feed_forward = experts if count > 1 and i in experts_at else mlp
        return PreNorm(norm, mixer=attention() if i in attention_at else mamba(), mlp=feed_forward())

    return decoder(c, norm, layer, NAMES)
