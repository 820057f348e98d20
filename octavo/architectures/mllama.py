"""Llama 3.2 Vision (Meta 2024): Llama with layers that attend to pictures, whose tower reads all tiles at once."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from octavo.architectures.composite import with_tower
from octavo.architectures.decoder import NAMES as TEXT_NAMES
from octavo.architectures.decoder import attention, decoder, gated_mlp, rms_norm
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.errors import CheckpointError
from octavo.media.processors.mllama import MllamaProcessor
from octavo.parts import (
    MLP,
    Batch,
    CausalLM,
    CrossAttention,
    Embedding,
    EncoderAttention,
    GatedPreNorm,
    Into,
    LayerNorm,
    Linear,
    MediaData,
    MediaTower,
    PatchEmbedding,
    PreNorm,
    QKNorm,
    RMSNorm,
    SpanBatch,
    flat_convolution,
    parameter,
    together,
)

PATCH_GRAIN = 8
"""Rows of a tile are filled up to a multiple of it. That shows: patches see what fills them up."""
MORE_EMBEDDINGS = 8
"""Rows that the token table has beyond the vocabulary, the picture's placeholder among them."""
POSITIONS = "vision_model.gated_positional_embedding"
NAMES: dict[str, str | Into] = {
    "vision_model.class_embedding": parameter("media.class_token"),
    "vision_model.patch_embedding": Into("media.patches", flat_convolution),
    f"{POSITIONS}.{{gate|embedding}}": parameter("media.{positions_gate|positions}"),
    f"{POSITIONS}.tile_embedding.weight": parameter("media.tile_positions"),
    "vision_model.layernorm_{pre|post}": "media.{first|last}_norm",
    "multi_modal_projector": "media.project",
}
for _when in ("pre", "post"):
    _published, _path = f"vision_model.{_when}_tile_positional_embedding", f"media.{_when}_tile"
    NAMES[f"{_published}.gate"] = parameter(f"{_path}.gate")
    NAMES[f"{_published}.embedding.weight"] = parameter(f"{_path}.table")
for _published, _path in (("transformer", "local_layers"), ("global_transformer", "global_layers")):
    _layer, _here = f"vision_model.{_published}.layers.{{i}}", f"media.{_path}.{{i}}"
    NAMES |= {
        f"{_layer}.self_attn.{{q|k|v}}_proj": f"{_here}.attn.qkv.{{q|k|v}}",
        f"{_layer}.self_attn.o_proj": f"{_here}.attn.o",
        f"{_layer}.mlp.{{fc1|fc2}}": f"{_here}.mlp.{{up|down}}",
        f"{_layer}.{{input|post_attention}}_layernorm": f"{_here}.{{attn|mlp}}_norm",
        f"{_layer}.gate_{{attn|ffn}}": parameter(f"{_here}.{{attn|mlp}}_gate"),
    }
TEXT: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
}
VISION: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_global_layers": 8,
    "attention_heads": 16,
    "num_channels": 3,
    "image_size": 448,
    "patch_size": 14,
    "hidden_act": "gelu",
    "norm_eps": 1e-5,
    "max_num_tiles": 4,
    "vision_output_dim": 7680,
    "intermediate_layers_indices": [3, 7, 15, 23, 30],
    "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
}
"""What the published config classes take for keys that are left out."""
CROSS = "model.layers.{i}.cross_attn"
CROSS_NAMES: dict[str, str | Into] = {
    f"{CROSS}.q_proj": "layers.{i}.attn.q",
    f"{CROSS}.{{k|v}}_proj": "layers.{i}.attn.kv.{k|v}",
    f"{CROSS}.o_proj": "layers.{i}.attn.o",
    f"{CROSS}.{{q|k}}_norm": "layers.{i}.attn.qk_norm.{q|k}",
    f"{CROSS}_{{attn|mlp}}_gate": parameter("layers.{i}.{attn|mlp}_gate"),
}


class CrossLayer(GatedPreNorm):
    """A layer that attends to pictures; rows that see none stay as they are."""

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        if batch.crosses is None:
            return super().forward(x, batch)
        if not bool(batch.crosses.any()):
            return x
        return torch.where(batch.crosses.unsqueeze(1), super().forward(x, batch), x)


class TileEmbedding(nn.Module):
    """A learned row for each tile of each canvas, times tanh of a gate."""

    def __init__(self, canvases: int, tiles: int, size: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(canvases, tiles * size), requires_grad=False)
        self.gate = nn.Parameter(torch.empty(1), requires_grad=False)

    def of(self, canvas: Tensor, tiles: int) -> Tensor:
        """`[tiles, 1, size]` for a canvas `[1]`."""
        return self.table[canvas].view(tiles, 1, -1) * self.gate.tanh()


def kept_states(c: Config) -> list[int]:
    """Whose hidden states lie beside the last rows, by the layers before them. Raises CheckpointError for others."""
    states: list[int] = list(c.intermediate_layers_indices)
    size, layers, width = c.hidden_size, c.num_hidden_layers, c.vision_output_dim
    if not all(0 <= state <= layers for state in states) or width != size * (1 + len(states)):
        wrong = f"intermediate_layers_indices is {states} and vision_output_dim {width}"
        raise CheckpointError(
            f"config.json: {c.path}{wrong}, which {layers} local layers of {size} values do not have."
        )
    return states


