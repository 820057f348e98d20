"""MiniMax-Text-01 (MiniMax 2025): lightning attention and softmax attention by turns, and experts."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from octavo.architectures.decoder import attention, decoder, gated_mlp, moe, rms_norm
from octavo.architectures.mistral import MIXTRAL_NAMES
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.ops import Backend
from octavo.parts import CausalLM, LightningAttention, Names, lightning_slopes, softmax_then_topk
from octavo.parts.names import Into
from octavo.parts.wiring import Wiring

BUFFERS = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")


class ScaledFromNormed(Wiring):
    """`alpha * y + beta * piece(y)` with `y = norm(x)`, and a pair of factors for each piece."""

    def __init__(
        self, norm: Callable[[], nn.Module], factors: dict[str, tuple[float, float]], **pieces: nn.Module
    ) -> None:
        super().__init__(norm, scale=1.0, **pieces)
        self.factors = factors

    def prepare(self, backend: Backend) -> None:
        super().prepare(backend)
        self._scale = backend.scale

    def forward(self, x: Tensor, batch: Any) -> Tensor:
        for name in self.pieces:
            (alpha, beta), y = self.factors[name], self.norm(name, x, batch)
            x = self._add(self._scale(y, alpha), self.piece(name, y, batch), beta)
        return x


def _by_kind(path: str, num_heads: int) -> Into:
    """For a weight that has, by head, its query, key and value."""
    return Into(path, lambda w: w.reshape(num_heads, 3, -1, *w.shape[1:]).transpose(0, 1).reshape(w.shape))


@architecture("MiniMaxForCausalLM", about="MiniMax-Text-01", examples=("MiniMaxAI/MiniMax-Text-01-hf",))
def minimax(c: Config) -> CausalLM:
    layers, heads = c.num_hidden_layers, c.num_attention_heads
    types: list[str] = c.get("layer_types", ["linear_attention" if i % 2 else "full_attention" for i in range(layers)])
    head_dim = c.get("head_dim", c.hidden_size // heads)
    norm, attn = rms_norm(c), attention(c, window=c.get("sliding_window"))
    experts = moe(c, gated_mlp(c), c.num_local_experts, softmax_then_topk(c.num_experts_per_tok))

    def layer(i: int) -> ScaledFromNormed:
        is_full = types[i] == "full_attention"
        kind = "full" if is_full else "linear"
        factors = {
            "attn": (c.get(f"{kind}_attn_alpha_factor", 1.0), c.get(f"{kind}_attn_beta_factor", 1.0)),
            "mlp": (c.get("mlp_alpha_factor", 1.0), c.get("mlp_beta_factor", 1.0)),
        }
        slopes = lightning_slopes(heads, i, layers)
        lightning = LightningAttention(c.hidden_size, heads, head_dim, c.hidden_act, slopes, 1e-6)
        return ScaledFromNormed(norm, factors, attn=attn(i) if is_full else lightning, mlp=experts())

    table: dict[str, str | Into] = {
        **MIXTRAL_NAMES.table,
        "model.layers.{i}.self_attn.qkv_proj": _by_kind("layers.{i}.attn.in_proj.qkv", heads),
        "model.layers.{i}.self_attn.output_gate": "layers.{i}.attn.in_proj.gate",
        "model.layers.{i}.self_attn.norm": "layers.{i}.attn.norm",
        "model.layers.{i}.self_attn.out_proj": "layers.{i}.attn.o",
    }
    ignored = tuple(f"model.layers.{{i}}.self_attn.{name}" for name in BUFFERS)
    return decoder(c, norm, layer, Names(table, (*MIXTRAL_NAMES.ignored, *ignored), MIXTRAL_NAMES.prefix))
