"""Baichuan and Baichuan2 (Yang et al. 2023): Llama's body with fused q, k, v; the 13B models have ALiBi for rotary."""

from typing import Any

from torch import Tensor
from torch.nn import functional

from octavo.architectures.decoder import NAMES, attention, decoder, gated_mlp, rms_norm
from octavo.architectures.gguf_format import UNPERMUTE, GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import CausalLM, Into, PreNorm, alibi_slopes

BAICHUAN2_VOCABULARY = 125696
LAYERS_OF_13B = 40


def unit_rows(weight: Tensor) -> Tensor:
    """Baichuan2's head: rows of length one."""
    return functional.normalize(weight.float(), dim=-1).to(weight.dtype)


BAICHUAN_NAMES = NAMES.replacing({"model.layers.{i}.self_attn.W_pack": "layers.{i}.attn.qkv"})
NORMED_HEAD_NAMES = BAICHUAN_NAMES.replacing({"lm_head": Into("head", unit_rows)})


@architecture(
    "BaichuanForCausalLM",
    about="Baichuan2, Baichuan-13B",
    examples=("baichuan-inc/Baichuan2-13B-Chat", "baichuan-inc/Baichuan2-7B-Base"),
    gguf=GGUFFormat(
        "baichuan",
        # 13B is told by its depth, as llama.cpp does.
        config=lambda shared, file: (
            {"max_position_embeddings": None, "model_max_length": shared["max_position_embeddings"]}
            if shared["num_hidden_layers"] == LAYERS_OF_13B
            else {}
        ),
        names={"model.layers.{i}.self_attn.{q|k|v}_proj": "layers.{i}.attn.qkv.{q|k|v}"},
        undo=UNPERMUTE,
    ),
)
@architecture("BaiChuanForCausalLM", about="Baichuan-7B", examples=("baichuan-inc/Baichuan-7B",), read_as="baichuan")
def baichuan(c: Config) -> CausalLM:
    """The kinds are told apart by config keys: 13B has no max_position_embeddings, Baichuan2 has its vocabulary."""
    alibi = c.values.get("max_position_embeddings") is None and c.get("architectures", [""])[0] == "BaichuanForCausalLM"
    second = "z_loss_weight" in c or c.vocab_size == BAICHUAN2_VOCABULARY
    positions: dict[str, Any] = {"rope": None, "alibi": alibi_slopes(c.num_attention_heads)} if alibi else {}
    norm, attn, mlp = rms_norm(c), attention(c, **positions), gated_mlp(c)
    names = NORMED_HEAD_NAMES if second else BAICHUAN_NAMES
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()), names)
