"""ModernBERT (Warner et al. 2024): rope, gates, norms before the pieces, windows on most layers."""

from functools import partial
from typing import Any

from torch import nn

from octavo.architectures.bert import EACH, with_head
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.model_config import Config
from octavo.architectures.registry import CLASSIFIES, EMBEDS, TOKEN_CLASSIFIES, architecture
from octavo.architectures.rope_settings import FULL, SLIDING
from octavo.architectures.score_heads import num_labels
from octavo.config import PoolerConfig
from octavo.parts import (
    BidirectionalAttention,
    CausalLM,
    Embedding,
    GatedMLP,
    LayerNorm,
    Names,
    PreNorm,
    RotaryEmbedding,
    ScoreHead,
    TextEmbedding,
    TextEncoder,
)
from octavo.parts.rotary_embedding import frequencies

HEADS = (
    *(f"head.{part}.{name}" for part in ("dense", "norm") for name in ("weight", "bias")),
    *(f"decoder.{name}" for name in ("weight", "bias")),
)
TABLE = {
    "model.embeddings.tok_embeddings": "embed.tokens",
    "model.embeddings.norm": "embed.norm",
    "model.layers.{i}.attn_norm": "layers.{i}.attn_norm",
    "model.layers.{i}.attn.Wqkv": "layers.{i}.attn.qkv",
    "model.layers.{i}.attn.Wo": "layers.{i}.attn.o",
    "model.layers.{i}.mlp_norm": "layers.{i}.mlp_norm",
    "model.layers.{i}.mlp.Wi": "layers.{i}.mlp.gate_up",
    "model.layers.{i}.mlp.Wo": "layers.{i}.mlp.down",
    "model.final_norm": "norm",
}


def ropes(c: Config, head_dim: int) -> list[RotaryEmbedding]:
    """Of layers that see all, and of those with a window."""
    said: dict[str, Any] = c.get("rope_parameters", {})
    kinds = (("full_attention", "global_rope_theta", 160000.0), ("sliding_attention", "local_rope_theta", 10000.0))
    bases = [float((said.get(kind) or {}).get("rope_theta") or c.first(key, default=base)) for kind, key, base in kinds]
    return [RotaryEmbedding(frequencies(head_dim, base)) for base in bases]


def encoder(c: Config, names: Names) -> TextEncoder:
    size, heads = c.hidden_size, c.num_attention_heads
    norm = partial(LayerNorm, size, c.norm_eps, bias=c.norm_bias)
    full, local = ropes(c, size // heads)
    usual = [i % c.get("global_attn_every_n_layers", 3) == 0 for i in range(c.num_hidden_layers)]
    kinds = c.get("layer_types", ["full_attention" if is_full else "sliding_attention" for is_full in usual])

    def layer(i: int) -> PreNorm:
        sees_all = kinds[i] == "full_attention"
        attn = BidirectionalAttention(
            size,
            heads,
            rope=full if sees_all else local,
            bias=c.attention_bias,
            window=None if sees_all else c.local_attention // 2,
        )
        made = PreNorm(norm, attn=attn, mlp=GatedMLP(size, c.intermediate_size, c.hidden_activation, c.mlp_bias))
        if i == 0:
            made.attn_norm = nn.Identity()
        return made

    embed = TextEmbedding(Embedding(c.vocab_size, size), norm=norm())
    return TextEncoder(embed, layer, c.num_hidden_layers, size, names, norm=norm())


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    every, layers = file.value("attention.sliding_window_pattern", 3), range(shared["num_hidden_layers"])
    return {
        "layer_types": [SLIDING if i % every else FULL for i in layers] if isinstance(every, int) else None,
        "local_attention": file.value("attention.sliding_window"),
        "global_rope_theta": shared["rope_theta"],
        "local_rope_theta": file.value("rope.freq_base_swa", 10000.0),
        "norm_eps": shared["layer_norm_eps"],
    }


@architecture(
    "ModernBertModel",
    "ModernBertForMaskedLM",
    about="ModernBERT embedders",
    examples=("Alibaba-NLP/gte-modernbert-base", "nomic-ai/modernbert-embed-base"),
    tasks=EMBEDS,
    gguf=GGUFFormat("modern-bert", config=_from_gguf),
)
def modernbert(c: Config) -> CausalLM:
    return encoder(c, Names(TABLE, HEADS, prefix="model."))


def head(c: Config) -> ScoreHead:
    norm = LayerNorm(c.hidden_size, c.norm_eps, bias=c.norm_bias)
    return ScoreHead(c.hidden_size, num_labels(c), c.classifier_activation, bias=c.classifier_bias, norm=norm)


PLACES = {"head.{dense|norm}": "score.{dense|norm}", "classifier": "score.out"}


@architecture(
    "ModernBertForSequenceClassification",
    about="ModernBERT classifiers and rerankers",
    examples=("Alibaba-NLP/gte-reranker-modernbert-base",),
    tasks=CLASSIFIES,
)
def modernbert_classifier(c: Config) -> CausalLM:
    pooling = PoolerConfig("CLS" if c.classifier_pooling == "cls" else "MEAN")
    return with_head(encoder(c, Names(TABLE, prefix="model.")), head(c), PLACES, pooling)


@architecture(
    "ModernBertForTokenClassification",
    about="ModernBERT taggers",
    examples=("answerdotai/ModernBERT-base",),
    tasks=TOKEN_CLASSIFIES,
)
def modernbert_token_classifier(c: Config) -> CausalLM:
    return with_head(encoder(c, Names(TABLE, prefix="model.")), head(c), PLACES, EACH)
