"""Granite 4.0 (IBM 2025): Granite's multipliers around Mamba-2 layers, a few of attention, experts and a shared one."""

from functools import partial
from typing import Any

from torch import nn

from octavo.architectures.decoder import NAMES, attention, decoder, rms_norm
from octavo.architectures.deepseek import MoEWithShared
from octavo.architectures.gguf_format import UNPERMUTE, GGUFFormat, GGUFHeader
from octavo.architectures.granite import GGUF_NAMES, granite_from_gguf
from octavo.architectures.mamba2 import layer_kinds, mamba2_mixer, mamba_from_gguf, mamba_sizes, mixer_names, mixer_undo
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import CausalLM, Embedding, GatedMLP, Into, Linear, PreNorm, softmax_then_topk, stacked

MLP = "layers.{i}.mlp"
HYBRID_NAMES = NAMES.replacing(
    {
        **mixer_names("model.layers.{i}.mamba", "layers.{i}.attn"),
        "model.layers.{i}.block_sparse_moe.router.layer": MLP + ".router",
        "model.layers.{i}.block_sparse_moe.input_linear": stacked(MLP + ".experts.{e}.gate_up"),
        "model.layers.{i}.block_sparse_moe.output_linear": stacked(MLP + ".experts.{e}.down"),
    }
)


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    """Layers without key heads are mixers. Bamba's files are such too."""
    counts = shared["num_key_value_heads"]
    counts = counts if isinstance(counts, list) else [counts] * shared["num_hidden_layers"]
    made = granite_from_gguf(shared, file)
    return {
        **made,
        **(mamba_from_gguf(file) if 0 in counts else {}),
        "mamba_expand": file.value("ssm.inner_size", 0) / shared["hidden_size"] or 2,
        "layer_types": ["full_attention" if count else "linear_attention" for count in counts],
        "num_key_value_heads": max(counts),
        "num_local_experts": file.value("expert_count", 0),
        "shared_intermediate_size": made["shared_intermediate_size"] or shared["intermediate_size"],
        "position_embedding_type": "rope" if file.value("rope.scaling.finetuned", True) else "nope",
    }


DENSE: dict[str, str | Into] = {
    "model.layers.{i}.mlp.{gate|up}_proj": MLP + ".gate_up.{gate|up}",
    "model.layers.{i}.mlp.down_proj": MLP + ".down",
}


@architecture(
    "GraniteMoeHybridForCausalLM",
    about="Granite 4.0",
    examples=("ibm-granite/granite-4.0-h-tiny", "ibm-granite/granite-4.0-h-small", "ibm-granite/granite-4.0-micro"),
    gguf=GGUFFormat(
        "granitehybrid",
        config=_from_gguf,
        names={**DENSE, **GGUF_NAMES},
        undo={**UNPERMUTE, **mixer_undo("model.layers.{i}.mamba")},
    ),
)
def granite_hybrid(c: Config) -> CausalLM:
    norm, count = rms_norm(c), c.get("num_local_experts", 0)
    kinds = layer_kinds(c.get("layer_types", ["linear_attention"] * c.num_hidden_layers))
    rope: dict[str, Any] = {} if c.get("position_embedding_type") == "rope" else {"rope": None}
    bias = c.attention_bias
    attn = attention(c, bias=bias, out_bias=bias, scale=c.attention_multiplier, **rope)
    sizes = mamba_sizes(c, int(c.mamba_expand * c.hidden_size))
    mixer_options = {"activation": c.hidden_act, "bias": c.mamba_proj_bias, "conv_bias": c.mamba_conv_bias}
    mixer = partial(mamba2_mixer, c, sizes, c.rms_norm_eps, **mixer_options)
    gated = partial(GatedMLP, c.hidden_size, activation=c.hidden_act)

    def mlp() -> nn.Module:
        shared = gated(c.shared_intermediate_size)
        if not count:
            return shared
        router = Linear(c.hidden_size, count, exact=True)
        experts = [gated(c.intermediate_size) for _ in range(count)]
        return MoEWithShared(router, experts, softmax_then_topk(c.num_experts_per_tok), shared)

    def layer(i: int) -> PreNorm:
        piece = mixer() if kinds[i] == "linear_attention" else attn(i)
        return PreNorm(norm, attn=piece, mlp=mlp(), scale=c.residual_multiplier)

    shared = MLP + ".shared" if count else MLP
    names = HYBRID_NAMES.replacing(
        {
            "model.layers.{i}.shared_mlp.input_linear": shared + ".gate_up",
            "model.layers.{i}.shared_mlp.output_linear": shared + ".down",
        }
    )
    embed = Embedding(c.vocab_size, c.hidden_size, c.embedding_multiplier)
    return decoder(c, norm, layer, names, embed=embed, logit_scale=1.0 / c.logits_scaling)
