"""ERNIE 4.5 MoE (Baidu 2025): rotary pairs that are neighbours, and experts whose bias chooses and does not weigh."""

from typing import Any

from octavo.architectures.balanced_experts import DENSE, SPARSE, by_layer, shared_experts
from octavo.architectures.decoder import attention, decoder, gated_mlp, rms_norm
from octavo.architectures.deepseek import DEEPSEEK_NAMES
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.hy_v3 import CHOICE_BIAS
from octavo.architectures.model_config import Config
from octavo.architectures.mtp import ERNIE, Published, beside
from octavo.architectures.registry import architecture
from octavo.ops import RouterSpec
from octavo.parts import CausalLM, PreNorm, parameter

ERNIE_NAMES = DEEPSEEK_NAMES.replacing(
    {
        "model.layers.{i}.mlp.moe_statics.e_score_correction_bias": parameter(CHOICE_BIAS, lambda b: b.flatten()),
    }
).leaving_out("model.mtp_")


def _ernie_from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    return {
        "use_bias": shared["attention_bias"],
        "moe_k": file.value("expert_used_count"),
        "moe_num_experts": file.value("expert_count"),
        "moe_num_shared_experts": file.value("expert_shared_count", 0),
        "moe_layer_start_index": file.value("leading_dense_block_count", 0),
        "moe_layer_end_index": -1,
        "moe_layer_interval": file.value("interleave_moe_layer_step", 1),
    }


@architecture(
    "Ernie4_5_MoeForCausalLM",
    "Ernie4_5_MoEForCausalLM",
    about="ERNIE 4.5 MoE",
    examples=("baidu/ERNIE-4.5-21B-A3B-PT", "baidu/ERNIE-4.5-300B-A47B-PT"),
    gguf=GGUFFormat("ernie4_5-moe", config=_ernie_from_gguf),
)
def ernie4_5_moe(c: Config) -> CausalLM:
    bias, first, end = c.use_bias, c.moe_layer_start_index, c.moe_layer_end_index
    last = c.num_hidden_layers - 1 if end == -1 else end
    is_sparse = [first <= i <= last and (i + 1) % c.moe_layer_interval == 0 for i in range(c.num_hidden_layers)]
    route = RouterSpec(c.moe_k, norm=1.0, min_norm=c.moe_norm_min, is_biased=True)
    sparse = shared_experts(
        c.replace(num_experts=c.moe_num_experts), lambda: route, c.get("moe_num_shared_experts", 0), bias
    )
    norm, mlp = rms_norm(c), by_layer(c, [SPARSE if each else DENSE for each in is_sparse], sparse, bias)
    attn = attention(c, bias=bias, out_bias=bias, interleaved=True)
    model = decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp[i]), ERNIE_NAMES, head_bias=bias)
    if not c.get("num_nextn_predict_layers"):
        return model

    def predictor() -> PreNorm:
        return PreNorm(norm, attn=attn(0), mlp=gated_mlp(c, bias)())

    return beside(model, c, norm, predictor, Published("model.mtp_", "model.mtp_block.0.", ERNIE), model.norm)
