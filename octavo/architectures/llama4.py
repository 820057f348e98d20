"""Llama 4 (Meta 2025), text: attention within chunks, some layers without rope, experts of scaled inputs."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from octavo.architectures.composite import text_alone
from octavo.architectures.decoder import NAMES, attention, decoder, rms_norm
from octavo.architectures.deepseek import MoEWithShared
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_config import make_rope
from octavo.architectures.rope_settings import CHUNKED, FULL, layer_types
from octavo.architectures.text_config import text_model
from octavo.errors import CheckpointError
from octavo.ops import RouterSpec
from octavo.parts import (
    Attention,
    Batch,
    CausalLM,
    GatedMLP,
    Linear,
    PlainRMSNorm,
    PreNorm,
    QKNorm,
    QueryScale,
    stacked,
)
from octavo.token_windows import Chunk

PIECE, MLP = "model.layers.{i}.feed_forward.", "layers.{i}.mlp."
LLAMA4_NAMES = NAMES.replacing(
    {
        PIECE + "{gate|up}_proj": MLP + "gate_up.{gate|up}",
        PIECE + "down_proj": MLP + "down",
        PIECE + "router": MLP + "router",
        PIECE + "shared_expert.{gate|up}_proj": MLP + "shared.gate_up.{gate|up}",
        PIECE + "shared_expert.down_proj": MLP + "shared.down",
        PIECE + "experts.{e}.{gate|up}_proj": MLP + "experts.{e}.gate_up.{gate|up}",
        PIECE + "experts.{e}.down_proj": MLP + "experts.{e}.down",
    }
).extended(
    {
        f"{PIECE}experts.{name}_proj": stacked(
            f"{MLP}experts.{{e}}.{name}.weight", lambda w: w.transpose(1, 2), full_name=True
        )
        for name in ("gate_up", "down")
    }
)


class ExpertsOfScaledInputs(MoEWithShared):
    """Experts, and one that serves every token. What an expert reads is scaled by its score's sigmoid."""

    def of_chosen(self, x: Tensor, weights: Tensor, chosen: Tensor, batch: Batch) -> Tensor:
        backend, rows = self._backend, batch.num_tokens
        scores = backend.activate(weights, "sigmoid").view(-1)
        # What is linear of scaled rows is as much of the rows, scaled.
        first = backend.scale_rows(self._first(x[:rows], chosen, batch), scores)
        total = backend.weighted_sum(self._down(self._inner(first, backend), chosen, batch), None, self.route.top_k)
        return self.padded(total, x.shape[0])


def _attention(c: Config) -> Callable[[int], Attention]:
    count, every, size = c.num_hidden_layers, c.get("no_rope_layer_interval", 4), c.get("attention_chunk_size")
    rotates = c.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(count)]
    if len(rotates) < count:
        raise CheckpointError(f"config.json: no_rope_layers says which of {len(rotates)} layers rotate, of {count}.")
    types = layer_types(c, [CHUNKED if each else FULL for each in rotates[:count]], (FULL, CHUNKED))
    make = partial(
        attention,
        c,
        window=[Chunk(size) if size and kind == CHUNKED else None for kind in types],
        bias=c.attention_bias,
        out_bias=c.attention_bias,
    )
    head_dim, eps = c.get("head_dim", c.hidden_size // c.num_attention_heads), c.rms_norm_eps
    rope = make_rope(c, head_dim, interleaved=True)
    if c.use_qk_norm:  # after rope, which keeps lengths but for YaRN's factor
        factor = rope.table.scales[0]
        rope.table, norm = replace(rope.table, scales=(1.0,)), partial(PlainRMSNorm, head_dim, eps / factor**2)
        rotating = make(rope=rope, qk_transform=lambda: QKNorm(norm(), norm()))
    else:
        rotating = make(rope=rope)
    is_tuned = c.get("attn_temperature_tuning", False)
    still = make(rope=None, query_scale=QueryScale(c.attn_scale, c.floor_scale, 1) if is_tuned else None)
    return lambda i: rotating(i) if rotates[i] else still(i)


def _feed_forward(c: Config) -> Callable[[int], nn.Module]:
    mlp = partial(GatedMLP, c.hidden_size, activation=c.hidden_act)
    count, every = c.num_local_experts, c.interleave_moe_layer_step
    route = RouterSpec(c.num_experts_per_tok, scores="logits")
    sparse = c.get("moe_layers", range(every - 1, c.num_hidden_layers, every) if every else [])

    def make(i: int) -> nn.Module:
        if i not in sparse:
            return mlp(c.intermediate_size_mlp)
        experts = [mlp(c.intermediate_size) for _ in range(count)]
        return ExpertsOfScaledInputs(Linear(c.hidden_size, count, exact=True), experts, route, mlp(c.intermediate_size))

    return make


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    """Chunks and what tunes the temperature are constants; only Maverick, which has 128 experts, norms no keys."""
    return {
        "attention_chunk_size": 8192,
        "attn_temperature_tuning": True,
        "attn_scale": 0.1,
        "floor_scale": 8192,
        "intermediate_size_mlp": shared["intermediate_size"],
        "intermediate_size": file.value("expert_feed_forward_length"),
        "moe_layers": [i for i in range(shared["num_hidden_layers"]) if f"blk.{i}.ffn_gate_inp.weight" in file.tensors],
        "use_qk_norm": file.value("expert_count") != 128,
        "hidden_act": "silu",
    }


@architecture(
    "Llama4ForCausalLM",
    about="Llama 4 (text alone)",
    examples=("meta-llama/Llama-4-Scout-17B-16E",),
    gguf=GGUFFormat("llama4", config=_from_gguf),
)
def llama4(c: Config) -> CausalLM:
    """Layers that do not rotate see all tokens, and their queries grow with positions."""
    norm, attn, mlp = rms_norm(c), _attention(c), _feed_forward(c)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp(i)), LLAMA4_NAMES)


@architecture(
    "Llama4ForConditionalGeneration",
    about="Llama 4 Scout and Maverick (text)",
    examples=("meta-llama/Llama-4-Scout-17B-16E-Instruct", "meta-llama/Llama-4-Maverick-17B-128E-Instruct"),
    read_as="llama4",
)
def llama4_of_pictures(c: Config) -> CausalLM:
    text = text_model(c.section("text_config"), "llama4_text")
    return text_alone(c, text, "vision_model.", "multi_modal_projector.")
