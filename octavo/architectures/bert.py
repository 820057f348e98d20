"""BERT (Devlin et al. 2019), and what encoders that are built alike share: norms after the pieces."""

from functools import partial
from typing import Any

from octavo.architectures.bert_names import names
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.model_config import Config
from octavo.architectures.registry import CLASSIFIES, EMBEDS, TOKEN_CLASSIFIES, architecture
from octavo.architectures.score_heads import num_labels
from octavo.config import PoolerConfig
from octavo.parts import (
    MLP,
    BidirectionalAttention,
    CausalLM,
    Embedding,
    Into,
    LayerNorm,
    Linear,
    Names,
    PostNorm,
    ScoreHead,
    TextEmbedding,
    TextEncoder,
)

FIRST, EACH = PoolerConfig("CLS"), PoolerConfig("ALL", softmax=True)


def layer(c: Config) -> PostNorm:
    norm = partial(LayerNorm, c.hidden_size, c.layer_norm_eps)
    attn = BidirectionalAttention(c.hidden_size, c.num_attention_heads, bias=True)
    return PostNorm(norm, attn=attn, mlp=MLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=True))


def encoder(c: Config, table: Names, first_position: int = 0) -> TextEncoder:
    """The model, whose positions count from `first_position`."""
    if (kind := c.get("position_embedding_type", "absolute")) != "absolute":
        raise ValueError(f"position_embedding_type {kind!r} is not supported; absolute is")
    width = c.get("embedding_size", c.hidden_size)
    positions = c.max_position_embeddings - first_position
    types = c.get("type_vocab_size", 0)
    embed = TextEmbedding(
        Embedding(c.vocab_size, width),
        Embedding(positions, width),
        Embedding(types, width) if types else None,
        LayerNorm(width, c.layer_norm_eps),
        None if width == c.hidden_size else Linear(width, c.hidden_size, bias=True),
    )
    return TextEncoder(embed, lambda i: layer(c), c.num_hidden_layers, c.hidden_size, table)


def with_head(model: CausalLM, head: ScoreHead | Linear, table: dict[str, str], pooling: PoolerConfig) -> CausalLM:
    """The model with scores of pooled rows."""
    model.pooling = pooling
    return model.score_with(head, table)


def dense_classifier(model: CausalLM, c: Config, activation: str) -> CausalLM:
    """The model with classes of its first token's row, by a dense layer and one more."""
    head = ScoreHead(c.hidden_size, num_labels(c), activation)
    return with_head(model, head, {"classifier.{dense|out_proj}": "score.{dense|out}"}, FIRST)


def token_classifier(model: CausalLM, c: Config) -> CausalLM:
    """The model with classes of each token."""
    head = Linear(model.hidden_size, num_labels(c), bias=True, exact=True)
    return with_head(model, head, {"classifier": "score"}, EACH)


SCORES: dict[str, str | Into] = {"cls": "score.dense", "cls.output": "score.out"}


def bert_from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    """RoBERTa's and DistilBERT's files are BERT's: what they have otherwise was taken off their tables."""
    types = file.tensors.get("token_types.weight")
    labels = file.texts("classifier.output_labels") or []
    return {
        "hidden_act": "gelu",
        "max_position_embeddings": file.tensors["position_embd.weight"].shape[0],
        "type_vocab_size": 0 if types is None else types.shape[0],
        "num_labels": file.tensors["cls.output.weight"].shape[0] if has_scores(file) else None,
        "id2label": {str(i): label for i, label in enumerate(labels)},
    }


def has_scores(file: GGUFHeader) -> bool:
    """Whether a file has classes."""
    return "cls.output.weight" in file.tensors


def has_types(file: GGUFHeader) -> bool:
    """Whether a file has types of tokens, which DistilBERT has not."""
    return "token_types.weight" in file.tensors


@architecture(
    "BertModel",
    "BertForMaskedLM",
    "BertForPreTraining",
    about="BERT-like embedders: MiniLM, BGE, E5, GTE, mxbai",
    examples=("sentence-transformers/all-MiniLM-L6-v2", "BAAI/bge-base-en-v1.5", "intfloat/e5-base-v2"),
    tasks=EMBEDS,
    gguf=GGUFFormat("bert", config=bert_from_gguf, when=lambda file: not has_scores(file)),
)
def bert(c: Config) -> CausalLM:
    return encoder(c, names())


@architecture(
    "BertForSequenceClassification",
    about="BERT-like classifiers and cross-encoders",
    examples=("cross-encoder/ms-marco-MiniLM-L6-v2",),
    tasks=CLASSIFIES,
    gguf=GGUFFormat("bert", bert_from_gguf, SCORES, when=lambda file: has_scores(file) and has_types(file)),
)
def bert_classifier(c: Config) -> CausalLM:
    head = ScoreHead(c.hidden_size, num_labels(c), "tanh")
    places = {"bert.pooler.dense": "score.dense", "classifier": "score.out"}
    return with_head(encoder(c, names(has_pooler=True)), head, places, FIRST)


@architecture(
    "BertForTokenClassification",
    about="BERT-like taggers",
    examples=("dslim/bert-base-NER",),
    tasks=TOKEN_CLASSIFIES,
)
def bert_token_classifier(c: Config) -> CausalLM:
    return token_classifier(encoder(c, names()), c)
