"""DeciLM (Deci 2023) and Llama-Nemotron (NVIDIA 2024): Llama's body where a search chose each layer's pieces."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from octavo.architectures.config import Config
from octavo.architectures.gguf import UNPERMUTE, GGUFFormat, GGUFHeader
from octavo.architectures.llama import ATTENTION_NAMES, IGNORED, MLP_NAMES
from octavo.architectures.registry import architecture
from octavo.architectures.rope import rotary
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.parts import Attention, Batch, Block, CausalLM, Embedding, GatedMLP, Linear, Names, Residual, RMSNorm

NAMES = Names(
    {
        **ATTENTION_NAMES,
        **MLP_NAMES,
        "model.layers.{i}.self_attn.linear_attn": "layers.{i}.attention.inner.o",
        "model.layers.{i}.mlp.linear_mlp": "layers.{i}.mlp.inner.o",
    },
    IGNORED,
    prefix="model.",
)
FFN_GRAIN = 256
"""Feed-forward widths are rounded up to a multiple of it."""


class LinearPiece(nn.Module):
    """A square matrix in the place of an attention or a feed-forward."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.o = Linear(width, width, bias)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self.o(x)  # type: ignore[no-any-return]


def block_configs(c: Config) -> list[Config]:
    """What each layer has, in Nemotron's terms; DeciLM-7B's layers differ only in their key heads."""
    if not c.get("block_configs"):
        heads = c.num_attention_heads
        same = [c.get("num_key_value_heads", heads)] * c.num_hidden_layers
        per_layer = c.get("num_key_value_heads_per_layer") or same
        c = c.replace(block_configs=[{"attention": {"n_heads_in_group": heads // kv}} for kv in per_layer])
    blocks = list(c.sections("block_configs"))
    if len(blocks) != c.num_hidden_layers:
        raise CheckpointError(f"config.json describes {len(blocks)} layers, and num_hidden_layers is another number.")
    return blocks


def ffn_width(c: Config, ffn: Config) -> int:
    """The width that is given, or two thirds of the layer's multiple of the stream's, rounded up."""
    if ffn.get("ffn_mult") is None:
        return int(ffn.get("intermediate_size") or c.intermediate_size)
    return -(-int(2 * ffn.ffn_mult * c.hidden_size / 3) // FFN_GRAIN) * FFN_GRAIN


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    """The file counts heads, key heads and the feed-forward's width by layer, with 0 for what is not there."""
    layers = range(shared["num_hidden_layers"])
    heads, kv_heads, widths = (
        value if isinstance(value, list) else [value for _ in layers]
        for value in (shared[k] for k in ("num_attention_heads", "num_key_value_heads", "intermediate_size"))
    )
    blocks = [
        {
            "attention": {
                "no_op": heads[i] == 0,
                "replace_with_linear": heads[i] > 0 and kv_heads[i] == 0,
                "n_heads_in_group": heads[i] // kv_heads[i] if kv_heads[i] else None,
            },
            "ffn": {"no_op": widths[i] == 0, "intermediate_size": widths[i]},
        }
        for i in layers
    ]
    return {"num_attention_heads": max(heads), "block_configs": blocks}


@architecture(
    "DeciLMForCausalLM",
    about="DeciLM, Llama-Nemotron",
    examples=("Deci/DeciLM-7B", "Deci/DeciLM-7B-instruct", "nvidia/Llama-3_1-Nemotron-51B-Instruct"),
    gguf=GGUFFormat("deci", config=_from_gguf, undo=UNPERMUTE),
)
def decilm(c: Config) -> CausalLM:
    width, heads = c.hidden_size, c.num_attention_heads
    head_dim = c.get("head_dim", width // heads)
    bias, mlp_bias = c.attention_bias, c.mlp_bias
    norm = partial(RMSNorm, width, c.rms_norm_eps)
    turn = rotary(c, head_dim)
    blocks = block_configs(c)

    def attention(a: Config) -> nn.Module:
        if a.get("replace_with_linear"):
            return LinearPiece(width, bias)
        if refused := [key for key in ("num_sink_tokens", "sparsify") if a.values.get(key)]:
            raise UnsupportedModelError(f"config.json: a layer's attention has {refused[0]}, which is not served.")
        kv_heads, window = heads // a.n_heads_in_group, a.get("window_length")
        return Attention(width, heads, kv_heads, head_dim, rotary=turn, bias=bias, out_bias=bias, window=window)

    def mlp(ffn: Config) -> nn.Module:
        if ffn.get("replace_with_linear"):
            return LinearPiece(width, mlp_bias)
        return GatedMLP(width, ffn_width(c, ffn), c.hidden_act, mlp_bias)

    def layer(i: int) -> Block:
        pieces, a, ffn = {}, blocks[i].section("attention"), blocks[i].section("ffn")
        if not a.get("no_op"):
            pieces["attention"] = Residual(norm(), attention(a))
        if not ffn.get("no_op"):
            pieces["mlp"] = Residual(norm(), mlp(ffn))
        return Block(**pieces)

    return CausalLM(
        embed=Embedding(c.vocab_size, width),
        layer=layer,
        layers=c.num_hidden_layers,
        norm=norm(),
        head=None if c.tie_word_embeddings else Linear(width, c.vocab_size),
        names=NAMES,
    )
