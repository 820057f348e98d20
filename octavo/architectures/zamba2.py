"""Zamba2 (Glorioso et al. 2024): Mamba-2 layers, and shared blocks of attention whose calls have a LoRA each."""

from functools import partial
from typing import Any

from torch import nn

from octavo.architectures.decoder import decoder, rms_norm
from octavo.architectures.mamba2 import layer_kinds, mamba2_mixer, mixer_names
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_config import make_rope
from octavo.architectures.zamba2_block import BlockAttention, BlockCall, BlockMLP, SharedBlock, Zamba2Layer
from octavo.parts import CausalLM, Mamba2Sizes, Names

USUAL = ["mamba", *(["mamba"] * 5 + ["hybrid"]) * 7, *["mamba"] * 4, "hybrid", *["mamba"] * 3, "hybrid", *["mamba"] * 2]


def zamba2_names(hybrid: list[int], blocks: int) -> Names:
    """Where tensors go: a block's are stored with the first layer that calls it, and so are all its calls' pairs."""
    table: dict[str, Any] = {"model.embed_tokens": "embed", "model.layers.{i}.linear": "layers.{i}.call.linear"}
    ignored = []
    for call, layer in enumerate(hybrid):
        of, here = f"model.layers.{hybrid[call % blocks]}.shared_transformer", f"layers.{layer}"
        table |= mixer_names(f"model.layers.{layer}.mamba_decoder.mamba", here + ".mixer")
        table[f"model.layers.{layer}.mamba_decoder.input_layernorm"] = here + ".mixer_norm"
        for number, part in (("0", "a"), ("1", "b")):
            table[f"{of}.feed_forward.gate_up_proj_adapter_list.{call}.{number}"] = f"{here}.call.mlp.adapter.{part}"
            for n in "qkv":
                table[f"{of}.self_attn.linear_{n}_adapter_list.{call}.{number}"] = (
                    f"{here}.call.attn.adapters.{n}.{part}"
                )
        own = f"model.layers.{layer}.shared_transformer"
        shared = {f"self_attn.{n}_proj": f"qkv.{n}" for n in "qkv"} | {"self_attn.o_proj": "o"}
        shared |= {"feed_forward.gate_up_proj": "gate_up", "feed_forward.down_proj": "down"}
        shared |= {"input_layernorm": "attn_norm", "pre_ff_layernorm": "mlp_norm"}
        if call < blocks:
            table |= {f"{own}.{name}": f"shared.{call}.{path}" for name, path in shared.items()}
        else:  # the same again, where a checkpoint has it
            ignored += [f"{own}.{name}.{leaf}" for name in shared for leaf in ("weight", "bias")]
    table |= mixer_names("model.layers.{i}.mamba", "layers.{i}.mixer")
    table |= {"model.layers.{i}.input_layernorm": "layers.{i}.mixer_norm"}
    table |= {"model.final_layernorm": "norm", "lm_head": "head"}
    return Names(table, tuple(ignored), prefix="model.")


@architecture("Zamba2ForCausalLM", about="Zamba2", examples=("Zyphra/Zamba2-1.2B", "Zyphra/Zamba2-7B-Instruct"))
def zamba2(c: Config) -> CausalLM:
    size, bias, blocks, norm = c.hidden_size, c.add_bias_linear, c.num_mem_blocks, rms_norm(c)
    kinds = layer_kinds(c.get("layers_block_type", USUAL))
    c = c.replace(num_hidden_layers=len(kinds))
    hybrid = [i for i, kind in enumerate(kinds) if kind == "hybrid"]
    num_heads, rank = c.num_attention_heads, c.adapter_rank
    head_dim = 2 * size // num_heads
    sizes = {
        "hidden_size": 2 * size,
        "num_heads": num_heads,
        "num_kv_heads": c.get("num_key_value_heads", num_heads),
        "head_dim": head_dim,
        "rope": make_rope(c, head_dim) if c.use_mem_rope else None,
        "scale": (head_dim / 2) ** -0.5,
    }
    attn_rank = rank if c.use_shared_attention_adapter else 0
    inner = c.get("intermediate_size", 4 * size)
    shared = nn.ModuleList([SharedBlock(sizes, size, inner, bias, c.rms_norm_eps) for _ in range(blocks)])
    channels = int(c.mamba_expand * size)
    heads = Mamba2Sizes(c.n_mamba_heads, channels // c.n_mamba_heads, c.mamba_ngroups, c.mamba_d_state, c.mamba_d_conv)
    limit = c.time_step_min, float("inf")
    mixer = partial(mamba2_mixer, c, heads, 1e-5, bias=bias, conv_bias=c.use_conv_bias, dt_limit=limit)

    def layer(i: int) -> Zamba2Layer:
        if i not in hybrid:
            return Zamba2Layer(i == 0, mixer(), norm())
        block = shared[hybrid.index(i) % blocks]
        attn, mlp = BlockAttention(block, attn_rank, **sizes), BlockMLP(block, rank, c.hidden_act)
        return Zamba2Layer(i == 0, mixer(), norm(), BlockCall(block, attn, mlp, size))

    return decoder(c, norm, layer, zamba2_names(hybrid, blocks), shared=shared)
