"""Gemma 4 (Google 2026), text: heads and rope by layer kind, shared keys and values, per-layer vectors, experts."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from octavo.architectures.decoder import decoder
from octavo.architectures.gemma2 import GEMMA2_NAMES
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_config import make_rope
from octavo.architectures.rope_settings import FULL, SLIDING, layer_types
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.ops import Backend, RouterSpec
from octavo.parts import (
    AliasedEmbedding,
    Batch,
    CausalLM,
    Embedding,
    GatedMLP,
    Linear,
    MoE,
    Names,
    PerLayerEmbedding,
    PerLayerInput,
    PlainRMSNorm,
    QKNorm,
    RMSNorm,
    SandwichNorm,
    SharedAttention,
    parameter,
    softmax_then_topk,
    stacked,
)
from octavo.parts.norms import norm_rows

EXPERT = "layers.{i}.moe.experts.{e}"
PER_LAYER_NAMES = GEMMA2_NAMES.replacing(
    {
        "model.embed_tokens": "embed.tokens",
        "model.embed_tokens_per_layer": "embed.table",
        "model.per_layer_model_projection": "embed.project",
        "model.per_layer_projection_norm": "embed.norm",
        "model.layers.{i}.per_layer_input_gate": "layers.{i}.per_layer.gate",
        "model.layers.{i}.per_layer_projection": "layers.{i}.per_layer.project",
        "model.layers.{i}.post_per_layer_input_norm": "layers.{i}.per_layer_norm",
    }
)
GEMMA4_NAMES: dict[str, Any] = {
    "model.layers.{i}.layer_scalar": parameter("layers.{i}.scalar"),
    "model.layers.{i}.post_feedforward_layernorm_1": "layers.{i}.mlp_out_norm",
    "model.layers.{i}.post_feedforward_layernorm_2": "layers.{i}.moe_out_norm",
    "model.layers.{i}.pre_feedforward_layernorm_2": "layers.{i}.moe.norm",
    "model.layers.{i}.router.proj": "layers.{i}.moe.router",
    # Rows are divided by the root of their size, too.
    "model.layers.{i}.router.scale": parameter("layers.{i}.moe.router_norm.weight", lambda w: w * len(w) ** -0.5),
    "model.layers.{i}.router.per_expert_scale": parameter("layers.{i}.moe.expert_scale"),
    "model.layers.{i}.experts.gate_up_proj": stacked(EXPERT + ".gate_up.weight", full_name=True),
    "model.layers.{i}.experts.down_proj": stacked(EXPERT + ".down.weight", full_name=True),
    "model.layers.{i}.experts.{e}.{gate|up}_proj": EXPERT + ".gate_up.{gate|up}",
    "model.layers.{i}.experts.{e}.down_proj": EXPERT + ".down",
}
TOWERS = tuple(
    f"{prefix}{part}.*"
    for part in ("vision_tower", "embed_vision", "audio_tower", "embed_audio")
    for prefix in ("model.", "")
)
"""What text does without."""
TEXT = "model.language_model."


def in_composite(names: Names) -> Names:
    """A text model's table for a checkpoint that has towers beside it, in every spelling that there is of that."""
    renamed = names.renamed("model.", TEXT)
    spellings = {"language_model.lm_head.": "lm_head.", "language_model.model.": TEXT, "language_model.": TEXT}
    parts = {name.split(".")[1] for name in names.table if name.startswith("model.")}
    spellings |= {f"model.{part}.": f"{TEXT}{part}." for part in sorted(parts)}
    return Names(renamed.table, (*renamed.ignored, *TOWERS)).spelled(spellings)


ROPES = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
GLOBAL_HEAD_DIM = 512


class ScaledExperts(MoE):
    """Experts that read the normed stream, chosen by the stream in another norm, with factors of their own."""

    float32_parameters = True

    def __init__(self, norm: RMSNorm, router_norm: RMSNorm, experts: Sequence[GatedMLP], route: RouterSpec) -> None:
        super().__init__(Linear(norm.size, len(experts), exact=True), experts, route)
        self.norm, self.router_norm = norm, router_norm
        self.expert_scale = nn.Parameter(torch.empty(len(experts)), requires_grad=False)

    def mixed(self, x: Tensor, batch: Batch) -> Tensor:
        weights, chosen = self.choose(norm_rows(self.router_norm, x, batch), batch)
        factors = self._backend.table_rows(self.expert_scale.view(-1, 1), chosen.view(-1)).view(weights.shape)
        return self.of_chosen(norm_rows(self.norm, x, batch), self._backend.multiply(weights, factors), chosen, batch)


