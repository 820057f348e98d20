"""What the values of a GGUF header may be: their types, and the ends beyond which there is no model.

A header is a few bytes that decide how much is built: 100,000 experts are as quickly written as eight.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from octavo.loading.gguf_reader import GGUFTensor, Metadata, shown

MAX_LAYERS = 1024
_EXPERTS = re.compile(r"\.ffn_(gate|up|down|gate_up)_exps\.weight$")
_LAYER = re.compile(r"(dec\.|enc\.|)blk\.([0-9]{1,4})\.")

WHOLE: dict[str, tuple[int, int]] = {
    "block_count": (1, MAX_LAYERS),
    "embedding_length": (1, 1 << 20),
    "feed_forward_length": (0, 1 << 24),
    "context_length": (1, 1 << 27),
    "vocab_size": (0, 1 << 24),
    "attention.head_count": (0, 1 << 14),
    "attention.head_count_kv": (0, 1 << 14),
    "attention.key_length": (1, 1 << 14),
    "attention.value_length": (1, 1 << 14),
    "attention.q_lora_rank": (1, 1 << 16),
    "attention.kv_lora_rank": (1, 1 << 16),
    "attention.key_length_mla": (1, 1 << 14),
    "attention.value_length_mla": (1, 1 << 14),
    "attention.key_length_swa": (1, 1 << 14),
    "attention.value_length_swa": (1, 1 << 14),
    "attention.shared_kv_layers": (0, MAX_LAYERS),
    "attention.relative_buckets_count": (1, 1 << 14),
    "attention.sliding_window": (0, 1 << 27),
    "attention.sliding_window_pattern": (0, MAX_LAYERS),
    "decoder_block_count": (1, MAX_LAYERS),
    "decoder_start_token_id": (0, 1 << 24),
    "embedding_length_per_layer_input": (0, 1 << 20),
    "expert_gating_func": (0, 64),
    "expert_group_count": (0, 1024),
    "expert_group_used_count": (0, 1024),
    "full_attention_interval": (1, MAX_LAYERS),
    "interleave_moe_layer_step": (1, MAX_LAYERS),
    "moe_every_n_layers": (0, MAX_LAYERS),
    "moe_latent_size": (1, 1 << 20),
    "nextn_predict_layers": (0, 64),
    "pooling_type": (0, 16),
    "shortconv.l_cache": (1, 1 << 10),
    "expert_count": (0, 1024),
    "expert_used_count": (0, 1024),
    "expert_shared_count": (0, 1024),
    "expert_feed_forward_length": (0, 1 << 24),
    "expert_shared_feed_forward_length": (0, 1 << 24),
    "leading_dense_block_count": (0, MAX_LAYERS),
    "rope.dimension_count": (0, 1 << 14),
    "rope.dimension_count_swa": (0, 1 << 14),
    "rope.scaling.original_context_length": (1, 1 << 27),
    "kda.head_dim": (1, 1 << 14),
    "ssm.conv_kernel": (1, 1 << 10),
    "ssm.group_count": (1, 1 << 14),
    "ssm.inner_size": (1, 1 << 22),
    "ssm.state_size": (1, 1 << 16),
    "ssm.time_step_rank": (1, 1 << 20),
}
"""Whole numbers, and the ends of their ranges."""
BY_LAYER = (
    "activation_sparsity_scale",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.recurrent_layers",
    "attention.sliding_window_pattern",
    "feed_forward_length",
)
"""Those of which some files have one for each layer."""
FLAGS_BY_LAYER = ("attention.recurrent_layers", "attention.sliding_window_pattern")
"""Of these, those that may be yes or no."""

NEEDED = ("block_count", "embedding_length", "attention.head_count")
"""Keys that every file has."""

NUMBERS: dict[str, tuple[float, float]] = {
    "activation_sparsity_scale": (-math.inf, 100.0),
    "attention.layer_norm_rms_epsilon": (0.0, 1.0),
    "attention.layer_norm_epsilon": (0.0, 1.0),
    "attention.clamp_kqv": (0.0, 1e9),
    "attention.max_alibi_bias": (0.0, 1e6),
    "attn_logit_softcapping": (0.0, 1e9),
    "final_logit_softcapping": (0.0, 1e9),
    "rope.freq_base": (1e-3, 1e15),
    "rope.scale_linear": (0.0, 1e9),
    "rope.scaling.factor": (0.0, 1e9),
    "rope.scaling.attn_factor": (0.0, 1e6),
    "rope.scaling.yarn_attn_factor": (0.0, 1e6),
    "rope.scaling.yarn_beta_fast": (0.0, 1e6),
    "rope.scaling.yarn_beta_slow": (0.0, 1e6),
}
"""Numbers, and the ends of their ranges."""

FLAGS = ("attention.causal", "rope.scaling.finetuned", "expert_weights_norm", "ssm.dt_b_c_rms", "use_parallel_residual")
TEXTS = ("rope.scaling.type",)


def checked(metadata: Metadata, arch: str, key: str, default: Any) -> Any:
    """The value of `arch.key`, or `default`. Raises CheckpointError for what no model has."""
    name = f"{arch}.{key}"
    if name not in metadata:
        return default
    if key in FLAGS:
        return metadata.flag(name, False)
    if key in TEXTS:
        return metadata.text(name)
    length, whole = metadata.length(name), key in WHOLE
    if length is not None and not (key in BY_LAYER and length <= MAX_LAYERS):
        metadata.fail(f"{shown(name)} must be a number, and is an array of {length} values")
    value = metadata[name]
    least, most = WHOLE[key] if whole else NUMBERS.get(key, (-1e9, 1e9))
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, bool) and length is not None and key in FLAGS_BY_LAYER:
            continue
        if isinstance(number, bool) or not isinstance(number, int if whole else int | float):
            metadata.fail(f"{shown(name)} must be a {'whole ' if whole else ''}number, and is {shown(value)}")
        if not least <= number <= most:  # as what is no number, too
            metadata.fail(f"{shown(name)} is {shown(value)}, and must be in {least:g} to {most:g}")
    return value


def check_sizes(metadata: Metadata, arch: str, tensors: Mapping[str, GGUFTensor]) -> None:
    """That layers and experts are as many as the file has tensors of. Raises CheckpointError."""

    def value(key: str, default: Any = None) -> Any:
        return checked(metadata, arch, key, default)

    for key in NEEDED:
        if f"{arch}.{key}" not in metadata:
            metadata.fail(f"{arch}.{key} is missing")
    layers = value("block_count")
    for key in BY_LAYER:
        if isinstance(each := value(key), list) and len(each) != layers:
            metadata.fail(f"{arch}.{key} has {len(each)} values for {layers} layers")
    more = value("nextn_predict_layers", 0)
    if more >= layers:
        metadata.fail(f"{arch}.nextn_predict_layers is {more} of {layers} layers")
    counts = {
        "": (layers - more, layers),
        "enc.": (layers, layers),
        "dec.": (value("decoder_block_count", layers),) * 2,
    }
    last = dict[str, int]()
    for name in tensors:
        if match := _LAYER.match(name):
            last[match[1]] = max(last.get(match[1], 0), int(match[2]) + 1)
    for stack in last or [""]:
        (least, most), there = counts[stack], last.get(stack, 0)
        if not least <= there <= most:
            key = "decoder_block_count" if stack == "dec." else "block_count"
            metadata.fail(f"{arch}.{key} is {most}, and it has the tensors of {there} layers")
    experts = value("expert_count") or 0
    stacks = [(name, t.shape[0]) for name, t in tensors.items() if t.shape and _EXPERTS.search(name)]
    for name, count in stacks:
        if count != experts:
            metadata.fail(f"{arch}.expert_count is {experts}, and tensor {name} has {count}")
    if experts and not stacks:
        metadata.fail(f"{arch}.expert_count is {experts}, and it has no tensors of experts (ffn_up_exps and so on)")
    if experts and not 1 <= value("expert_used_count", 0) <= experts:
        metadata.fail(f"{arch}.expert_used_count is {value('expert_used_count')} of {experts} experts")
