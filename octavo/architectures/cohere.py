"""Command-R (Cohere 2024): attention and feed-forward side by side behind one norm, pairs of rotary as neighbours."""

from functools import partial

import torch
from torch import Tensor, nn

from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.llama import ATTENTION_NAMES, IGNORED, MLP_NAMES
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope import make_rope
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
    | {"model.layers.{i}.self_attn.{q|k}_norm": "layers.{i}.attention.qk_transform.{q|k}"},
    IGNORED,
    prefix="model.",
)


class HeadNorm(nn.Module):
    """A layer norm of each head, weights `[heads, head_dim]`, no biases (Command-R+)."""

    float32_parameters = True

    def __init__(self, num_heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, head_dim), requires_grad=False)
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
    hidden_size, num_heads, eps = c.hidden_size, c.num_attention_heads, c.layer_norm_eps
    num_kv_heads, head_dim = c.get("num_key_value_heads", num_heads), hidden_size // num_heads
    bias = c.attention_bias
    norm = partial(LayerNorm, hidden_size, eps, bias=False)
    rope = make_rope(c, head_dim, interleaved=True)

    def attention() -> Attention:
        norms = HeadNorm(num_heads, head_dim, eps), HeadNorm(num_kv_heads, head_dim, eps)
        qk_transform = QKNorm(num_heads, num_kv_heads, *norms) if c.use_qk_norm else None
        return Attention(
            hidden_size,
            num_heads,
            num_kv_heads,
            head_dim,
            rope=rope,
            bias=bias,
            out_bias=bias,
            qk_transform=qk_transform,
        )

    mlp = partial(GatedMLP, hidden_size, c.intermediate_size, c.hidden_act)
    return CausalLM(
        embed=Embedding(c.vocab_size, hidden_size),
        layer=lambda i: SharedNorm(norm(), attention=attention(), mlp=mlp()),
        layers=c.num_hidden_layers,
        norm=norm(),
        head=None if c.tie_word_embeddings else Linear(hidden_size, c.vocab_size),
        names=NAMES,
        logit_scale=c.logit_scale,
    )
