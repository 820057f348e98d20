"""Trinity (Arcee AI 2025): gated attention that rotates on sliding layers alone, norms on both sides."""

from functools import partial
from typing import Any

from octavo.architectures.balanced_experts import DENSE, SPARSE, by_layer, shared_experts, sigmoid_route
from octavo.architectures.decoder import attention, decoder, head_norms, rms_norm
from octavo.architectures.deepseek import DEEPSEEK_NAMES
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_settings import FULL, SLIDING, layer_types
from octavo.parts import CausalLM, Embedding, GatedAttention, SandwichNorm, parameter

AFMOE_NAMES = DEEPSEEK_NAMES.replacing(
    {
        "model.layers.{i}.self_attn.gate_proj": "layers.{i}.attn.qkv.gate",
        "model.layers.{i}.post_attention_layernorm": "layers.{i}.attn_post_norm",
        "model.layers.{i}.{pre|post}_mlp_layernorm": "layers.{i}.{mlp_norm|mlp_post_norm}",
        "model.layers.{i}.mlp.router.gate": "layers.{i}.mlp.router",
        "model.layers.{i}.mlp.expert_bias": parameter("layers.{i}.mlp.choice_bias"),
    }
)


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    return {
        "num_dense_layers": file.value("leading_dense_block_count", 0),
        "num_shared_experts": file.value("expert_shared_count"),
        "route_scale": file.value("expert_weights_scale") or 1.0,
        "mup_enabled": True,  # as all that are published
    }


@architecture(
    "AfmoeForCausalLM",
    about="Trinity",
    examples=("arcee-ai/Trinity-Nano-Preview", "arcee-ai/Trinity-Mini"),
    gguf=GGUFFormat("afmoe", config=_from_gguf),
)
def afmoe(c: Config) -> CausalLM:
    count, every, first = c.num_hidden_layers, c.global_attn_every_n_layers, c.get("num_dense_layers", 0)
    types = layer_types(c, [SLIDING if (i + 1) % every else FULL for i in range(count)])
    slides, bias = [kind == SLIDING for kind in types], c.attention_bias
    attn = attention(
        c,
        window=[c.get("sliding_window") if each else None for each in slides],
        rotates=slides,
        qk_transform=head_norms(c),
        part=GatedAttention,
        bias=("q", "k", "v") if bias else False,
        out_bias=bias,
    )
    sparse = shared_experts(c, partial(sigmoid_route, c, c.get("route_scale", 1.0)), c.get("num_shared_experts", 0))
    norm, mlp = rms_norm(c), by_layer(c, [DENSE if i < first else SPARSE for i in range(count)], sparse)
    embed = Embedding(c.vocab_size, c.hidden_size, c.hidden_size**0.5 if c.get("mup_enabled") else 1.0)
    return decoder(c, norm, lambda i: SandwichNorm(norm, attn=attn(i), mlp=mlp[i]), AFMOE_NAMES, embed=embed)
