"""Llama's body with layer norms: Orion, OLMo, StableLM, Starcoder 2 and Nemotron."""

from functools import partial

import torch
from torch import Tensor, nn

from octavo.architectures.config import Config
from octavo.architectures.llama import ATTENTION_NAMES, IGNORED, MLP_NAMES, gated_mlp, llama_body
from octavo.architectures.registry import architecture
from octavo.ops import Kernels
from octavo.parts import MLP, CausalLM, Clip, LayerNorm, Names, QKNorm, Residual, SharedNorm


@architecture("OrionForCausalLM", about="Orion", examples=("OrionStarAI/Orion-14B-Base", "OrionStarAI/Orion-14B-Chat"))
def orion(c: Config) -> CausalLM:
    return llama_body(c, mlp=gated_mlp(c), norm=partial(LayerNorm, c.hidden_size, c.get("rms_norm_eps", 1e-5)))


@architecture(
    "OlmoForCausalLM", "OLMoForCausalLM", about="OLMo", examples=("allenai/OLMo-1B-hf", "allenai/OLMo-7B-hf")
)
def olmo(c: Config) -> CausalLM:
    """Norms without weights; queries, keys and values are clipped where the config says."""
    limit, bias = c.get("clip_qkv"), c.get("attention_bias", False)
    return llama_body(
        c,
        mlp=gated_mlp(c),
        norm=partial(LayerNorm, c.hidden_size, 1e-5, weight=False, bias=False),
        adjust=lambda: None if limit is None else Clip(limit),
        bias=bias,
        out_bias=bias,
    )


class NormEachHead(nn.Module):
    """A weight-only layer norm for each head of `[rows, heads, head_dim]` (StableLM 2 12B publishes them one by one)."""

    def __init__(self, heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm(head_dim, eps, bias=False) for _ in range(heads))
        self.plain = LayerNorm(head_dim, eps, weight=False, bias=False)

    def prepare(self, kernels: Kernels) -> None:
        self._weights = torch.stack([norm.weight.data for norm in self.norms])  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return (self.plain(x.float()) * self._weights).to(x.dtype)


STABLELM_NAMES = Names(
    {
        **ATTENTION_NAMES,
        **MLP_NAMES,
        "model.layers.{i}.self_attn.{q|k}_layernorm.norms.{h}": "layers.{i}.attention.inner.adjust.{q|k}.norms.{h}",
    },
    IGNORED,
    prefix="model.",
)
PARALLEL_STABLELM_NAMES = Names(
    {
        published: path.replace("attention.norm", "norm").replace(".inner", "")
        for published, path in STABLELM_NAMES.table.items()
        if isinstance(path, str) and not published.endswith("post_attention_layernorm")
    },
    IGNORED,
    prefix="model.",
)


@architecture(
    "StableLmForCausalLM",
    "StableLMEpochForCausalLM",
    about="StableLM",
    examples=("stabilityai/stablelm-3b-4e1t", "stabilityai/stablelm-2-12b"),
)
def stablelm(c: Config) -> CausalLM:
    heads, eps = c.num_attention_heads, c.first("layer_norm_eps", "norm_eps", default=1e-5)
    kv_heads, head_dim = c.get("num_key_value_heads", heads), c.hidden_size // heads

    def head_norms() -> QKNorm | None:
        if not c.get("qk_layernorm", False):
            return None
        return QKNorm(heads, kv_heads, NormEachHead(heads, head_dim, eps), NormEachHead(kv_heads, head_dim, eps))

    parallel = c.get("use_parallel_residual", False)
    wiring = {"layer": _behind_one_norm, "names": PARALLEL_STABLELM_NAMES} if parallel else {"names": STABLELM_NAMES}
    return llama_body(
        c,
        mlp=gated_mlp(c),
        norm=partial(LayerNorm, c.hidden_size, eps),
        turning=c.first("partial_rotary_factor", "rope_pct", default=0.25),
        adjust=head_norms,
        bias=c.get("use_qkv_bias", False),
        **wiring,
    )


def _behind_one_norm(attention: Residual, mlp: Residual) -> nn.Module:
    """Both pieces side by side behind the attention's norm."""
    return SharedNorm(attention.norm, attention=attention.inner, mlp=mlp.inner)


STARCODER2_NAMES = Names(
    {
        **ATTENTION_NAMES,
        "model.layers.{i}.mlp.c_fc": "layers.{i}.mlp.inner.up",
        "model.layers.{i}.mlp.c_proj": "layers.{i}.mlp.inner.down",
    },
    IGNORED,
    prefix="model.",
)


@architecture(
    "Starcoder2ForCausalLM",
    about="Starcoder 2",
    examples=("bigcode/starcoder2-3b", "bigcode/starcoder2-7b", "bigcode/starcoder2-15b"),
)
def starcoder2(c: Config) -> CausalLM:
    bias = c.get("use_bias", True)
    activation = c.get("hidden_act", "gelu_pytorch_tanh")
    return llama_body(
        c,
        mlp=partial(MLP, c.hidden_size, c.intermediate_size, activation, bias),
        names=STARCODER2_NAMES,
        norm=partial(LayerNorm, c.hidden_size, c.get("norm_epsilon", 1e-5)),
        window=lambda layer: c.get("sliding_window"),
        kv_heads=2,
        tied=True,
        bias=bias,
        out_bias=bias,
    )


NEMOTRON_NAMES = Names(
    {
        **ATTENTION_NAMES,
        "model.layers.{i}.mlp.up_proj": "layers.{i}.mlp.inner.up",
        "model.layers.{i}.mlp.down_proj": "layers.{i}.mlp.inner.down",
    },
    IGNORED,
    prefix="model.",
)


@architecture(
    "NemotronForCausalLM",
    about="Nemotron-3, Nemotron-4, Minitron",
    examples=("nvidia/Minitron-8B-Base", "mgoin/Nemotron-4-340B-Base-hf-FP8"),
)
def nemotron(c: Config) -> CausalLM:
    """Layer norms around 1, a squared relu, and rotary over half a head."""
    bias = c.get("attention_bias", False)
    activation = c.get("hidden_act", "relu2")
    return llama_body(
        c,
        mlp=partial(MLP, c.hidden_size, c.intermediate_size, activation, c.get("mlp_bias", False)),
        names=NEMOTRON_NAMES,
        norm=partial(LayerNorm, c.hidden_size, c.get("norm_eps", 1e-5), offset=1.0),
        turning=c.first("partial_rotary_factor", "rope_percent", default=0.5),
        bias=bias,
        out_bias=bias,
    )
