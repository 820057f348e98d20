"""Bamba (IBM, Princeton, CMU and UIUC 2024): Mamba-2 layers, a few of attention, and a feed-forward in each."""

from functools import partial

from octavo.architectures.decoder import NAMES, attention, decoder, gated_mlp, rms_norm
from octavo.architectures.mamba2 import mamba2_mixer, mamba_sizes, mixer_names
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import CausalLM, PreNorm

BAMBA_NAMES = NAMES.replacing(
    {
        **mixer_names("model.layers.{i}.mamba", "layers.{i}.attn"),
        "model.layers.{i}.pre_ff_layernorm": "layers.{i}.mlp_norm",
        "model.layers.{i}.feed_forward.{gate|up}_proj": "layers.{i}.mlp.gate_up.{gate|up}",
        "model.layers.{i}.feed_forward.down_proj": "layers.{i}.mlp.down",
        "model.final_layernorm": "norm",
    }
)


@architecture(
    "BambaForCausalLM",
    about="Bamba",
    examples=("ibm-ai-platform/Bamba-9B-v2", "ibm-fms/Bamba-9B"),
    read_as="granitehybrid",
)
def bamba(c: Config) -> CausalLM:
    norm, mlp = rms_norm(c), gated_mlp(c, c.mlp_bias)
    attention_at: list[int] = c.get("attn_layer_indices", [])
    # Half of each head rotates, whatever the config says: the reference overwrites it.
    parameters = {**c.get("rope_parameters", {}), "partial_rotary_factor": 0.5} if "rope_parameters" in c else None
    rotating = c.replace(partial_rotary_factor=0.5, rope_parameters=parameters)
    attn = attention(rotating, bias=c.attention_bias, out_bias=c.attention_bias)
    sizes = mamba_sizes(c, int(c.mamba_expand * c.hidden_size))
    options = {"activation": c.hidden_act, "bias": c.mamba_proj_bias, "conv_bias": c.mamba_conv_bias}
    mixer = partial(mamba2_mixer, c, sizes, c.rms_norm_eps, **options)
    return decoder(
        c, norm, lambda i: PreNorm(norm, attn=attn(i) if i in attention_at else mixer(), mlp=mlp()), BAMBA_NAMES
    )
