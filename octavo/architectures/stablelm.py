"""StableLM (Bellagente et al. 2024): Llama's body with layer norms, rope on a quarter of each head."""

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from octavo.architectures.decoder import NAMES, attention, decoder, gated_mlp
from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.ops import NormSpec
from octavo.parts import CausalLM, LayerNorm, Norm, PreNorm, QKNorm, SharedNorm
from octavo.parts.split import Range


class NormEachHead(Norm):
    """A layer norm for each head of `[rows, heads, head_dim]`, published one by one (StableLM 2 12B)."""

    def __init__(self, num_heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm(head_dim, eps, bias=False) for _ in range(num_heads))
        self.eps = eps
        self.heads = (0, num_heads)
        """Numbers of those that this rank has."""

    def split_heads(self, heads: Range) -> None:
        self.heads = heads

    @property
    def adapted_slots(self) -> set[int]:
        return {slot for norm in self.norms for slot in cast(Norm, norm).adapted_slots}

    def spec(self, slot: int | None = None) -> NormSpec:
        each = [cast(Norm, norm).spec(slot).weight for norm in self.norms[slice(*self.heads)]]
        return NormSpec("layer", torch.stack([cast(Tensor, weight) for weight in each]), None, self.eps)


STABLELM_NAMES = NAMES.replacing(
    {"model.layers.{i}.self_attn.{q|k}_layernorm.norms.{h}": "layers.{i}.attn.qk_transform.{q|k}.norms.{h}"}
)


@architecture(
    "StableLmForCausalLM",
    "StableLMEpochForCausalLM",
    about="StableLM",
    examples=("stabilityai/stablelm-3b-4e1t", "stabilityai/stablelm-2-12b"),
    gguf=GGUFFormat(
        "stablelm",
        config=lambda shared, file: {
            "use_parallel_residual": "blk.0.ffn_norm.weight" not in file.tensors,
            "use_qkv_bias": "blk.0.attn_q.bias" in file.tensors,
            "qk_layernorm": "blk.0.attn_q_norm.weight" in file.tensors,
        },
        names={"model.layers.{i}.self_attn.{q|k}_layernorm.{e}": "layers.{i}.attn.qk_transform.{q|k}.norms.{e}"},
    ),
)
def stablelm(c: Config) -> CausalLM:
    num_heads, eps = c.num_attention_heads, c.first("layer_norm_eps", "norm_eps")
    num_kv_heads, head_dim = c.get("num_key_value_heads", num_heads), c.hidden_size // num_heads

    def head_norms() -> QKNorm | None:
        if not c.qk_layernorm:
            return None
        return QKNorm(NormEachHead(num_heads, head_dim, eps), NormEachHead(num_kv_heads, head_dim, eps))

    norm, mlp = partial(LayerNorm, c.hidden_size, eps), gated_mlp(c)
    attn = attention(c, qk_transform=head_norms, bias=c.use_qkv_bias)
    wiring = SharedNorm if c.use_parallel_residual else PreNorm
    return decoder(c, norm, lambda i: wiring(norm, attn=attn(i), mlp=mlp()), STABLELM_NAMES)
