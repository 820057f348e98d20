"""Persimmon (Adept 2023): layer norms, also of each head's queries and keys, a squared relu, rope on half a head."""

from functools import partial

from octavo.architectures.llama import llama_body
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import MLP, CausalLM, LayerNorm, Names, QKNorm, grouped_qkv


def names(num_heads: int, head_dim: int) -> Names:
    return Names(
        {
            "model.embed_tokens": "embed",
            "model.layers.{i}.input_layernorm": "layers.{i}.attention.norm",
            "model.layers.{i}.self_attn.query_key_value": grouped_qkv(
                "layers.{i}.attention.inner.qkv", num_heads, 1, head_dim
            ),
            "model.layers.{i}.self_attn.{q|k}_layernorm": "layers.{i}.attention.inner.qk_transform.{q|k}",
            "model.layers.{i}.self_attn.dense": "layers.{i}.attention.inner.o",
            "model.layers.{i}.post_attention_layernorm": "layers.{i}.mlp.norm",
            "model.layers.{i}.mlp.dense_h_to_4h": "layers.{i}.mlp.inner.up",
            "model.layers.{i}.mlp.dense_4h_to_h": "layers.{i}.mlp.inner.down",
            "model.final_layernorm": "norm",
            "lm_head": "head",
        },
        ignored=("model.layers.{i}.self_attn.rotary_emb.inv_freq",),
        prefix="model.",
    )


@architecture(
    "PersimmonForCausalLM", about="Persimmon", examples=("adept/persimmon-8b-base", "adept/persimmon-8b-chat")
)
def persimmon(c: Config) -> CausalLM:
    hidden_size, num_heads, eps = c.hidden_size, c.num_attention_heads, c.layer_norm_eps
    head_dim = hidden_size // num_heads

    def head_norms() -> QKNorm | None:
        norms = LayerNorm(head_dim, eps), LayerNorm(head_dim, eps)
        return QKNorm(num_heads, num_heads, *norms) if c.qk_layernorm else None

    return llama_body(
        c.replace(num_key_value_heads=num_heads),
        mlp=lambda layer: MLP(hidden_size, c.intermediate_size, c.hidden_act, bias=True),
        names=names(num_heads, head_dim),
        norm=partial(LayerNorm, hidden_size, eps),
        qk_transform=head_norms,
        bias=True,
        out_bias=True,
    )