class Gemma4Layer(SandwichNorm):
    """Attention and feed-forward, beside which may be experts; then the layer's vector; all times a stored number."""

    def __init__(
        self,
        norm: Callable[[], RMSNorm],
        attn: nn.Module,
        mlp: nn.Module,
        moe: MoE | None = None,
        per_layer: PerLayerInput | None = None,
    ) -> None:
        super().__init__(norm, attn=attn, mlp=mlp)
        self.moe, self.per_layer = moe, per_layer
        self.mlp_out_norm, self.moe_out_norm = (None if moe is None else norm() for _ in range(2))
        self.per_layer_norm = None if per_layer is None else norm()
        self.scalar: nn.Parameter | None = nn.Parameter(torch.empty(1), requires_grad=False)

    def prepare(self, backend: Backend) -> None:
        super().prepare(backend)
        self._scale, self._factor = backend.scale, 1.0 if self.scalar is None else float(self.scalar)

    def branch(self, name: str, x: Tensor, batch: Batch) -> Tensor:
        if name != "mlp" or self.moe is None or self.mlp_out_norm is None or self.moe_out_norm is None:
            return super().branch(name, x, batch)
        dense = norm_rows(self.mlp_out_norm, self.piece(name, self.norm(name, x, batch), batch), batch)
        both = self._add(dense, norm_rows(self.moe_out_norm, self.moe(x, batch), batch))
        return self.norm("mlp_post", both, batch)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        x = super().forward(x, batch)
        if self.per_layer is not None and self.per_layer_norm is not None:
            x = self._add(x, norm_rows(self.per_layer_norm, self.per_layer(x, batch), batch))
        return x if self._factor == 1.0 else self._scale(x, self._factor)


def shared_keys(c: Config, types: Sequence[str]) -> list[dict[str, Any]]:
    """Of each layer, what SharedAttention is told of its keys and values: the last layers read those of earlier ones.

    Raises CheckpointError where no layer of a kind has any.
    """
    first = len(types) - c.get("num_kv_shared_layers", 0)
    last = {kind: i for i, kind in enumerate(types[: max(first, 0)])} if first < len(types) else {}
    if lacking := set(types[max(first, 0) :]) - set(last):
        raise CheckpointError(f"config.json: num_kv_shared_layers leaves no layer of {min(lacking)} with keys.")
    return [
        {"name": kind, "reads": i >= first} if i >= first or last.get(kind) == i else {} for i, kind in enumerate(types)
    ]


