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
    "attention.sliding_window": (0, 1 << 27),
    "expert_count": (0, 1024),
    "expert_used_count": (0, 1024),
    "expert_shared_count": (0, 1024),
    "expert_feed_forward_length": (0, 1 << 24),
    "expert_shared_feed_forward_length": (0, 1 << 24),
    "leading_dense_block_count": (0, MAX_LAYERS),
    "rope.dimension_count": (0, 1 << 14),
    "rope.scaling.original_context_length": (1, 1 << 27),
    "ssm.conv_kernel": (1, 1 << 10),
    "ssm.inner_size": (1, 1 << 22),
    "ssm.state_size": (1, 1 << 16),
    "ssm.time_step_rank": (1, 1 << 20),
}
"""Whole numbers, and the ends of their ranges."""
BY_LAYER = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")
"""Those of which some files have one for each layer."""

NUMBERS: dict[str, tuple[float, float]] = {
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

FLAGS = ("expert_weights_norm", "ssm.dt_b_c_rms", "use_parallel_residual")
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
        if isinstance(number, bool) or not isinstance(number, int if whole else int | float):
            metadata.fail(f"{shown(name)} must be a {'whole ' if whole else ''}number, and is {shown(value)}")
        if not (math.isfinite(number) and least <= number <= most):
            metadata.fail(f"{shown(name)} is {shown(value)}, and must be in {least:g} to {most:g}")
    return value


def check_sizes(metadata: Metadata, arch: str, tensors: Mapping[str, GGUFTensor]) -> None:
    """That layers and experts are as many as the file has tensors of. Raises CheckpointError."""

    def value(key: str, default: Any = None) -> Any:
        return checked(metadata, arch, key, default)

    layers = value("block_count")
    if layers is None:
        metadata.fail(f"{arch}.block_count is missing")
    for key in BY_LAYER:
        if isinstance(each := value(key), list) and len(each) != layers:
            metadata.fail(f"{arch}.{key} has {len(each)} values for {layers} layers")
    numbers = (name.split(".")[1] for name in tensors if name.startswith("blk."))
    last = max((int(n) for n in numbers if n.isascii() and n.isdigit() and len(n) < 5), default=-1)
    if layers != last + 1:
        metadata.fail(f"{arch}.block_count is {layers}, and it has the tensors of {last + 1} layers")
    experts = value("expert_count") or 0
    stacks = [(name, t.shape[0]) for name, t in tensors.items() if t.shape and _EXPERTS.search(name)]
    for name, count in stacks:
        if count != experts:
            metadata.fail(f"{arch}.expert_count is {experts}, and tensor {name} has {count}")
    if experts and not stacks:
        metadata.fail(f"{arch}.expert_count is {experts}, and it has no tensors of experts (ffn_up_exps and so on)")
    if experts and not 1 <= value("expert_used_count", 1) <= experts:
        metadata.fail(f"{arch}.expert_used_count is {value('expert_used_count')} of {experts} experts")
