"""OLMoE (Muennighoff et al. 2024): Llama's body with many small experts, and norms over the whole of q and of k."""

from functools import partial

from torch import Tensor

from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.llama import ATTENTION_NAMES, IGNORED, llama_body
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import CausalLM, Clip, GatedMLP, MoE, Names, QKNorm, RMSNorm, softmax_then_topk

NAMES = Names(
    {
        **ATTENTION_NAMES,
        "model.layers.{i}.self_attn.{q|k}_norm": "layers.{i}.attention.inner.qk_transform.{q|k}",
        "model.layers.{i}.mlp.gate": "layers.{i}.mlp.inner.router",
        "model.layers.{i}.mlp.experts.{e}.{gate|up}_proj": "layers.{i}.mlp.inner.experts.{e}.gate_up.{gate|up}",
        "model.layers.{i}.mlp.experts.{e}.down_proj": "layers.{i}.mlp.inner.experts.{e}.down",
    },
    IGNORED,
    prefix="model.",
)


class NormThenClip(QKNorm):
    """OLMoE's order: norms of q and k over their full width, then all three between limits."""

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, eps: float, limit: float | None) -> None:
        q, k = RMSNorm(num_heads * head_dim, eps), RMSNorm(num_kv_heads * head_dim, eps)
        super().__init__(num_heads, num_kv_heads, q, k, full_width=True)
        self.clip = None if limit is None else Clip(limit)

    def forward(self, qkv: Tensor) -> Tensor:
        normed = super().forward(qkv)
        return normed if self.clip is None else self.clip(normed)


@architecture(
    "OlmoeForCausalLM",
    "OLMoEForCausalLM",
    about="OLMoE",
    examples=("allenai/OLMoE-1B-7B-0924", "allenai/OLMoE-1B-7B-0924-Instruct"),
    gguf=GGUFFormat("olmoe"),
)
def olmoe(c: Config) -> CausalLM:
    num_heads, bias = c.num_attention_heads, c.attention_bias
    num_kv_heads, head_dim = c.get("num_key_value_heads", num_heads), c.hidden_size // num_heads
    eps, count = c.rms_norm_eps, c.num_experts
    expert = partial(GatedMLP, c.hidden_size, c.intermediate_size, c.hidden_act)
    route = softmax_then_topk(c.num_experts_per_tok, c.norm_topk_prob)
    return llama_body(
        c,
        mlp=lambda layer: MoE(c.hidden_size, [expert() for _ in range(count)], route),
        names=NAMES,
        qk_transform=lambda: NormThenClip(num_heads, num_kv_heads, head_dim, eps, c.get("clip_qkv")),
        bias=bias,
        out_bias=bias,
    )
