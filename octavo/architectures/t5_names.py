"""Where the tensors of T5 go, and of its encoder alone."""

from octavo.parts import Into, Names


def side(name: str, top: str, mlp: int) -> dict[str, str | Into]:
    """The names of the encoder's or the decoder's stack; its feed-forward is layer number `mlp` of a block."""
    block, here = f"{name}.block.{{i}}.layer", f"{top}layers.{{i}}"
    return {
        f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias": f"{top}relative_bias",
        f"{block}.0.SelfAttention.{{q|k|v}}": f"{here}.attn.qkv.{{q|k|v}}",
        f"{block}.0.SelfAttention.o": f"{here}.attn.o",
        f"{block}.0.layer_norm": f"{here}.attn_norm",
        f"{block}.{mlp}.DenseReluDense.{{wi|wo}}": f"{here}.mlp.{{up|down}}",
        f"{block}.{mlp}.DenseReluDense.{{wi_0|wi_1}}": f"{here}.mlp.gate_up.{{gate|up}}",
        f"{block}.{mlp}.layer_norm": f"{here}.mlp_norm",
        f"{name}.final_layer_norm": f"{top}norm",
    }


NAMES = Names(
    {
        "{shared|encoder.embed_tokens|decoder.embed_tokens}": "embed",
        **side("encoder", "encoder.", 1),
        **side("decoder", "", 2),
        "decoder.block.{i}.layer.1.EncDecAttention.q": "layers.{i}.cross_attn.q",
        "decoder.block.{i}.layer.1.EncDecAttention.{k|v}": "layers.{i}.cross_attn.kv.{k|v}",
        "decoder.block.{i}.layer.1.EncDecAttention.o": "layers.{i}.cross_attn.o",
        "decoder.block.{i}.layer.1.layer_norm": "layers.{i}.cross_attn_norm",
        "lm_head": "head",
    },
    # Read by no layer: cross-attention has no positions.
    ignored=("decoder.block.{i}.layer.1.EncDecAttention.relative_attention_bias.weight",),
)


ENCODER_NAMES = Names({"{shared|encoder.embed_tokens}": "embed", **side("encoder", "", 1)})


def of_feed_forward(names: Names, kind: str) -> Names:
    """A table without the weights of feed-forwards of another kind than `feed_forward_proj` says."""
    others = (".wi",) if kind.startswith("gated-") else (".wi_0", ".wi_1")
    return Names({key: into for key, into in names.table.items() if not key.endswith(others)}, names.ignored)
