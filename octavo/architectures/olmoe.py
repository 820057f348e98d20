"""OLMoE (Muennighoff et al. 2024): Llama's body with many small experts, and norms over the whole of q and of k."""

from functools import partial

from octavo.architectures.decoder import attention, decoder, gated_mlp, moe, rms_norm
from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.ops import HeadTransform
from octavo.parts import CausalLM, Clip, PreNorm, QKNorm, RMSNorm, softmax_then_topk


class NormThenClip(QKNorm):
    """OLMoE's order: norms of q and k over all heads at once, then all three between limits."""

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, eps: float, limit: float | None) -> None:
        super().__init__(RMSNorm(num_heads * head_dim, eps), RMSNorm(num_kv_heads * head_dim, eps), full_width=True)
        self.clip = None if limit is None else Clip(limit)

    def specs(self, slot: int | None = None) -> tuple[HeadTransform, ...]:
        return super().specs(slot) + (() if self.clip is None else self.clip.specs())


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
    transform = partial(NormThenClip, num_heads, num_kv_heads, head_dim, c.rms_norm_eps, c.get("clip_qkv"))
    norm, attn = rms_norm(c), attention(c, qk_transform=transform, bias=bias, out_bias=bias)
    mlp = moe(c, gated_mlp(c), c.num_experts, softmax_then_topk(c.num_experts_per_tok, c.norm_topk_prob))
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()))
