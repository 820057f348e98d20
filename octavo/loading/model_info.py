"""What the engine and those above it know of a model: integers and strings."""

from typing import Any

import msgspec

from octavo.config import PoolerConfig
from octavo.media.model_media import MediaInfo
from octavo.text.pair_template import PairTemplate
from octavo.text.text_prompts import NO_PROMPTS, TextPrompts


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A loaded model, seen from outside."""

    task: str
    """generate, embedding, classify or reward."""
    vocab_size: int
    """How many tokens an answer may be made of."""
    num_embeddings: int = 0
    """How many a prompt may be made of, of which some are never written; 0 for the same."""
    max_model_len: int
    """Longest prompt plus answer that its positions and the options allow, in tokens."""
    eos_token_ids: frozenset[int] = frozenset()
    generation_config: dict[str, Any] = {}
    """The model's generation_config.json."""
    labels: list[str] = []
    """Names of a classifier's classes."""
    num_scores: int = 0
    """How many values a row's scores have: the outputs of its head for scores, or the vocabulary."""
    pooling: PoolerConfig = msgspec.field(default_factory=PoolerConfig)
    """How hidden states are pooled: every field that the task needs is set."""
    has_encoder: bool = False
    decoder_start_token_id: int | None = None
    """What answers begin with, in models that have an encoder."""
    long_rope_threshold: int | None = None
    """The longest sequence whose keys are turned by LongRoPE's short table; None without LongRoPE."""
    reads_whole: bool = False
    """Whether all of a prompt is computed in one step: its tokens see those after them."""
    serves_adapters: bool = False
    pooling_tasks: list[str] = []
    """What requests to pool may ask for, in vLLM's names; the usual one first."""
    dimensions: list[int] | None = None
    """To how many values embeddings may be cut; empty for any number, None where the model was not trained for it."""
    prompts: TextPrompts = NO_PROMPTS
    """What may stand before the texts that it embeds."""
    pair_template: PairTemplate | None = None
    """How its files say that a query and a document are written, where they do."""
    media: MediaInfo | None = None
    """The pictures, films and sounds that it takes; None for models of text alone."""
