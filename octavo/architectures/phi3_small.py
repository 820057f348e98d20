"""Phi-3-small (Abdin et al. 2024): block-sparse layers between dense ones, a clamped gelu gate, muP's multipliers."""

from functools import partial

import torch
from torch import Tensor

from octavo.architectures.decoder import NAMES
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_config import make_rope
from octavo.ops import BlockSparse, Gate
from octavo.parts import (
    Attention,
    CausalLM,
    Embedding,
    GatedMLP,
    LayerNorm,
    Linear,
    Names,
    PreNorm,
    alternating,
    grouped_qkv,
)


def names(num_kv_heads: int, group: int, head_dim: int) -> Names:
    return NAMES.replacing(
        {
            "model.layers.{i}.self_attn.query_key_value": grouped_qkv(
                "layers.{i}.attn.qkv", num_kv_heads, group, head_dim
            ),
            "model.layers.{i}.self_attn.dense": "layers.{i}.attn.o",
            "model.layers.{i}.mlp.up_proj": alternating("layers.{i}.mlp.gate_up"),
            "model.layers.{i}.mlp.down_proj": "layers.{i}.mlp.down",
            "model.final_layernorm": "norm",
        }
    )


class WithoutDummies(CausalLM):
    """Tokens that pad the vocabulary are never likely."""

    dummies: list[int]

    def process_logits(self, logits: Tensor) -> Tensor:
        logits = super().process_logits(logits)
        logits[:, self.dummies] = torch.finfo(torch.float32).min
        return logits


@architecture(
    "Phi3SmallForCausalLM",
    about="Phi-3-small",
    examples=("microsoft/Phi-3-small-8k-instruct", "microsoft/Phi-3-small-128k-instruct"),
)
def phi3_small(c: Config) -> CausalLM:
    hidden_size, num_heads, intermediate_size = c.hidden_size, c.num_attention_heads, c.ff_intermediate_size
    num_kv_heads, head_dim = c.get("num_key_value_heads", num_heads), hidden_size // num_heads
    multiplier = c.mup_attn_multiplier
    stride, every = c.blocksparse_vert_stride, c.dense_attention_every_n_layers
    scaling = (
        {"short_mscale": 1.0, **c.rope_scaling}
        if c.get("rope_scaling")
        else {"rope_type": "linear", "factor": c.rope_position_scale}
    )
    attn = partial(
        Attention,
        hidden_size,
        num_heads,
        num_kv_heads,
        head_dim,
        rope=make_rope(c.replace(rope_scaling=scaling), head_dim),
        bias=True,
        out_bias=True,
        scale=multiplier / head_dim if c.mup_use_scaling else head_dim**-0.5,
    )
    sparse = BlockSparse(
        c.blocksparse_block_size,
        c.blocksparse_num_local_blocks,
        stride,
        head_step=0 if c.blocksparse_homo_head_pattern else max(1, stride // num_heads),
    )
    norm = partial(LayerNorm, hidden_size, c.layer_norm_epsilon)
    gate = Gate("quick_gelu", limit=c.get("gegelu_limit"), up_offset=1.0)
    mlp = partial(GatedMLP, hidden_size, intermediate_size, gate, bias=True)

    def layer(i: int) -> PreNorm:
        dense = every and (i + 1) % every == 0
        return PreNorm(norm, attn=attn(sparse=None if dense else sparse), mlp=mlp())

    model = WithoutDummies(
        embed=Embedding(c.vocab_size, hidden_size, c.mup_embedding_multiplier),
        layer=layer,
        layers=c.num_hidden_layers,
        norm=norm(),
        head=Linear(hidden_size, c.vocab_size),
        names=names(num_kv_heads, num_heads // num_kv_heads, head_dim),
        tied=c.tie_word_embeddings,
        logit_scale=1.0 / c.mup_width_multiplier,
    )
    model.dummies = c.get("dummy_token_indices", [])
    return model
