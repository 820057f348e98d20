"""How llama.cpp stores models with gated delta nets."""

from typing import Any

from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader, log_of_negative, minus_one


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    heads, recurrent = file.value("ssm.time_step_rank"), file.value("attention.recurrent_layers")
    every, layers = file.value("full_attention_interval", 4), range(shared["num_hidden_layers"])
    recurrent = recurrent or [bool((i + 1) % every) for i in layers]
    return {
        "layer_types": ["linear_attention" if recurrent[i] else "full_attention" for i in layers],
        "linear_num_value_heads": heads,
        "linear_num_key_heads": file.value("ssm.group_count"),
        "linear_key_head_dim": file.value("ssm.state_size"),
        "linear_value_head_dim": file.value("ssm.inner_size") // heads,
        "linear_conv_kernel_dim": file.value("ssm.conv_kernel"),
        "linear_qkv_apart": "blk.0.ssm_in.weight" not in file.tensors,  # as in files since 2026
        "norm_topk_prob": True,
    }


NORMED = ("{input|post_attention}_layernorm", "self_attn.{q|k}_norm")


def gated_net_format(arch: str, begins: str, in_turn: bool, section: str = "") -> GGUFFormat:
    """Of files called `arch`.

    Args:
        begins: the published names of layers.
        in_turn: whether heads of values lie so that they have the key heads in turn.
        section: of config.json that has the language model's keys.
    """
    undo = {f"{begins}layers.{{i}}.{name}": minus_one for name in NORMED} | {f"{begins}norm": minus_one}
    undo |= {f"{begins}layers.{{i}}.linear_attn.A_log": log_of_negative}
    own = {"linear_heads_in_turn": in_turn}
    return GGUFFormat(arch, lambda shared, file: {**_from_gguf(shared, file), **own}, undo=undo, section=section)
