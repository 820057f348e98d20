"""MPNet (Song et al. 2020): BERT's layers with relative biases in buckets, which all layers share."""

from octavo.architectures.model_config import Config
from octavo.architectures.opt import POSITION_OFFSET, drop_padding
from octavo.architectures.registry import EMBEDS, architecture
from octavo.parts import (
    MLP,
    BidirectionalAttention,
    CausalLM,
    Embedding,
    Into,
    LayerNorm,
    Names,
    PostNorm,
    RelativeBias,
    TextEmbedding,
    TextEncoder,
)

TABLE: dict[str, str | Into] = {
    "mpnet.embeddings.word_embeddings": "embed.tokens",
    "mpnet.embeddings.LayerNorm": "embed.norm",
    "mpnet.encoder.relative_attention_bias": "shared",
    "mpnet.encoder.layer.{i}.attention.attn.{q|k|v}": "layers.{i}.attn.qkv.{q|k|v}",
    "mpnet.encoder.layer.{i}.attention.attn.o": "layers.{i}.attn.o",
    "mpnet.encoder.layer.{i}.attention.LayerNorm": "layers.{i}.attn_norm",
    "mpnet.encoder.layer.{i}.intermediate.dense": "layers.{i}.mlp.up",
    "mpnet.encoder.layer.{i}.output.dense": "layers.{i}.mlp.down",
    "mpnet.encoder.layer.{i}.output.LayerNorm": "layers.{i}.mlp_norm",
}
IGNORED = (
    "mpnet.embeddings.position_ids",
    *(f"mpnet.pooler.dense.{name}" for name in ("weight", "bias")),
    *(f"lm_head.{part}.{name}" for part in ("dense", "layer_norm", "decoder") for name in ("weight", "bias")),
    "lm_head.bias",
)
MAX_DISTANCE = 128


@architecture(
    "MPNetModel",
    about="MPNet embedders",
    examples=("sentence-transformers/all-mpnet-base-v2",),
    tasks=EMBEDS,
)
@architecture(
    "MPNetForMaskedLM",
    about="MPNet embedders, as published",
    examples=("sentence-transformers/all-mpnet-base-v2",),
    tasks=EMBEDS,
)
def mpnet(c: Config) -> CausalLM:
    size, heads = c.hidden_size, c.num_attention_heads
    bias = RelativeBias(c.relative_attention_num_buckets, heads, MAX_DISTANCE, both_ways=True)
    names = Names(
        {**TABLE, "mpnet.embeddings.position_embeddings": Into("embed.positions", drop_padding)}, IGNORED, "mpnet."
    )

    def norm() -> LayerNorm:
        return LayerNorm(size, c.layer_norm_eps)

    def layer(i: int) -> PostNorm:
        attn = BidirectionalAttention(size, heads, bias=True, position_bias=bias.of_heads)
        return PostNorm(norm, attn=attn, mlp=MLP(size, c.intermediate_size, c.hidden_act, bias=True))

    positions = Embedding(c.max_position_embeddings - POSITION_OFFSET, size)
    embed = TextEmbedding(Embedding(c.vocab_size, size), positions, norm=norm())
    return TextEncoder(embed, layer, c.num_hidden_layers, size, names, shared=bias)
