"""BitNet b1.58 (Ma et al. 2024) in bfloat16: norms before the last products of attention and feed-forward."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from octavo.architectures.decoder import NAMES, attention, decoder, rms_norm
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.ops import Backend, Gate, RankColumns
from octavo.parts import Attention, Batch, CausalLM, Linear, PreNorm, RMSNorm
from octavo.parts.norms import norm_rows
from octavo.parts.split import HeadSplit, Split

BITNET_NAMES = NAMES.extended(
    {
        "model.layers.{i}.self_attn.attn_sub_norm": "layers.{i}.attn.sub_norm.norm",
        "model.layers.{i}.mlp.ffn_sub_norm": "layers.{i}.mlp.sub_norm.norm",
    }
)


class WholeNorm(nn.Module):
    """A norm of rows of which each rank has some columns: they are gathered, and each takes its own of the result."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.norm = norm
        self.columns: RankColumns | None = None

    def prepare(self, backend: Backend) -> None:
        self._all_gather = backend.all_gather

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        if self.columns is None:
            return norm_rows(self.norm, x, batch)
        whole = norm_rows(self.norm, self._all_gather(x[:, : self.columns.given], self.columns.widths), batch)
        return whole[:, self.columns.first : self.columns.first + x.shape[1]]


class SubNormAttention(Attention):
    """`o(norm(attention))`; arguments as of Attention, and eps of the norm."""

    def __init__(self, *sizes: int, eps: float, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.sub_norm = WholeNorm(RMSNorm(self.num_heads * self.head_dim, eps))

    def split(self, split: Split) -> None:
        """See octavo.parts.split."""
        self.sub_norm.columns = HeadSplit(split, self.num_heads, self.num_kv_heads, self.head_dim).query_columns
        super().split(split)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self.o(self.sub_norm(self.attend(self.qkv(x, batch), batch), batch), batch)  # type: ignore[no-any-return]


class SubNormMLP(nn.Module):
    """`down(norm(activation(gate(x)) * up(x)))`."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, eps: float) -> None:
        super().__init__()
        self.gate = Gate(activation)
        self.gate_up = Linear(hidden_size, {"gate": intermediate_size, "up": intermediate_size})
        self.sub_norm = WholeNorm(RMSNorm(intermediate_size, eps))
        self.down = Linear(intermediate_size, hidden_size)

    def split(self, split: Split) -> None:
        """See octavo.parts.split."""
        size = self.down.inputs
        own = split.share(size)
        self.sub_norm.columns = RankColumns(split.widths(size), own[1] - own[0], own[0])
        self.gate_up.split_outputs({"gate": own, "up": own})
        self.down.split_inputs(split, own)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        inner = self.sub_norm(self.gate_up.gated(x, batch, self.gate), batch)
        return self.down(inner, batch)  # type: ignore[no-any-return]


@architecture(
    "BitNetForCausalLM", about="BitNet b1.58 2B4T in bfloat16", examples=("microsoft/bitnet-b1.58-2B-4T-bf16",)
)
def bitnet(c: Config) -> CausalLM:
    norm, bias, eps = rms_norm(c), c.attention_bias, c.rms_norm_eps
    attn = attention(c, part=partial(SubNormAttention, eps=eps), bias=bias, out_bias=bias)
    mlp = partial(SubNormMLP, c.hidden_size, c.intermediate_size, c.hidden_act, eps)
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()), BITNET_NAMES)
