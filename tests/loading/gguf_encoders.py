"""Text encoders, and encoder-decoders, as llama.cpp's converter writes them."""

from collections.abc import Callable
from typing import Any

from tests.loading.gguf_parts import Array, Config, Kind, Named, first
from tests.loading.gguf_today import usual

POOLING = {"mean": 1, "cls": 2, "last": 3}


def bert(prefix: str, padding: bool = False) -> Callable[[str, Array, Config], Named]:
    """Names without the model's; positions without those that RoBERTa leaves to padding."""

    def change(name: str, x: Array, c: Config) -> Named:
        name = name.removeprefix(prefix)
        if name.endswith("position_embeddings.weight") and padding:
            x = x[c.get("pad_token_id", 1) + 1 :]
        if name.startswith("classifier.") and prefix == "distilbert.":
            name = name.replace("classifier.", "classifier.out_proj.")
        if not name.endswith(("position_ids", "pooler.dense.weight", "pooler.dense.bias")):
            yield name, x

    return change


def bert_keys(c: Config) -> dict[str, Any]:
    return {
        "context_length": c["max_position_embeddings"],
        "feed_forward_length": first(c, "intermediate_size", "hidden_dim"),
        "attention.causal": False,
        "attention.layer_norm_epsilon": c.get("layer_norm_eps", 1e-12),
        "attention.head_count_kv": None,
    }


def distilbert(c: Config) -> dict[str, Any]:
    return {**bert_keys(c), "block_count": c["n_layers"], "embedding_length": c["dim"]}


def modernbert(c: Config) -> dict[str, Any]:
    return {
        "attention.causal": False,
        "attention.head_count_kv": None,
        "attention.sliding_window": c["local_attention"],
        "attention.sliding_window_pattern": c["global_attn_every_n_layers"],
        "rope.freq_base": float(c["global_rope_theta"]),
        "rope.freq_base_swa": float(c["local_rope_theta"]),
    }


def bare(name: str, x: Array, c: Config) -> Named:
    yield name.removeprefix("model."), x


def nomic(c: Config) -> dict[str, Any]:
    return {
        "attention.causal": False,
        "attention.head_count_kv": None,
        "context_length": c["n_positions"],
        "rope.freq_base": float(c["rotary_emb_base"]),
    }


def t5(c: Config) -> dict[str, Any]:
    return {
        "context_length": c["n_positions"],
        "feed_forward_length": c["d_ff"],
        "decoder_block_count": c["num_decoder_layers"] if c["architectures"] != ["T5EncoderModel"] else None,
        "attention.head_count": c["num_heads"],
        "attention.head_count_kv": None,
        "attention.key_length": c["d_kv"],
        "attention.value_length": c["d_kv"],
        "attention.relative_buckets_count": c["relative_attention_num_buckets"],
        "attention.layer_norm_rms_epsilon": c["layer_norm_epsilon"],
        "decoder_start_token_id": c["decoder_start_token_id"],
    }


ENCODERS: dict[str, Kind] = {
    "BertModel": Kind("bert", bert("bert."), bert_keys),
    "DistilBertForSequenceClassification": Kind("bert", bert("distilbert."), distilbert),
    "DistilBertModel": Kind("bert", bert("distilbert."), distilbert),
    "EuroBertModel": Kind("eurobert", usual, lambda c: {"attention.causal": False}, prefix="model."),
    "ModernBertModel": Kind("modern-bert", bare, modernbert),
    "NomicBertModel": Kind("nomic-bert", metadata=nomic),
    "RobertaForSequenceClassification": Kind("bert", bert("roberta.", padding=True), bert_keys),
    "RobertaModel": Kind("bert", bert("roberta.", padding=True), bert_keys),
    "T5EncoderModel": Kind("t5encoder", metadata=t5),
    "T5ForConditionalGeneration": Kind("t5", metadata=t5),
    "XLMRobertaForSequenceClassification": Kind("bert", bert("roberta.", padding=True), bert_keys),
    "XLMRobertaModel": Kind("bert", bert("roberta.", padding=True), bert_keys),
}
CASES = [
    "BertModel--minilm-mean",
    "DistilBertForSequenceClassification--sst-2",
    "DistilBertModel--multi-qa-mean",
    "EuroBertModel--210m",
    "Gemma3TextModel--embeddinggemma",
    "ModernBertModel--gte-cls",
    "NomicBertModel--v1.5",
    "RobertaForSequenceClassification--go-emotions",
    "RobertaModel--mean",
    "T5EncoderModel--sentence-t5",
    "XLMRobertaForSequenceClassification--bge-reranker-v2-m3",
    "XLMRobertaModel--bge-m3",
]
"""Golden cases of embeddings and of scores."""
NOT_IN_THE_FILE = (
    *("query_pre_attn_scalar", "relative_attention_max_distance", "problem_type", "layer_types"),
    "sbert_ce_default_activation_function",
)
"""Config keys that files leave out, since llama.cpp has them as constants, or not at all."""
