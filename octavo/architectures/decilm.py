"""DeciLM (Deci 2023) and Llama-Nemotron (NVIDIA 2024): Llama's body where a search chose each layer's pieces."""

from typing import Any

from torch import Tensor, nn

from octavo.architectures.decoder import NAMES, decoder, rms_norm
from octavo.architectures.gguf_format import UNPERMUTE, GGUFFormat, GGUFHeader
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_config import make_rope
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.parts import Attention, Batch, CausalLM, GatedMLP, Linear, PreNorm
from octavo.parts.split import Split

DECILM_NAMES = NAMES.extended(
    {
        "model.layers.{i}.self_attn.linear_attn": "layers.{i}.attn.o",
        "model.layers.{i}.mlp.linear_mlp": "layers.{i}.mlp.o",
    }
)
FFN_MULTIPLE = 256
"""Feed-forward sizes are rounded up to a multiple of it."""


class LinearPiece(nn.Module):
    """A square matrix in the place of an attention or a feed-forward."""

    def __init__(self, hidden_size: int, bias: bool) -> None:
        super().__init__()
        self.o = Linear(hidden_size, hidden_size, bias)

    def split(self, split: Split) -> None:
        """See octavo.parts.split."""
        outputs = self.o.outputs
        self.o.split_outputs(split.share(outputs), split.widths(outputs))

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self.o(x, batch)  # type: ignore[no-any-return]


def block_configs(c: Config) -> list[Config]:
    """What each layer has, in Nemotron's terms; DeciLM-7B's layers differ only in their key heads."""
    if not c.get("block_configs"):
        num_heads = c.num_attention_heads
        same = [c.get("num_key_value_heads", num_heads)] * c.num_hidden_layers
        per_layer = c.get("num_key_value_heads_per_layer") or same
        c = c.replace(block_configs=[{"attention": {"n_heads_in_group": num_heads // kv}} for kv in per_layer])
    blocks = list(c.sections("block_configs"))
    if len(blocks) != c.num_hidden_layers:
        raise CheckpointError(f"config.json describes {len(blocks)} layers, and num_hidden_layers is another number.")
    return blocks


def ffn_size(c: Config, ffn: Config) -> int:
    """The size that is given, or two thirds of the layer's multiple of hidden_size, rounded up."""
    if ffn.get("ffn_mult") is None:
        return int(ffn.get("intermediate_size") or c.intermediate_size)
    return -(-int(2 * ffn.ffn_mult * c.hidden_size / 3) // FFN_MULTIPLE) * FFN_MULTIPLE


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    """The file counts heads, key heads and the feed-forward's size by layer, with 0 for what is not there."""
    layers = range(shared["num_hidden_layers"])
    num_heads, num_kv_heads, ffn_sizes = (
        value if isinstance(value, list) else [value for _ in layers]
        for value in (shared[k] for k in ("num_attention_heads", "num_key_value_heads", "intermediate_size"))
    )
    blocks = [
        {
            "attention": {
                "no_op": num_heads[i] == 0,
                "replace_with_linear": num_heads[i] > 0 and num_kv_heads[i] == 0,
                "n_heads_in_group": num_heads[i] // num_kv_heads[i] if num_kv_heads[i] else None,
            },
            "ffn": {"no_op": ffn_sizes[i] == 0, "intermediate_size": ffn_sizes[i]},
        }
        for i in layers
    ]
    return {"num_attention_heads": max(num_heads), "block_configs": blocks}


@architecture(
    "DeciLMForCausalLM",
    about="DeciLM, Llama-Nemotron",
    examples=("Deci/DeciLM-7B", "Deci/DeciLM-7B-instruct", "nvidia/Llama-3_1-Nemotron-51B-Instruct"),
    gguf=GGUFFormat("deci", config=_from_gguf, undo=UNPERMUTE),
)
def decilm(c: Config) -> CausalLM:
    hidden_size, num_heads = c.hidden_size, c.num_attention_heads
    head_dim = c.get("head_dim", hidden_size // num_heads)
    bias, mlp_bias = c.attention_bias, c.mlp_bias
    norm, rope = rms_norm(c), make_rope(c, head_dim)
    blocks = block_configs(c)

    def attention(a: Config) -> nn.Module | None:
        if a.get("no_op"):
            return None
        if a.get("replace_with_linear"):
            return LinearPiece(hidden_size, bias)
        if refused := [key for key in ("num_sink_tokens", "sparsify") if a.values.get(key)]:
            raise UnsupportedModelError(f"config.json: a layer's attention has {refused[0]}, which is not supported.")
        num_kv_heads, window = num_heads // a.n_heads_in_group, a.get("window_length")
        return Attention(
            hidden_size, num_heads, num_kv_heads, head_dim, rope=rope, bias=bias, out_bias=bias, window=window
        )

    def mlp(ffn: Config) -> nn.Module | None:
        if ffn.get("no_op"):
            return None
        if ffn.get("replace_with_linear"):
            return LinearPiece(hidden_size, mlp_bias)
        return GatedMLP(hidden_size, ffn_size(c, ffn), c.hidden_act, mlp_bias)

    def layer(i: int) -> PreNorm:
        return PreNorm(norm, attn=attention(blocks[i].section("attention")), mlp=mlp(blocks[i].section("ffn")))

    return decoder(c, norm, layer, DECILM_NAMES)
