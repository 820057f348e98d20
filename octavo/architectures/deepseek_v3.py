"""DeepSeek-V3 (DeepSeek-AI 2024) and what has its layers: latent attention, and experts whose router keeps the balance.

Each expert is scored by itself. A bias counts for which ones are chosen, not for their weights.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from octavo.architectures.balanced_experts import DENSE, SPARSE, by_layer, shared_experts, sigmoid_route
from octavo.architectures.decoder import decoder, rms_norm, without_more_layers
from octavo.architectures.deepseek import DEEPSEEK_NAMES
from octavo.architectures.deepseek_v2 import LATENT, latent_attention
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.latent_gguf import LATENT_PARTS, balances, latent_from_gguf
from octavo.architectures.model_config import Config
from octavo.architectures.mtp import after_layers
from octavo.architectures.registry import architecture
from octavo.errors import UnsupportedModelError
from octavo.parts import CausalLM, Into, LatentAttention, PreNorm

EPS = 1e-6
"""Of the norms inside attention, whatever the config says of the others."""


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    """What a file leaves out is not done, whatever the published config's default is."""
    usual = {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "routed_scaling_factor": 1.0}
    return {**latent_from_gguf(shared, file), **{k: shared.get(k) or v for k, v in usual.items()}}


@architecture(
    "DeepseekV3ForCausalLM",
    about="DeepSeek-V3, DeepSeek-R1, Kimi K2, Moonlight",
    examples=("deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-R1", "moonshotai/Kimi-K2-Instruct"),
    gguf=GGUFFormat("deepseek2", config=_from_gguf, joined=LATENT_PARTS, when=balances),
)
def deepseek_v3(c: Config) -> CausalLM:
    """All layers have experts but the first few."""
    first = c.first_k_dense_replace if c.get("n_routed_experts") else c.num_hidden_layers
    return body(c, [SPARSE if i >= first else DENSE for i in range(c.num_hidden_layers)])


@architecture("Glm4MoeLiteForCausalLM", about="GLM-4.7-Flash", examples=("zai-org/GLM-4.7-Flash",), read_as="deepseek2")
def glm4_moe_lite(c: Config) -> CausalLM:
    """Where nothing says which layers have experts, all have but the first."""
    return body(c, c.get("mlp_layer_types", [DENSE, *[SPARSE] * (c.num_hidden_layers - 1)]))


def body(
    c: Config,
    types: Sequence[str],
    attention: Callable[[int], LatentAttention] | None = None,
    table: Mapping[str, str | Into] = LATENT,
) -> CausalLM:
    """Layers whose feed-forwards are of these types.

    Args:
        attention: makes that of the layer of a given index, and of one more, whose tensors `table` names; None for the
            usual one.
    """
    if (scores := c.get("scoring_func", "sigmoid")) != "sigmoid":
        raise UnsupportedModelError(f"config.json: scoring_func {scores[:60]!r} is unknown here; it is sigmoid.")
    route = partial(sigmoid_route, c, c.routed_scaling_factor, c.norm_topk_prob, by_groups=True)
    norm, sparse = rms_norm(c), shared_experts(c, route, c.get("n_shared_experts", 0))
    mlp = by_layer(c, types, sparse)
    if attention is None:
        attn = latent_attention(c, c.get("rope_interleave", True), EPS)
        attention = lambda i: attn()  # noqa: E731
    names = without_more_layers(c, DEEPSEEK_NAMES.replacing(table))
    model = decoder(c, norm, lambda i: PreNorm(norm, attn=attention(i), mlp=mlp[i]), names)
    return after_layers(model, c, norm, lambda: PreNorm(norm, attn=attention(c.num_hidden_layers), mlp=sparse()))
