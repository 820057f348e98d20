"""DeepSeek-V4 (DeepSeek-AI 2026): hyper-connected layers that attend to windows, and to keys pooled of far tokens."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from octavo.architectures.decoder import rms_norm
from octavo.architectures.deepseek import MoEWithShared
from octavo.architectures.deepseek_v4_config import COMPRESSED, HASHED, attention_ratios, feed_forward_types, ropes
from octavo.architectures.deepseek_v4_experts import HashedMoE
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.errors import UnsupportedModelError
from octavo.ops import Gate, RouterSpec
from octavo.parts import (
    CausalLM,
    Embedding,
    GatedMLP,
    HyperConnected,
    HyperConnectedLM,
    KeyIndexer,
    KeyPool,
    Linear,
    Names,
    PooledAttention,
    RepeatedEmbedding,
    StreamWeights,
    parameter,
)

ATTENTION, POOL = "layers.{i}.attn.", "layers.{i}.attn.pool."
INDEXER, EXPERTS = "layers.{i}.attn.indexer.", "layers.{i}.ffn.experts.{e}."
NAMES = Names(
    {
        "embed": "embed.tokens",
        "layers.{i}.{attn|ffn}_norm": "layers.{i}.{attn|mlp}_norm",
        "layers.{i}.hc_{attn|ffn}_fn": parameter("layers.{i}.{attn|mlp}_streams.weight"),
        "layers.{i}.hc_{attn|ffn}_base": parameter("layers.{i}.{attn|mlp}_streams.bias"),
        "layers.{i}.hc_{attn|ffn}_scale": parameter("layers.{i}.{attn|mlp}_streams.scale"),
        ATTENTION + "{wq_a|wq_b|wkv|wo_a|wo_b}": ATTENTION + "{q_a|q_b|kv_a|o_a|o_b}",
        ATTENTION + "{q|kv}_norm": ATTENTION + "{q|kv}_norm",
        ATTENTION + "norm": ATTENTION + "kv_norm",  # as transformers writes it
        ATTENTION + "attn_sink": parameter(ATTENTION + "sinks"),
        ATTENTION + "compressor.{wkv|wgate}": POOL + "values_gates.{values|gates}",
        ATTENTION + "compressor.ape": parameter(POOL + "bias"),
        ATTENTION + "compressor.norm": POOL + "norm",
        INDEXER + "{wq_b|weights_proj}": INDEXER + "{from_latent|weights}",
        INDEXER + "compressor.{wkv|wgate}": INDEXER + "pool.values_gates.{values|gates}",
        INDEXER + "compressor.ape": parameter(INDEXER + "pool.bias"),
        INDEXER + "compressor.norm": INDEXER + "pool.norm",
        "layers.{i}.ffn.gate.bias": parameter("layers.{i}.mlp.choice_bias"),
        "layers.{i}.ffn.gate.tid2eid": parameter("layers.{i}.mlp.experts_of"),
        "layers.{i}.ffn.gate": "layers.{i}.mlp.router",
        EXPERTS + "{w1|w3}": "layers.{i}.mlp.experts.{e}.gate_up.{gate|up}",
        EXPERTS + "w2": "layers.{i}.mlp.experts.{e}.down",
        "layers.{i}.ffn.shared_experts.{w1|w3}": "layers.{i}.mlp.shared.gate_up.{gate|up}",
        "layers.{i}.ffn.shared_experts.w2": "layers.{i}.mlp.shared.down",
        "hc_head_fn": parameter("last_streams.weight"),
        "hc_head_base": parameter("last_streams.bias"),
        "hc_head_scale": parameter("last_streams.scale"),
        "norm": "norm",
        "head": "head",
    },
    spellings={
        "model.embed_tokens.": "embed.",
        "model.hc_head.hc_": "hc_head_",
        "model.": "",
        "lm_head.": "head.",
    },
    beside=("mtp.",),
)
SCORES: dict[str, Literal["sqrt_softplus", "sigmoid"]] = {"sqrtsoftplus": "sqrt_softplus", "sigmoid": "sigmoid"}


def _attention(c: Config) -> Callable[[int], PooledAttention]:
    """Makes the attention of the layer of a given index."""
    ratios, (plain, stretched), eps, window = attention_ratios(c), ropes(c), c.rms_norm_eps, c.sliding_window
    pool = partial(KeyPool, c.hidden_size, window=window, rope=stretched, eps=eps)

    def make(i: int) -> PooledAttention:
        kind, ratio = ratios[i]
        entries = indexer = None
        if ratio:
            of_layer = partial(pool, ratio=ratio, is_overlapping=kind == COMPRESSED)
            entries = of_layer(c.head_dim)
            if kind == COMPRESSED:
                heads, dim = c.index_n_heads, c.index_head_dim
                indexer = KeyIndexer(c.hidden_size, c.q_lora_rank, heads, dim, top_k=c.index_topk, pool=of_layer(dim))
        return PooledAttention(
            c.hidden_size,
            c.num_attention_heads,
            c.head_dim,
            q_rank=c.q_lora_rank,
            window=window,
            rope=stretched if ratio else plain,
            eps=eps,
            out_groups=c.o_groups,
            out_rank=c.o_lora_rank,
            pool=entries,
            indexer=indexer,
        )

    return make


def _experts(c: Config) -> Callable[[int], MoEWithShared]:
    """Makes the feed-forward of the layer of a given index."""
    if (shared := c.get("n_shared_experts", 1)) != 1:
        raise UnsupportedModelError(f"config.json: n_shared_experts is {shared}; this model has one in every layer.")
    if (scores := c.scoring_func) not in SCORES:
        raise UnsupportedModelError(
            f"config.json: scoring_func {scores[:60]!r} is unknown; there is {', '.join(SCORES)}."
        )
    types, count = feed_forward_types(c), c.n_routed_experts
    gate = Gate(c.hidden_act, limit=c.swiglu_limit)
    expert = partial(GatedMLP, c.hidden_size, c.moe_intermediate_size, gate)
    route = partial(
        RouterSpec, c.num_experts_per_tok, norm=1.0, eps=1e-20, factor=c.routed_scaling_factor, scores=SCORES[scores]
    )

    def make(i: int) -> MoEWithShared:
        router, experts = Linear(c.hidden_size, count, exact=True), [expert() for _ in range(count)]
        shared = expert(bias=c.mlp_bias)
        if types[i] == HASHED:
            return HashedMoE(router, experts, route(), shared, c.vocab_size)
        return MoEWithShared(router, experts, route(is_biased=True), shared)

    return make


@architecture("DeepseekV4ForCausalLM", about="DeepSeek-V4", examples=("deepseek-ai/DeepSeek-V4-Flash",))
def deepseek_v4(c: Config) -> CausalLM:
    norm, attn, mlp, size = rms_norm(c), _attention(c), _experts(c), c.hidden_size
    streams = partial(StreamWeights, size, c.hc_mult, norm_eps=c.rms_norm_eps, eps=c.hc_eps)
    mixing = partial(streams, iterations=c.hc_sinkhorn_iters)
    return HyperConnectedLM(
        streams(),
        embed=RepeatedEmbedding(Embedding(c.vocab_size, size), c.hc_mult),
        layer=lambda i: HyperConnected(norm, mixing, attn=attn(i), mlp=mlp(i)),
        layers=c.num_hidden_layers,
        norm=norm(),
        head=Linear(size, c.vocab_size),
        names=NAMES,
        tied=c.get("tie_word_embeddings", False),
    )
