"""Mistral Small 4 (Mistral AI 2026): DeepSeek's latent attention whose queries grow with positions, and its experts."""

from functools import partial
from typing import Any

from octavo.architectures.balanced_experts import DENSE, SPARSE, STACKED_EXPERTS, by_layer, shared_experts
from octavo.architectures.decoder import decoder, rms_norm
from octavo.architectures.deepseek import DEEPSEEK_NAMES
from octavo.architectures.deepseek_v2 import LATENT, latent_attention
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.latent_gguf import LATENT_PARTS, latent_from_gguf
from octavo.architectures.mistral import position_scale
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.ops import RouterSpec
from octavo.parts import CausalLM, PreNorm

MISTRAL4_NAMES = DEEPSEEK_NAMES.replacing(LATENT).extended(STACKED_EXPERTS)
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 128.0,
    "original_max_position_embeddings": 8192,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
"""What a config without rope_parameters means."""


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    """What a file leaves out is not done: of those made of transformers' folders, the growth of queries too."""
    made = latent_from_gguf(shared, file)
    scaling = {**(made["rope_scaling"] or {"rope_type": "default"}), "rope_theta": shared["rope_theta"]}
    if beta := file.value("attention.temperature_scale"):
        scaling["llama_4_scaling_beta"] = beta
    return {
        **made,
        "rope_scaling": None,
        "rope_parameters": scaling,
        "rope_interleave": True,
        "norm_topk_prob": bool(shared.get("norm_topk_prob")),
        "routed_scaling_factor": shared.get("routed_scaling_factor") or 1.0,
        "n_group": shared.get("n_group") or 1,
        "topk_group": shared.get("topk_group") or 1,
    }


@architecture(
    "Mistral4ForCausalLM",
    about="Mistral Small 4",
    examples=("mistralai/Mistral-Small-4-119B-2603",),
    gguf=GGUFFormat("mistral4", config=_from_gguf, joined=LATENT_PARTS),
)
def mistral4(c: Config) -> CausalLM:
    """Groups of experts are chosen by their two best, and the weights scaled whether or not they sum to one."""
    if not c.get("rope_parameters", {}) and not c.get("rope_scaling", {}):
        c = c.replace(rope_parameters=ROPE)
    count, first = c.num_hidden_layers, c.get("first_k_dense_replace", 0)
    route = partial(
        RouterSpec,
        c.get("num_experts_per_tok", 4),
        norm=1.0 if c.get("norm_topk_prob", False) else None,
        eps=1e-20,
        factor=c.routed_scaling_factor,
        num_groups=c.get("n_group", 1),
        top_groups=c.get("topk_group", 1),
        group_best=2,
    )
    types = [SPARSE if i >= first else DENSE for i in range(count)]
    norm, mlp = rms_norm(c), by_layer(c, types, shared_experts(c, route, c.n_shared_experts))
    attn = latent_attention(c, c.get("rope_interleave", False), 1e-6, position_scale(c))
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(), mlp=mlp[i]), MISTRAL4_NAMES)
