"""GPT-NeoX and Pythia (Black et al. 2022): two norms side by side, q, k and v fused head by head."""

from functools import partial

from octavo.architectures.decoder import decoder
from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_config import make_rope
from octavo.parts import MLP, Attention, CausalLM, LayerNorm, Names, PreNorm, SideBySide, grouped_qkv


def names(num_heads: int, head_dim: int) -> Names:
    return Names(
        {
            "gpt_neox.embed_in": "embed",
            "gpt_neox.layers.{i}.input_layernorm": "layers.{i}.attn_norm",
            "gpt_neox.layers.{i}.attention.query_key_value": grouped_qkv("layers.{i}.attn.qkv", num_heads, 1, head_dim),
            "gpt_neox.layers.{i}.attention.dense": "layers.{i}.attn.o",
            "gpt_neox.layers.{i}.post_attention_layernorm": "layers.{i}.mlp_norm",
            "gpt_neox.layers.{i}.mlp.dense_h_to_4h": "layers.{i}.mlp.up",
            "gpt_neox.layers.{i}.mlp.dense_4h_to_h": "layers.{i}.mlp.down",
            "gpt_neox.final_layer_norm": "norm",
            "embed_out": "head",
        },
        # Masks and rotary buffers, which old files carry.
        ignored=(
            "gpt_neox.layers.{i}.attention.bias",
            "gpt_neox.layers.{i}.attention.masked_bias",
            "gpt_neox.layers.{i}.attention.rotary_emb.inv_freq",
        ),
        prefix="gpt_neox.",
    )


@architecture(
    "GPTNeoXForCausalLM",
    about="GPT-NeoX, Pythia, OpenAssistant, Dolly V2, StableLM",
    examples=("EleutherAI/gpt-neox-20b", "EleutherAI/pythia-12b", "databricks/dolly-v2-12b"),
    gguf=GGUFFormat(
        "gptneox",
        config=lambda shared, file: {
            "use_parallel_residual": file.value("use_parallel_residual", True),
            "attention_bias": "blk.0.attn_qkv.bias" in file.tensors,
        },
        names={"gpt_neox.layers.{i}.attention.query_key_value": "layers.{i}.attn.qkv"},
    ),
)
def gpt_neox(c: Config) -> CausalLM:
    hidden_size, num_heads = c.hidden_size, c.num_attention_heads
    head_dim, bias = hidden_size // num_heads, c.attention_bias
    norm = partial(LayerNorm, hidden_size, c.layer_norm_eps)
    rope = make_rope(c, head_dim)
    attn = partial(Attention, hidden_size, num_heads, num_heads, head_dim, rope=rope, bias=bias, out_bias=bias)
    mlp = partial(MLP, hidden_size, c.intermediate_size, c.hidden_act, bias=True)
    wiring = SideBySide if c.use_parallel_residual else PreNorm
    return decoder(c, norm, lambda i: wiring(norm, attn=attn(), mlp=mlp()), names(num_heads, head_dim))
