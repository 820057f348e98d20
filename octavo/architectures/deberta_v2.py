"""DeBERTa-v2 and v3 (He et al. 2021, 2023): BERT's layers whose attention disentangles contents and distances."""

from functools import partial

from torch import Tensor

from octavo.architectures.bert import FIRST, token_classifier, with_head
from octavo.architectures.model_config import Config
from octavo.architectures.registry import CLASSIFIES, EMBEDS, TOKEN_CLASSIFIES, architecture
from octavo.architectures.score_heads import num_labels
from octavo.parts import (
    MLP,
    Batch,
    BidirectionalAttention,
    CausalLM,
    ConvolvedPostNorm,
    DisentangledAttention,
    DistanceVectors,
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
from octavo.parts.norms import norm_rows

LAYER = "deberta.encoder.layer.{i}."
TABLE: dict[str, str | Into] = {
    "deberta.embeddings.word_embeddings": "embed.tokens",
    "deberta.embeddings.token_type_embeddings": "embed.types",
    "deberta.embeddings.embed_proj": "embed.project",
    "deberta.embeddings.LayerNorm": "embed.norm",
    "deberta.encoder.rel_embeddings": "shared",
    "deberta.encoder.LayerNorm": "shared.norm",
    "deberta.encoder.conv.conv": Into("layers.0.conv", lambda w: w.transpose(1, 2).flatten(1) if w.dim() == 3 else w),
    "deberta.encoder.conv.LayerNorm": "layers.0.conv_norm",
    LAYER + "attention.self.{query|key|value}_proj": "layers.{i}.attn.qkv.{q|k|v}",
    LAYER + "attention.self.pos_{key|query}_proj": "layers.{i}.attn.pos_{k|q}",
    LAYER + "attention.output.dense": "layers.{i}.attn.o",
    LAYER + "attention.output.LayerNorm": "layers.{i}.attn_norm",
    LAYER + "intermediate.dense": "layers.{i}.mlp.up",
    LAYER + "output.dense": "layers.{i}.mlp.down",
    LAYER + "output.LayerNorm": "layers.{i}.mlp_norm",
}
POSITIONS = "deberta.embeddings.position_embeddings"
HEADS = ("cls.", "lm_predictions.", "mask_predictions.")
"""Heads that fill in words, which embeddings do without."""
POOLER = tuple(f"pooler.dense.{name}" for name in ("weight", "bias"))


class ProjectedEmbedding(TextEmbedding):
    """Its norm is behind the projection."""

    def forward(self, batch: Batch) -> Tensor:
        x = self.added(batch)
        x = x if self.project is None else self.project(x, batch)
        return x if self.norm is None else norm_rows(self.norm, x, batch)


def terms(c: Config) -> tuple[str, ...]:
    """Which products with distances there are, written as a list or with bars between them."""
    given: str | list[str] = c.get("pos_att_type") or []
    names = [part.strip() for part in given.lower().split("|")] if isinstance(given, str) else given
    return tuple(name for name in ("c2p", "p2c") if name in names)


def distances(c: Config) -> DistanceVectors | None:
    """The vectors of distances, where the model has any."""
    if not c.relative_attention:
        return None
    given, buckets = c.get("max_relative_positions", -1), c.get("position_buckets", -1)
    normed = "layer_norm" in [part.strip() for part in c.get("norm_rel_ebd", "none").lower().split("|")]
    norm = LayerNorm(c.hidden_size, c.layer_norm_eps) if normed else None
    most = given if given > 0 else c.max_position_embeddings
    return DistanceVectors(c.hidden_size, most, buckets if buckets > 0 else None, norm)


def encoder(c: Config, *ignored: str) -> TextEncoder:
    size, heads, vectors, has = c.hidden_size, c.num_attention_heads, distances(c), terms(c)
    width, types, kernel = c.get("embedding_size", size), c.type_vocab_size, c.get("conv_kernel_size", 0)
    if kernel and (c.get("conv_groups", 1) != 1 or not kernel % 2):
        raise ValueError(f"a convolution of {kernel} taps in {c.get('conv_groups', 1)} groups is not supported")
    norm = partial(LayerNorm, size, c.layer_norm_eps)
    of_head = c.get("attention_head_size")

    def attention() -> BidirectionalAttention:
        if vectors is not None and has:
            shares = c.get("share_att_key", False)
            return DisentangledAttention(size, heads, of_head, distances=vectors, terms=has, shares_projections=shares)
        scale = ((1 + len(has)) * (of_head or size // heads)) ** -0.5
        return BidirectionalAttention(size, heads, head_dim=of_head, bias=True, scale=scale)

    def layer(i: int) -> PostNorm:
        attn, mlp = attention(), MLP(size, c.intermediate_size, c.hidden_act, bias=True)
        if i or not kernel:
            return PostNorm(norm, attn=attn, mlp=mlp)
        conv = Linear(kernel * size, size, bias=True)
        return ConvolvedPostNorm(norm, kernel, conv, c.get("conv_act", "tanh"), attn=attn, mlp=mlp)

    placed = c.position_biased_input
    embed = ProjectedEmbedding(
        Embedding(c.vocab_size, width),
        Embedding(c.max_position_embeddings, width) if placed else None,
        Embedding(types, width) if types else None,
        norm(),
        None if width == size else Linear(width, size),
    )
    table = {**TABLE, POSITIONS: "embed.positions"} if placed else TABLE
    unused = (f"{POSITIONS}.weight",) if not placed else ()
    names = Names(table, ("deberta.embeddings.position_ids", *unused, *ignored), "deberta.").leaving_out(*HEADS)
    return TextEncoder(embed, layer, c.num_hidden_layers, size, names, shared=vectors)


@architecture(
    "DebertaV2Model",
    "DebertaV2ForMaskedLM",
    about="DeBERTa-v2 and v3 embedders",
    examples=("microsoft/deberta-v3-base", "microsoft/mdeberta-v3-base"),
    tasks=EMBEDS,
)
def deberta_v2(c: Config) -> CausalLM:
    return encoder(c, *POOLER)


@architecture(
    "DebertaV2ForSequenceClassification",
    about="DeBERTa-v2 and v3 classifiers: NLI, guards, rewards",
    examples=("MoritzLaurer/DeBERTa-v3-base-mnli-fever-anli", "OpenAssistant/reward-model-deberta-v3-large-v2"),
    tasks=CLASSIFIES,
)
def deberta_v2_classifier(c: Config) -> CausalLM:
    head = ScoreHead(c.hidden_size, num_labels(c), c.get("pooler_hidden_act", "gelu"))
    return with_head(encoder(c), head, {"pooler.dense": "score.dense", "classifier": "score.out"}, FIRST)


@architecture(
    "DebertaV2ForTokenClassification",
    about="DeBERTa-v2 and v3 taggers",
    examples=("iiiorg/piiranha-v1-detect-personal-information",),
    tasks=TOKEN_CLASSIFIES,
)
def deberta_v2_token_classifier(c: Config) -> CausalLM:
    return token_classifier(encoder(c, *POOLER), c)
