"""DeepSeek-V3.2 (DeepSeek-AI 2025) and GLM-5 (Zhipu AI 2026): DeepSeek-V3's layers with sparse attention.

A layer attends to the keys that an indexer lists. In GLM-5 some layers take the list of the one before.
"""

from collections.abc import Callable

from octavo.architectures.balanced_experts import DENSE, SPARSE
from octavo.architectures.deepseek_v2 import LATENT, latent_attention
from octavo.architectures.deepseek_v3 import EPS, body
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_config import make_rope
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.parts import CausalLM, Indexer, Into, LatentAttention, SparseLatentAttention

OWN, SHARED = "full", "shared"
"""Layers that list keys themselves, and that take the list of the one before."""
INDEXER = "model.layers.{i}.self_attn.indexer."
TABLE: dict[str, str | Into] = {
    **LATENT,
    INDEXER + "wq_b": "layers.{i}.attn.indexer.q",
    INDEXER + "wk": "layers.{i}.attn.indexer.k",
    INDEXER + "k_norm": "layers.{i}.attn.indexer.k_norm",
    INDEXER + "weights_proj": "layers.{i}.attn.indexer.head_weights",
}


def sparse_attention(c: Config, interleaved: bool, types: list[str]) -> Callable[[int], LatentAttention]:
    """Makes the attention of the layer of a given index, whose lists are as `types` says.

    `interleaved`: how the indexer's rotary pairs lie where the config does not say it.
    """
    if c.get("q_lora_rank") is None:
        raise UnsupportedModelError("config.json: q_lora_rank is null, and this model's indexer reads such values.")
    if c.index_head_dim < c.qk_rope_head_dim:
        raise CheckpointError(
            f"config.json: index_head_dim is {c.index_head_dim}, less than the qk_rope_head_dim of "
            f"{c.qk_rope_head_dim} values that are rotated in it."
        )
    interleaved = c.get("indexer_rope_interleave", interleaved)
    attn = latent_attention(c, c.get("rope_interleave", True), EPS, part=SparseLatentAttention)
    rope = make_rope(c, c.qk_rope_head_dim, partial=False)

    def indexer() -> Indexer:
        return Indexer(
            c.hidden_size,
            c.q_lora_rank,
            num_heads=c.index_n_heads,
            head_dim=c.index_head_dim,
            rope_dim=c.qk_rope_head_dim,
            top_k=c.index_topk,
            rope=rope,
            interleaved=interleaved,
        )

    def make(i: int) -> LatentAttention:
        owner = max(j for j in range(i + 1) if types[j] == OWN)
        is_followed = i + 1 < len(types) and types[i + 1] == SHARED
        name = f"keys of layer {owner}" if types[i] == SHARED or is_followed else ""
        return attn(indexer=indexer() if i == owner else None, list_name=name, is_last_reader=not is_followed)

    return make


def feed_forward_types(c: Config) -> list[str]:
    """All layers have experts but the first few, unless each one's type is stated."""
    types = [SPARSE if i >= c.first_k_dense_replace else DENSE for i in range(c.num_hidden_layers)]
    return list(c.get("mlp_layer_types", types))


def list_types(c: Config) -> list[str]:
    """Each layer's OWN or SHARED, in the spellings that there are: all, a pattern of letters, or every how many."""
    count, key = c.num_hidden_layers, "indexer_types"
    if (types := c.get(key)) is None and (pattern := c.get("index_topk_pattern")) is not None:
        key, letters = "index_topk_pattern", {"F": OWN, "S": SHARED}
        types = [letters.get(kind, kind) for kind in pattern] if isinstance(pattern, str) else pattern
    if types is None:
        every, offset, key = max(c.get("index_topk_freq", 1), 1), c.get("index_skip_topk_offset", 2), "index_topk_freq"
        types = [SHARED if max(i - offset + 1, 0) % every else OWN for i in range(count)]
    if len(types) != count:
        raise CheckpointError(f"config.json: {key} has {len(types)} types for {count} layers.")
    if unknown := set(types) - {OWN, SHARED}:
        raise CheckpointError(f"config.json: {key} has {min(unknown)[:60]!r}, and must have {OWN} or {SHARED}.")
    if types[0] != OWN:
        raise CheckpointError(f"config.json: {key} has the first layer share a list, and none is before it.")
    return list(types)


@architecture(
    "DeepseekV32ForCausalLM",
    about="DeepSeek-V3.2",
    examples=("deepseek-ai/DeepSeek-V3.2-Exp", "deepseek-ai/DeepSeek-V3.2"),
)
def deepseek_v32(c: Config) -> CausalLM:
    types = [OWN] * (c.num_hidden_layers + 1)
    return body(c, feed_forward_types(c), sparse_attention(c, False, types), TABLE)


@architecture("GlmMoeDsaForCausalLM", about="GLM-5", examples=("zai-org/GLM-5",))
def glm_moe_dsa(c: Config) -> CausalLM:
    types = list_types(c)
    model = body(c, feed_forward_types(c), sparse_attention(c, True, [*types, OWN]), TABLE)
    unused = (INDEXER.replace("{i}", str(i)) for i, kind in enumerate(types) if kind == SHARED)
    model.names = model.names.leaving_out(*unused)
    return model
