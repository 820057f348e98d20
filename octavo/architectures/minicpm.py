"""MiniCPM (Hu et al. 2024): Llama's body with scaled embeddings, residuals and logits; also MoE and fatrelu."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from octavo.architectures.decoder import NAMES, attention, decoder, gated_mlp, moe, rms_norm
from octavo.architectures.gguf_format import UNPERMUTE, GGUFFormat, GGUFHeader
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.ops import Gate
from octavo.parts import CausalLM, Embedding, GatedMLP, PreNorm, softmax_then_topk

EXPERTS = "layers.{i}.mlp.experts.{e}"
MINICPM_NAMES = NAMES.replacing(
    {
        "model.layers.{i}.mlp.experts.{e}.{w1|w3}": EXPERTS + ".gate_up.{gate|up}",
        "model.layers.{i}.mlp.experts.{e}.w2": EXPERTS + ".down",
    }
)


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    # Older files leave the multipliers out, which are then those of the 2B model.
    depth = shared["num_hidden_layers"] ** 0.5
    logit_scale = file.value("logit_scale")
    return {
        "scale_emb": file.value("embedding_scale", 12.0),
        "scale_depth": file.value("residual_scale", 1.4 / depth) * depth,
        "dim_model_base": shared["hidden_size"] / logit_scale if logit_scale else 256,
    }


@architecture(
    "MiniCPMForCausalLM",
    about="MiniCPM",
    examples=("openbmb/MiniCPM-2B-sft-bf16", "openbmb/MiniCPM-2B-dpo-bf16", "openbmb/MiniCPM-S-1B-sft"),
    gguf=GGUFFormat("minicpm", config=_from_gguf, undo=UNPERMUTE),
)
def minicpm(c: Config) -> CausalLM:
    hidden_size, intermediate_size, count = c.hidden_size, c.intermediate_size, c.num_experts
    mlp: Callable[[], nn.Module] = gated_mlp(c)
    if count:
        expert = partial(GatedMLP, hidden_size, intermediate_size, "silu")
        mlp = moe(c, expert, count, softmax_then_topk(c.num_experts_per_tok))
    elif c.hidden_act == "fatrelu":
        mlp = partial(GatedMLP, hidden_size, intermediate_size, Gate(None, threshold=c.hidden_act_param))
    norm, bias, scale = rms_norm(c), c.attention_bias, c.scale_depth / c.num_hidden_layers**0.5
    attn = attention(c, bias=bias, out_bias=bias)
    return decoder(
        c,
        norm,
        lambda i: PreNorm(norm, attn=attn(i), mlp=mlp(), scale=scale),
        MINICPM_NAMES,
        embed=Embedding(c.vocab_size, hidden_size, c.scale_emb),
        logit_scale=c.get("dim_model_base", hidden_size) / hidden_size,
        tied_if_absent="tie_word_embeddings" not in c,
    )
