"""OPT (Zhang et al. 2022): learned positions, norms before the pieces, or after them in 350M."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.ops import Backend
from octavo.parts import (
    MLP,
    Attention,
    Batch,
    CausalLM,
    Embedding,
    Into,
    LayerNorm,
    Linear,
    Names,
    PostNorm,
    PreNorm,
)

POSITION_OFFSET = 2  # the first two rows of the published table stand for padding


def drop_padding(weight: Tensor) -> Tensor:
    return weight[POSITION_OFFSET:]


NAMES = Names(
    {
        "model.decoder.embed_tokens": "embed.tokens",
        "model.decoder.embed_positions": Into("embed.positions", drop_padding),
        "model.decoder.project_in": "embed.project",
        "model.decoder.layers.{i}.self_attn_layer_norm": "layers.{i}.attn_norm",
        "model.decoder.layers.{i}.self_attn.{q|k|v}_proj": "layers.{i}.attn.qkv.{q|k|v}",
        "model.decoder.layers.{i}.self_attn.out_proj": "layers.{i}.attn.o",
        "model.decoder.layers.{i}.final_layer_norm": "layers.{i}.mlp_norm",
        "model.decoder.layers.{i}.fc1": "layers.{i}.mlp.up",
        "model.decoder.layers.{i}.fc2": "layers.{i}.mlp.down",
        "model.decoder.final_layer_norm": "norm",
        "model.decoder.project_out": "project_out",
        "lm_head": "head",
    },
    prefix="model.",
)


class ProjectedEmbedding(nn.Module):
    """Tokens, projected to hidden_size where they are smaller, plus positions."""

    def __init__(self, tokens: Embedding, positions: Embedding, project: Linear | None) -> None:
        super().__init__()
        self.tokens, self.positions, self.project = tokens, positions, project

    def prepare(self, backend: Backend) -> None:
        self._add = backend.add

    def forward(self, batch: Batch) -> Tensor:
        x: Tensor = self.tokens(batch)
        x = x if self.project is None else self.project(x, batch)
        return self._add(x, self.positions.lookup(batch.positions))


class OPT(CausalLM):
    """With a projection back to the tokens' size at the end."""

    def __init__(self, project_out: Linear | None, **parts: Any) -> None:
        super().__init__(**parts)
        self.project_out = project_out
        if project_out is not None:
            self.stream_size = project_out.inputs

    def finish(self, x: Tensor, batch: Batch) -> Tensor:
        x = super().finish(x, batch)
        return x if self.project_out is None else self.project_out(x, batch)


@architecture("OPTForCausalLM", about="OPT, OPT-IML", examples=("facebook/opt-66b", "facebook/opt-iml-max-30b"))
def opt(c: Config) -> CausalLM:
    hidden_size, num_heads, bias = c.hidden_size, c.num_attention_heads, c.enable_bias
    narrow = c.get("word_embed_proj_dim", hidden_size)
    before = c.do_layer_norm_before
    affine = c.layer_norm_elementwise_affine
    norm = partial(LayerNorm, hidden_size, 1e-5, weight=affine, bias=affine)
    attn = partial(Attention, hidden_size, num_heads, num_heads, hidden_size // num_heads, bias=bias, out_bias=bias)
    mlp = partial(MLP, hidden_size, c.ffn_dim, c.activation_function, bias=bias)
    wiring = PreNorm if before else PostNorm
    last = norm() if before and not c._remove_final_layer_norm else nn.Identity()
    into = Linear(narrow, hidden_size) if narrow != hidden_size else None
    positions = Embedding(c.max_position_embeddings, hidden_size)
    return OPT(
        project_out=Linear(hidden_size, narrow) if narrow != hidden_size else None,
        embed=ProjectedEmbedding(Embedding(c.vocab_size, narrow), positions, into),
        layer=lambda i: wiring(norm, attn=attn(), mlp=mlp()),
        layers=c.num_hidden_layers,
        norm=last,
        head=Linear(narrow, c.vocab_size),
        names=NAMES,
        tied=c.tie_word_embeddings,
    )
