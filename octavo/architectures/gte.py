"""GTE's encoder (Zhang et al. 2024), called New in its first files: rope, gated feed-forwards, norms after pieces."""

from functools import partial

from octavo.architectures.bert import FIRST, with_head
from octavo.architectures.model_config import Config
from octavo.architectures.registry import CLASSIFIES, EMBEDS, architecture
from octavo.architectures.rope_config import make_rope
from octavo.architectures.score_heads import num_labels
from octavo.parts import (
    BidirectionalAttention,
    CausalLM,
    Embedding,
    GatedMLP,
    Into,
    LayerNorm,
    Names,
    PostNorm,
    ScoreHead,
    TextEmbedding,
    TextEncoder,
    gate_second,
)

TABLE: dict[str, str | Into] = {
    "new.embeddings.{word|token_type}_embeddings": "embed.{tokens|types}",
    "new.embeddings.LayerNorm": "embed.norm",
    "new.encoder.layer.{i}.attention.qkv_proj": "layers.{i}.attn.qkv",
    "new.encoder.layer.{i}.attention.{q|k|v}_proj": "layers.{i}.attn.qkv.{q|k|v}",
    "new.encoder.layer.{i}.attention.o_proj": "layers.{i}.attn.o",
    "new.encoder.layer.{i}.attn_ln": "layers.{i}.attn_norm",
    "new.encoder.layer.{i}.mlp.up_gate_proj": gate_second("layers.{i}.mlp.gate_up"),
    "new.encoder.layer.{i}.mlp.down_proj": "layers.{i}.mlp.down",
    "new.encoder.layer.{i}.mlp_ln": "layers.{i}.mlp_norm",
}
POOLER = tuple(f"new.pooler.dense.{name}" for name in ("weight", "bias"))
HEADS = (
    *(f"classifier.{name}" for name in ("weight", "bias")),
    *(f"lm_head.{part}.{name}" for part in ("dense", "norm", "decoder") for name in ("weight", "bias")),
)


def gte(c: Config, names: Names) -> TextEncoder:
    if c.get("logn_attention_scale"):
        raise ValueError("logn_attention_scale is not supported")
    size, norm = c.hidden_size, partial(LayerNorm, c.hidden_size, c.layer_norm_eps)
    positions = make_rope(c, c.hidden_size // c.num_attention_heads)

    def layer(i: int) -> PostNorm:
        attn = BidirectionalAttention(size, c.num_attention_heads, rope=positions, bias=True)
        mlp = GatedMLP(size, c.intermediate_size, c.hidden_act, down_bias=True)
        return PostNorm(norm, attn=attn, mlp=mlp)

    types = c.get("type_vocab_size", 0)
    embed = TextEmbedding(Embedding(c.vocab_size, size), types=Embedding(types, size) if types else None, norm=norm())
    return TextEncoder(embed, layer, c.num_hidden_layers, size, names)


@architecture(
    "NewModel",
    "NewForMaskedLM",
    "NewForTokenClassification",
    about="GTE v1.5 and multilingual embedders",
    examples=("Alibaba-NLP/gte-multilingual-base",),
    tasks=EMBEDS,
)
@architecture(
    "GteModel",
    about="GTE-based embedders",
    examples=("Snowflake/snowflake-arctic-embed-m-v2.0",),
    tasks=EMBEDS,
)
def gte_embedder(c: Config) -> CausalLM:
    return gte(c, Names(TABLE, (*POOLER, *HEADS), prefix="new."))


@architecture(
    "NewForSequenceClassification",
    about="GTE rerankers",
    examples=("Alibaba-NLP/gte-multilingual-reranker-base",),
    tasks=CLASSIFIES,
)
def gte_classifier(c: Config) -> CausalLM:
    head = ScoreHead(c.hidden_size, num_labels(c), "tanh")
    places = {"new.pooler.dense": "score.dense", "classifier": "score.out"}
    return with_head(gte(c, Names(TABLE, prefix="new.")), head, places, FIRST)
