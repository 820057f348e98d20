"""GLM-4.5 (Zhipu AI 2025), dots.llm1 (Xiaohongshu 2025): attention with norms of each head, DeepSeek-V3's experts."""

from functools import partial
from typing import Any

from octavo.architectures.balanced_experts import DENSE, SPARSE, by_layer, shared_experts, sigmoid_route
from octavo.architectures.decoder import attention, decoder, head_norms, rms_norm, without_more_layers
from octavo.architectures.deepseek import DEEPSEEK_NAMES
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader, input_biases
from octavo.architectures.model_config import Config
from octavo.architectures.mtp import after_layers
from octavo.architectures.registry import architecture
from octavo.architectures.rope_settings import SLIDING, layer_type, layer_types
from octavo.parts import CausalLM, PreNorm, QKTransform


def body(c: Config, out_bias: bool, has_norms: bool, window: int | list[int | None] | None = None) -> CausalLM:
    """The first layers without experts."""
    first = c.first_k_dense_replace if c.get("n_routed_experts") else c.num_hidden_layers
    types = [DENSE if i < first else SPARSE for i in range(c.num_hidden_layers)]
    route = partial(sigmoid_route, c, c.routed_scaling_factor, c.norm_topk_prob, by_groups=True)
    norm, sparse = rms_norm(c), shared_experts(c, route, c.get("n_shared_experts", 0))
    mlp, norms = by_layer(c, types, sparse), head_norms(c)

    def transform() -> QKTransform | None:
        return norms() if has_norms else None

    attn = attention(c, window=window, qk_transform=transform, bias=c.attention_bias, out_bias=out_bias)
    names, last = without_more_layers(c, DEEPSEEK_NAMES), c.num_hidden_layers - 1
    model = decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp[i]), names)
    return after_layers(model, c, norm, lambda: PreNorm(norm, attn=attn(last), mlp=sparse()))


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    return {**input_biases(file), "use_qk_norm": "blk.0.attn_q_norm.weight" in file.tensors}


@architecture(
    "Glm4MoeForCausalLM",
    about="GLM-4.5, GLM-4.6, GLM-4.7",
    examples=("zai-org/GLM-4.5", "zai-org/GLM-4.5-Air", "zai-org/GLM-4.6"),
    gguf=GGUFFormat("glm4moe", config=_from_gguf),
)
def glm4_moe(c: Config) -> CausalLM:
    return body(c, False, c.use_qk_norm)


@architecture(
    "Dots1ForCausalLM",
    about="dots.llm1",
    examples=("rednote-hilab/dots.llm1.inst",),
    gguf=GGUFFormat("dots1"),
)
def dots1(c: Config) -> CausalLM:
    """Windows on late layers, whether or not use_sliding_window says so, as the config class has it."""
    window, first = c.get("sliding_window"), c.max_window_layers
    usual = [layer_type(window if i >= first else None) for i in range(c.num_hidden_layers)]
    windows = [window if kind == SLIDING else None for kind in layer_types(c, usual)]
    return body(c, c.attention_bias, True, windows)