def unread_keys(shares: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Tensors that layers without keys of their own may be stored with."""
    reading = [i for i, share in enumerate(shares) if share.get("reads")]
    return tuple(f"model.layers.{i}.self_attn.{n}.*" for i in reading for n in ("k_proj", "v_proj", "k_norm", "v_norm"))


def _attention(c: Config, types: Sequence[str], shares: Sequence[dict[str, Any]]) -> Callable[[int], SharedAttention]:
    overrides: dict[str, dict[str, Any]] = c.get("per_layer_config", {})
    own_keys = c.get("attention_k_eq_v", False)
    full = {"head_dim": c.get("global_head_dim", GLOBAL_HEAD_DIM)}
    if own_keys and c.get("num_global_key_value_heads") is not None:
        full["num_key_value_heads"] = c.num_global_key_value_heads
    if not c.get("rope_parameters"):
        c = c.replace(rope_parameters={kind: ROPES[kind] for kind in set(types)})

    def make(i: int) -> SharedAttention:
        kind = types[i]
        own = c.replace(**(overrides.get(str(i), full) if kind == FULL else overrides.get(str(i), {})))
        head_dim, reads = own.head_dim, shares[i].get("reads", False)
        norm, plain = partial(RMSNorm, head_dim, c.rms_norm_eps), partial(PlainRMSNorm, head_dim, c.rms_norm_eps)
        return SharedAttention(
            c.hidden_size,
            c.num_attention_heads,
            own.num_key_value_heads,
            head_dim,
            **shares[i],
            values_are_keys=own_keys and kind == FULL,
            rope=make_rope(own, head_dim, layer=kind, layers=types),
            qk_transform=QKNorm(norm(), None if reads else norm(), v=None if reads else plain()),
            bias=c.attention_bias,
            out_bias=c.attention_bias,
            window=c.sliding_window if kind == SLIDING else None,
            scale=1.0,
        )

    return make


def _layer(c: Config, types: Sequence[str], shares: Sequence[dict[str, Any]]) -> Callable[[int], Gemma4Layer]:
    size, activation, per_layer = c.hidden_size, c.hidden_activation, c.get("hidden_size_per_layer_input", 0)
    norm, attn = partial(RMSNorm, size, c.rms_norm_eps), _attention(c, types, shares)
    is_wide = c.get("use_double_wide_mlp", False)

    def experts() -> MoE:
        each = [GatedMLP(size, c.moe_intermediate_size, activation) for _ in range(c.num_experts)]
        return ScaledExperts(norm(), norm(), each, softmax_then_topk(c.top_k_experts))

    def make(i: int) -> Gemma4Layer:
        width = c.intermediate_size * (2 if is_wide and shares[i].get("reads") else 1)
        return Gemma4Layer(
            norm,
            attn=attn(i),
            mlp=GatedMLP(size, width, activation),
            moe=experts() if c.get("enable_moe_block", False) else None,
            per_layer=PerLayerInput(size, per_layer, i, activation) if per_layer else None,
        )

    return make


def _embedding(c: Config) -> nn.Module:
    placeholders = [c.get(f"{kind}_token_id") for kind in ("image", "video", "audio")]
    aliases = {token: c.get("pad_token_id", 0) for token in placeholders if token is not None and token < c.vocab_size}
    tokens = AliasedEmbedding(c.vocab_size, c.hidden_size, c.hidden_size**0.5, aliases=aliases)
    own, count = c.get("hidden_size_per_layer_input", 0), c.get("vocab_size_per_layer_input", c.vocab_size)
    if not own:
        return tokens
    size = c.num_hidden_layers * own
    table = AliasedEmbedding(count, size, own**0.5, aliases=aliases, vocab_size=c.vocab_size)
    return PerLayerEmbedding(tokens, table, RMSNorm(own, c.rms_norm_eps))


@architecture("Gemma4ForCausalLM", about="Gemma 4 (text)", examples=("google/gemma-4-31B-it",))
def gemma4(c: Config) -> CausalLM:
    count = c.num_hidden_layers
    types = layer_types(c, [FULL if (i + 1) % 6 == 0 else SLIDING for i in range(count)])
    types = [*types[:-1], FULL]  # whatever the config says
    if c.get("use_bidirectional_attention") == "all":
        raise UnsupportedModelError("config.json: use_bidirectional_attention 'all' is not supported.")
    shares, embed = shared_keys(c, types), _embedding(c)
    names = PER_LAYER_NAMES.extended(GEMMA4_NAMES)
    if isinstance(embed, Embedding):
        names = names.replacing({"model.embed_tokens": "embed"})
    return decoder(
        c,
        partial(RMSNorm, c.hidden_size, c.rms_norm_eps),
        _layer(c, types, shares),
        Names(names.table, (*names.ignored, *unread_keys(shares)), names.prefix),
        embed=embed,
        softcap=c.get("final_logit_softcapping"),
        optional=tuple(f"layers.{i}.scalar" for i in range(count)),
        tied=c.get("tie_word_embeddings", True),
        tied_if_absent=True,
    )


@architecture(
    "Gemma4ForConditionalGeneration",
    about="Gemma 4 (text of it: pictures and sounds are not taken yet)",
    examples=("google/gemma-4-E2B-it", "google/gemma-4-26B-A4B-it"),
)
def gemma4_of_media(c: Config) -> CausalLM:
    shared = {key: c.get(key) for key in ("image_token_id", "video_token_id", "audio_token_id")}
    text = c.section("text_config").replace(**shared, tie_word_embeddings=c.get("tie_word_embeddings", True))
    model = gemma4(text)
    model.names = in_composite(model.names)
    return model
