"""Command-R (Cohere 2024): attention and feed-forward side by side behind one norm, pairs of rotary as neighbours."""

from functools import partial

from octavo.architectures.decoder import attention, decoder, gated_mlp
from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_config import make_rope
from octavo.architectures.rope_settings import FULL, SLIDING, layer_types
from octavo.parts import CausalLM, HeadNorm, LayerNorm, QKNorm, SharedNorm


@architecture(
    "CohereForCausalLM",
    about="Command-R",
    examples=("CohereForAI/c4ai-command-r-v01",),
    gguf=GGUFFormat(
        "command-r", config=lambda shared, file: {"use_qk_norm": "blk.0.attn_q_norm.weight" in file.tensors}
    ),
)
def cohere(c: Config) -> CausalLM:
    num_heads, eps, bias = c.num_attention_heads, c.layer_norm_eps, c.attention_bias
    num_kv_heads, head_dim = c.get("num_key_value_heads", num_heads), c.hidden_size // num_heads

    def head_norms() -> QKNorm | None:
        norms = HeadNorm(num_heads, head_dim, eps), HeadNorm(num_kv_heads, head_dim, eps)
        return QKNorm(*norms) if c.use_qk_norm else None

    rope = make_rope(c, head_dim, interleaved=True)
    attn = attention(c, rope=rope, bias=bias, out_bias=bias, qk_transform=head_norms)
    norm, mlp = partial(LayerNorm, c.hidden_size, eps, bias=False), gated_mlp(c)
    return decoder(c, norm, lambda i: SharedNorm(norm, attn=attn(i), mlp=mlp()), logit_scale=c.logit_scale)


@architecture(
    "Cohere2ForCausalLM",
    about="Command R7B, Command A",
    examples=("CohereLabs/c4ai-command-r7b-12-2024", "CohereLabs/c4ai-command-a-03-2025"),
    gguf=GGUFFormat("cohere2"),
)
def cohere2(c: Config) -> CausalLM:
    """Layers with a window rotate, full ones do not."""
    bias, every = c.attention_bias, c.get("sliding_window_pattern", 4)
    types = layer_types(c, [SLIDING if (i + 1) % every else FULL for i in range(c.num_hidden_layers)])
    window = [c.value("sliding_window") if kind == SLIDING else None for kind in types]
    attn = attention(
        c, window=window, rotates=[each is not None for each in window], interleaved=True, bias=bias, out_bias=bias
    )
    norm, mlp = partial(LayerNorm, c.hidden_size, c.layer_norm_eps, bias=False), gated_mlp(c)
    return decoder(c, norm, lambda i: SharedNorm(norm, attn=attn(i), mlp=mlp()), logit_scale=c.logit_scale)