class MllamaTower(MediaTower):
    """Tiles of a picture see each other: patches all rows, what fills up and empty tiles see the patches alone.

    Args:
        c: the vision_config.
        hidden_size: of the text.
    """

    def __init__(self, c: Config, hidden_size: int) -> None:
        super().__init__()
        size, self.tiles = c.hidden_size, c.max_num_tiles
        canvases = len(c.supported_aspect_ratios) + 1
        rows = (c.image_size // c.patch_size) ** 2 + 1
        norm = partial(LayerNorm, size, c.norm_eps)
        self.patches = PatchEmbedding(c.patch_size, size, bias=False, channels=c.num_channels)
        self.class_token = nn.Parameter(torch.empty(size), requires_grad=False)
        self.positions = nn.Parameter(torch.empty(rows, size), requires_grad=False)
        self.positions_gate = nn.Parameter(torch.empty(1), requires_grad=False)
        self.tile_positions = nn.Parameter(torch.empty(canvases, self.tiles * rows * size), requires_grad=False)
        self.pre_tile, self.post_tile = (TileEmbedding(canvases, self.tiles, size) for _ in range(2))
        self.first_norm, self.last_norm = (LayerNorm(size, 1e-5) for _ in range(2))
        self.kept = kept_states(c)

        def pieces() -> dict[str, nn.Module]:
            attn = EncoderAttention(size, c.attention_heads, bias=False)
            return {"attn": attn, "mlp": MLP(size, c.intermediate_size, c.hidden_act, True)}

        self.local_layers = nn.ModuleList([PreNorm(norm, scale=1.0, **pieces()) for _ in range(c.num_hidden_layers)])
        self.global_layers = nn.ModuleList([GatedPreNorm(norm, **pieces()) for _ in range(c.num_global_layers)])
        self.project = Linear(c.vision_output_dim, hidden_size, True)

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        tiles = [tile for item in items for tile in item["pixel_values"]]
        patches = iter(self.patches.of(tiles, self.dtype))
        each = [torch.stack([next(patches) for _ in range(self.tiles)]) for _ in items]
        return together([self._rows(*one) for one in zip(each, items, strict=True)], self.project)

    def _rows(self, patches: Tensor, item: MediaData) -> Tensor:
        """Rows of a picture's tiles that there are, `[rows, vision_output_dim]`, of `[tiles, patches, size]`."""
        canvas, count = item["aspect_ratio_ids"], int(item["aspect_ratio_mask"].sum())
        x = self._placed(patches, canvas)
        tiles, rows, size = x.shape
        filled = -(-rows // PATCH_GRAIN) * PATCH_GRAIN
        x = nn.functional.pad(self.first_norm(x.flatten(0, 1)).view(x.shape), (0, 0, 0, filled - rows))
        # Rows that are of the picture come first, then all others.
        is_real = torch.zeros(tiles, filled, dtype=torch.bool)
        is_real[:count, :rows] = True
        order = torch.argsort(~is_real.flatten(), stable=True).to(x.device)
        real = count * rows
        runs, sees = [(0, real), (real, len(order) - real)], [(0, len(order)), (0, real)]
        batch = SpanBatch(runs, sees=sees) if len(order) > real else SpanBatch(runs[:1])
        x = x.flatten(0, 1)[order]
        states = [x[:real]]
        for layer in self.local_layers:
            x = layer(x, batch)
            states.append(x[:real])
        kept = [states[i] for i in self.kept]
        tile = self.post_tile.of(canvas, tiles).expand(tiles, filled, size).flatten(0, 1)
        x = self.last_norm(x) + tile[order]
        for layer in self.global_layers:
            x = layer(x, batch)
        return torch.cat([x[:real], torch.stack(kept, dim=-1).flatten(1)], dim=1)

    def _placed(self, patches: Tensor, canvas: Tensor) -> Tensor:
        """Class token and patches with their positions, `[tiles, rows, size]`."""
        tiles, _, size = patches.shape
        x = patches + self.pre_tile.of(canvas, tiles)
        x = torch.cat([self.class_token.expand(tiles, 1, size), x], dim=1)
        gate = self.positions_gate.tanh()
        return x + (1 - gate) * self.positions + gate * self.tile_positions[canvas].view(tiles, -1, size)


@architecture(
    "MllamaForConditionalGeneration",
    about="Llama 3.2 Vision",
    examples=("meta-llama/Llama-3.2-11B-Vision", "meta-llama/Llama-3.2-90B-Vision-Instruct"),
    media=MllamaProcessor,
    defaults={"text_config": TEXT, "vision_config": VISION},
)
def mllama(c: Config) -> CausalLM:
    text = c.section("text_config")
    norm, attn, mlp = rms_norm(text), attention(text), gated_mlp(text)
    num_heads, num_kv_heads, size = text.num_attention_heads, text.num_key_value_heads, text.hidden_size
    crossing = set(text.cross_attention_layers)

    def layer(i: int) -> nn.Module:
        if i not in crossing:
            return PreNorm(norm, attn=attn(i), mlp=mlp())
        head_norm = partial(RMSNorm, size // num_heads, text.rms_norm_eps)
        cross = CrossAttention(size, num_heads, num_kv_heads, qk_norm=QKNorm(head_norm(), head_norm()))
        return CrossLayer(norm, attn=cross, mlp=mlp())

    embed = Embedding(text.vocab_size + MORE_EMBEDDINGS, size)
    model = decoder(text, norm, layer, TEXT_NAMES.extended(CROSS_NAMES), embed=embed, tied=False)
    return with_tower(c, model, MllamaTower(c.section("vision_config"), size), NAMES)
