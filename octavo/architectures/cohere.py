"""Command-R (Cohere 2024): attention and feed-forward side by side behind one norm, pairs of rotary as neighbours."""

from functools import partial

import torch
from torch import Tensor, nn

from octavo.architectures.config import Config
from octavo.architectures.gguf import GGUFFormat
from octavo.architectures.llama import ATTENTION_NAMES, IGNORED, MLP_NAMES
from octavo.architectures.registry import architecture
from octavo.architectures.rope import rotary
from octavo.parts import (
    Attention,
    CausalLM,
    Embedding,
    GatedMLP,
    LayerNorm,
    Linear,
    Names,
    QKNorm,
    SharedNorm,
)

NAMES = Names(
    {
        published: path.replace("attention.norm", "norm").replace(".inner", "")
        for published, path in {**ATTENTION_NAMES, **MLP_NAMES}.items()
        if not published.endswith("post_attention_layernorm")
    }
    | {"model.layers.{i}.self_attn.{q|k}_norm": "layers.{i}.attention.adjust.{q|k}"},
    IGNORED,
    prefix="model.",
)


class HeadNorm(nn.Module):
    """A layer norm of each head, weights `[heads, head_dim]`, no biases (Command-R+)."""

    float32_parameters = True

    def __init__(self, heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, head_dim), requires_grad=False)
        self.plain = LayerNorm(head_dim, eps, weight=False, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.plain(x.float())
        return (normed * self.weight).to(x.dtype)


@architecture(
    "CohereForCausalLM",
    about="Command-R",
    examples=("CohereForAI/c4ai-command-r-v01",),
    gguf=GGUFFormat(
        "command-r", config=lambda shared, file: {"use_qk_norm": "blk.0.attn_q_norm.weight" in file.tensors}
    ),
)
def cohere(c: Config) -> CausalLM:
    width, heads, eps = c.hidden_size, c.num_attention_heads, c.layer_norm_eps
    kv_heads, head_dim = c.get("num_key_value_heads", heads), width // heads
    bias = c.attention_bias
    norm = partial(LayerNorm, width, eps, bias=False)
    turn = rotary(c, head_dim, interleaved=True)

    def attention() -> Attention:
        norms = HeadNorm(heads, head_dim, eps), HeadNorm(kv_heads, head_dim, eps)
        adjust = QKNorm(heads, kv_heads, *norms) if c.use_qk_norm else None
        return Attention(width, heads, kv_heads, head_dim, rotary=turn, bias=bias, out_bias=bias, adjust=adjust)

    mlp = partial(GatedMLP, width, c.intermediate_size, c.hidden_act)
    return CausalLM(
        embed=Embedding(c.vocab_size, width),
        layer=lambda i: SharedNorm(norm(), attention=attention(), mlp=mlp()),
        layers=c.num_hidden_layers,
        norm=norm(),
        head=None if c.tie_word_embeddings else Linear(width, c.vocab_size),
        names=NAMES,
        logit_scale=c.logit_scale,
    )
