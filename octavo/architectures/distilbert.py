"""DistilBERT (Sanh et al. 2019): BERT's layers under names of its own, without types of tokens."""

from typing import Any

from octavo.architectures.bert import (
    EACH,
    FIRST,
    SCORES,
    bert_from_gguf,
    has_scores,
    has_types,
    with_head,
)
from octavo.architectures.bert_names import norms
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.model_config import Config
from octavo.architectures.registry import CLASSIFIES, EMBEDS, TOKEN_CLASSIFIES, architecture
from octavo.architectures.score_heads import num_labels
from octavo.parts import (
    MLP,
    BidirectionalAttention,
    CausalLM,
    Embedding,
    LayerNorm,
    Linear,
    Names,
    PostNorm,
    ScoreHead,
    TextEmbedding,
    TextEncoder,
)

EPS = 1e-12
NAMES = Names(
    {
        "distilbert.embeddings.{word|position}_embeddings": "embed.{tokens|positions}",
        "distilbert.transformer.layer.{i}.attention.{q|k|v}_lin": "layers.{i}.attn.qkv.{q|k|v}",
        "distilbert.transformer.layer.{i}.attention.out_lin": "layers.{i}.attn.o",
        "distilbert.transformer.layer.{i}.ffn.lin1": "layers.{i}.mlp.up",
        "distilbert.transformer.layer.{i}.ffn.lin2": "layers.{i}.mlp.down",
        **norms(
            {
                "distilbert.embeddings.LayerNorm": "embed.norm",
                "distilbert.transformer.layer.{i}.sa_layer_norm": "layers.{i}.attn_norm",
                "distilbert.transformer.layer.{i}.output_layer_norm": "layers.{i}.mlp_norm",
            }
        ),
    },
    ignored=(
        "distilbert.embeddings.position_ids",
        *(f"vocab_{part}.{name}" for part in ("transform", "layer_norm", "projector") for name in ("weight", "bias")),
    ),
    prefix="distilbert.",
)


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    return {**bert_from_gguf(shared, file), "hidden_dim": shared["intermediate_size"], "activation": "gelu"}


@architecture(
    "DistilBertModel",
    "DistilBertForMaskedLM",
    about="DistilBERT embedders",
    examples=("sentence-transformers/multi-qa-distilbert-cos-v1",),
    tasks=EMBEDS,
    read_as="bert",
)
def distilbert(c: Config) -> CausalLM:
    size = c.hidden_size
    embed = TextEmbedding(
        Embedding(c.vocab_size, size), Embedding(c.max_position_embeddings, size), norm=LayerNorm(size, EPS)
    )

    def layer(i: int) -> PostNorm:
        attn = BidirectionalAttention(size, c.num_attention_heads, bias=True)
        mlp = MLP(size, c.hidden_dim, c.activation, bias=True)
        return PostNorm(lambda: LayerNorm(size, EPS), attn=attn, mlp=mlp)

    return TextEncoder(embed, layer, c.num_hidden_layers, size, NAMES)


@architecture(
    "DistilBertForSequenceClassification",
    about="DistilBERT classifiers",
    examples=("distilbert/distilbert-base-uncased-finetuned-sst-2-english",),
    tasks=CLASSIFIES,
    gguf=GGUFFormat("bert", _from_gguf, SCORES, when=lambda file: has_scores(file) and not has_types(file)),
)
def distilbert_classifier(c: Config) -> CausalLM:
    head = ScoreHead(c.hidden_size, num_labels(c), "relu")
    return with_head(distilbert(c), head, {"pre_classifier": "score.dense", "classifier": "score.out"}, FIRST)


@architecture(
    "DistilBertForTokenClassification",
    about="DistilBERT taggers",
    examples=("dslim/distilbert-NER",),
    tasks=TOKEN_CLASSIFIES,
)
def distilbert_token_classifier(c: Config) -> CausalLM:
    head = Linear(c.hidden_size, num_labels(c), bias=True, exact=True)
    return with_head(distilbert(c), head, {"classifier": "score"}, EACH)
