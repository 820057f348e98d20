"""EuroBERT (Boizard et al. 2025): Llama's layers, whose tokens see both ways."""

from octavo.architectures.decoder import NAMES, gated_mlp, rms_norm
from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import EMBEDS, architecture
from octavo.architectures.rope_config import make_rope
from octavo.parts import BidirectionalAttention, CausalLM, Embedding, Names, PreNorm, TextEmbedding, TextEncoder

TABLE = Names(
    {**NAMES.table, "model.embed_tokens": "embed.tokens"},
    (*NAMES.ignored, "lm_head.weight"),
    prefix="model.",
)


@architecture(
    "EuroBertModel",
    "EuroBertForMaskedLM",
    about="EuroBERT embedders",
    examples=("EuroBERT/EuroBERT-210m",),
    tasks=EMBEDS,
    gguf=GGUFFormat("eurobert"),
)
def eurobert(c: Config) -> CausalLM:
    norm, mlp, heads = rms_norm(c), gated_mlp(c, c.mlp_bias), c.num_attention_heads
    head_dim = c.get("head_dim", c.hidden_size // heads)
    rope = make_rope(c, head_dim)

    def layer(i: int) -> PreNorm:
        kv_heads = c.get("num_key_value_heads", heads)
        attn = BidirectionalAttention(c.hidden_size, heads, kv_heads, head_dim, rope=rope, bias=c.attention_bias)
        return PreNorm(norm, attn=attn, mlp=mlp())

    embed = TextEmbedding(Embedding(c.vocab_size, c.hidden_size))
    return TextEncoder(embed, layer, c.num_hidden_layers, c.hidden_size, TABLE, norm=norm())
