"""MiMo-V2-Flash (Xiaomi 2025): values narrower than keys, sinks and more key heads on sliding layers."""

from functools import partial
from typing import Any

from torch import Tensor

from octavo.architectures.balanced_experts import DENSE, SPARSE, by_layer, shared_experts, sigmoid_route
from octavo.architectures.decoder import NAMES, attention, decoder, gated_mlp, rms_norm, without_more_layers
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.model_config import Config
from octavo.architectures.mtp import MIMO, Published, beside
from octavo.architectures.registry import architecture
from octavo.architectures.rope_settings import FULL, SLIDING, layer_types
from octavo.parts import Attention, Batch, CausalLM, PreNorm, parameter

MIMO_NAMES = NAMES.replacing(
    {"model.layers.{i}.self_attn.attention_sink_bias": parameter("layers.{i}.attn.sinks")}
).leaving_out("model.mtp.")
SHARE = 0.334
"""Of a head, that rotates where nothing says how much."""


class ScaledValues(Attention):
    """Attention over values times a factor."""

    def __init__(self, *sizes: int, factor: float, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.factor = factor

    def attend(self, qkv: Tensor, batch: Batch) -> Tensor:
        return self._backend.scale(super().attend(qkv, batch), self.factor)


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    types: list[str] = shared["layer_types"]
    bases = {FULL: shared["rope_theta"], SLIDING: file.value("rope.freq_base_swa", 10000.0)}
    share = {"rope_type": "default", "partial_rotary_factor": shared["partial_rotary_factor"]}
    sparse = [f"blk.{i}.ffn_gate_inp.weight" in file.tensors for i in range(len(types))]
    return {
        "num_key_value_heads": shared["num_key_value_heads"][types.index(FULL)],
        "v_head_dim": file.value("attention.value_length"),
        "attention_value_scale": file.value("attention.value_scale", 1.0),
        "rope_parameters": {kind: {**share, "rope_theta": bases[kind]} for kind in sorted(set(types))},
        "mlp_layer_types": [SPARSE if each else DENSE for each in sparse],
        "routed_scaling_factor": shared.get("routed_scaling_factor") or 1.0,
    }


@architecture(
    "MiMoV2FlashForCausalLM",
    about="MiMo-V2-Flash",
    examples=("XiaomiMiMo/MiMo-V2-Flash",),
    gguf=GGUFFormat("mimo2", config=_from_gguf),
)
def mimo_v2_flash(c: Config) -> CausalLM:
    count = c.num_hidden_layers
    types = layer_types(c, [SLIDING if i and (i + 1) % 6 else FULL for i in range(count)])
    if c.get("rope_parameters") is None:
        bases = {FULL: 5_000_000.0, SLIDING: 10_000.0}
        c = c.replace(
            rope_parameters={
                kind: {"rope_type": "default", "rope_theta": bases[kind], "partial_rotary_factor": SHARE}
                for kind in sorted(set(types))
            }
        )
    others = c.get("sliding_window_size")  # as the published file has it: keys beside the query's own
    window = c.sliding_window if others is None else others + 1
    options = {
        "window": [window if kind == SLIDING else None for kind in types],
        "part": partial(ScaledValues, factor=c.get("attention_value_scale", 1.0)),
        "value_dim": c.v_head_dim,
        "bias": c.attention_bias,
    }
    full = attention(c, **options)
    sliding = attention(c.replace(num_key_value_heads=2 * c.num_key_value_heads), has_sinks=True, **options)
    attn = {FULL: full, SLIDING: sliding}
    route = partial(sigmoid_route, c, c.get("routed_scaling_factor", 1.0), c.norm_topk_prob, by_groups=True)
    norm = rms_norm(c)
    mlp = by_layer(c, c.get("mlp_layer_types", [DENSE, *[SPARSE] * (count - 1)]), shared_experts(c, route, 0))
    names = without_more_layers(c, MIMO_NAMES)
    model = decoder(c, norm, lambda i: PreNorm(norm, attn=attn[types[i]](i), mlp=mlp[i]), names)
    if SLIDING not in types:
        return model
    slides, begins = types.index(SLIDING), "model.mtp.layers.0."

    def predictor() -> PreNorm:
        return PreNorm(norm, attn=sliding(slides), mlp=gated_mlp(c)())

    own = {begins + name: path for name, path in MIMO.items()}
    renamed = {"post_attention_layernorm": "pre_mlp_layernorm"}
    return beside(model, c, norm, predictor, Published("model.mtp.", begins, own, renamed))
