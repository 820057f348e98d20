"""Qwen3 (Qwen Team 2025): Llama's body with norms of each head; embedders, rerankers, and Qwen3-VL's text model."""

from octavo.architectures.composite import text_alone
from octavo.architectures.decoder import attention, decoder, gated_mlp, head_norms, rms_norm
from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.qwen2 import windows
from octavo.architectures.registry import CLASSIFIES, EMBEDS, architecture
from octavo.architectures.score_heads import with_classes
from octavo.parts import CausalLM, PreNorm


@architecture(
    "Qwen3ForCausalLM",
    about="Qwen3, Qwen3-Embedding, Qwen3-Reranker",
    examples=("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", "Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Reranker-0.6B"),
    gguf=GGUFFormat("qwen3", when=lambda file: "cls.output.weight" not in file.tensors),
)
@architecture("Qwen3Model", about="Qwen3-based embedders", examples=("Qwen/Qwen3-Embedding-0.6B",), tasks=EMBEDS)
def qwen3(c: Config) -> CausalLM:
    late = windows(c, lambda layer: layer >= c.max_window_layers)
    norm, mlp, bias = rms_norm(c), gated_mlp(c), c.attention_bias
    attn = attention(c, window=late, qk_transform=head_norms(c), bias=bias, out_bias=bias)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()))


@architecture(
    "Qwen3ForSequenceClassification",
    about="Qwen3-based rerankers and classifiers",
    examples=("tomaarsen/Qwen3-Reranker-0.6B-seq-cls",),
    tasks=CLASSIFIES,
    gguf=GGUFFormat(
        "qwen3",
        config=lambda shared, file: {"num_labels": 1},
        names={"cls.output": "score"},
        undo={"cls.output": lambda weight, c: weight[:1] - weight[1:]},  # yes, and no
        when=lambda file: "cls.output.weight" in file.tensors,
    ),
)
def qwen3_classifier(c: Config) -> CausalLM:
    """With classifier_from_token, scores are logits of the language model's own head."""
    return with_classes(qwen3)(c)


TEXT = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0,
    "attention_bias": False,
}


@architecture(
    "Qwen3VLForConditionalGeneration",
    about="Qwen3-VL (text)",
    examples=("Qwen/Qwen3-VL-8B-Instruct", "Qwen/Qwen3-VL-4B-Instruct"),
    defaults={"text_config": TEXT},
    gguf=GGUFFormat("qwen3vl", section="text_config"),
)
def qwen3_vl(c: Config) -> CausalLM:
    """Interleaved positions on three axes are plain rope for text."""
    text = c.section("text_config").replace(use_sliding_window=False, max_window_layers=0)
    return text_alone(c, qwen3(text), "visual.", begins="model.language_model.")
