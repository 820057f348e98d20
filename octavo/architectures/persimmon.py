"""Persimmon (Adept 2023): layer norms, also of each head's queries and keys, a squared relu, rope on half a head."""

from functools import partial

from octavo.architectures.decoder import NAMES, attention, decoder
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import MLP, CausalLM, LayerNorm, PreNorm, QKNorm, grouped_qkv


@architecture(
    "PersimmonForCausalLM", about="Persimmon", examples=("adept/persimmon-8b-base", "adept/persimmon-8b-chat")
)
def persimmon(c: Config) -> CausalLM:
    hidden_size, num_heads, eps = c.hidden_size, c.num_attention_heads, c.layer_norm_eps
    head_dim = hidden_size // num_heads

    def head_norms() -> QKNorm | None:
        norms = LayerNorm(head_dim, eps), LayerNorm(head_dim, eps)
        return QKNorm(*norms) if c.qk_layernorm else None

    norm, mlp = partial(LayerNorm, hidden_size, eps), partial(MLP, hidden_size, c.intermediate_size, c.hidden_act, True)
    attn = attention(c.replace(num_key_value_heads=num_heads), qk_transform=head_norms, bias=True, out_bias=True)
    names = NAMES.replacing(
        {
            "model.layers.{i}.self_attn.query_key_value": grouped_qkv("layers.{i}.attn.qkv", num_heads, 1, head_dim),
            "model.layers.{i}.self_attn.{q|k}_layernorm": "layers.{i}.attn.qk_transform.{q|k}",
            "model.layers.{i}.self_attn.dense": "layers.{i}.attn.o",
            "model.layers.{i}.mlp.dense_h_to_4h": "layers.{i}.mlp.up",
            "model.layers.{i}.mlp.dense_4h_to_h": "layers.{i}.mlp.down",
            "model.final_layernorm": "norm",
        }
    )
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()), names)
