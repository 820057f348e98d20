"""Where the tensors of BART and of what has its layers go."""

from octavo.architectures.opt import drop_padding
from octavo.parts import Into, Names, parameter


def side(name: str, layers: str, embed: str) -> dict[str, str | Into]:
    """The names that the encoder and the decoder have alike."""
    return {
        f"model.{name}.embed_positions": Into(f"{embed}.tokens.positions", drop_padding),
        f"model.{name}.layernorm_embedding": f"{embed}.norm",
        f"model.{name}.layer_norm": "norm" if name == "decoder" else "encoder.norm",
        f"model.{name}.layers.{{i}}.self_attn.{{q|k|v}}_proj": f"{layers}.attn.qkv.{{q|k|v}}",
        f"model.{name}.layers.{{i}}.self_attn.out_proj": f"{layers}.attn.o",
        f"model.{name}.layers.{{i}}.self_attn_layer_norm": f"{layers}.attn_norm",
        f"model.{name}.layers.{{i}}.fc1": f"{layers}.mlp.up",
        f"model.{name}.layers.{{i}}.fc2": f"{layers}.mlp.down",
        f"model.{name}.layers.{{i}}.final_layer_norm": f"{layers}.mlp_norm",
    }


NAMES = Names(
    {
        "model.{shared|encoder.embed_tokens|decoder.embed_tokens}": "embed.tokens.tokens",
        **side("encoder", "encoder.layers.{i}", "encoder.embed"),
        **side("decoder", "layers.{i}", "embed"),
        "model.decoder.layers.{i}.encoder_attn.q_proj": "layers.{i}.cross_attn.q",
        "model.decoder.layers.{i}.encoder_attn.{k|v}_proj": "layers.{i}.cross_attn.kv.{k|v}",
        "model.decoder.layers.{i}.encoder_attn.out_proj": "layers.{i}.cross_attn.o",
        "model.decoder.layers.{i}.encoder_attn_layer_norm": "layers.{i}.cross_attn_norm",
        "final_logits_bias": parameter("logits_bias"),
        "lm_head": "head",
    },
    prefix="model.",
)
