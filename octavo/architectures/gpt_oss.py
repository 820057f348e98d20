"""gpt-oss (OpenAI 2025): attention with sinks, windows on every second layer, experts with biases and clamped gates."""

from functools import partial
from typing import Any

from torch import Tensor

from octavo.architectures.decoder import NAMES, attention, decoder, rms_norm
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_settings import FULL, SLIDING, layer_types
from octavo.errors import UnsupportedModelError
from octavo.ops import Gate
from octavo.parts import CausalLM, GatedMLP, Linear, MoE, PreNorm, parameter, softmax_then_topk, stacked

YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""What a config that says nothing of it means."""
EXPERT, PUBLISHED = "layers.{i}.mlp.experts.{e}.", "model.layers.{i}.mlp.experts."


def _gates_first(stack: Tensor) -> Tensor:
    """`[experts, (inputs,) outputs]`, gates and ups in turn, to gates, then ups, as weights `[outputs, inputs]`."""
    outputs_first = stack.transpose(1, -1)
    pairs = outputs_first.reshape(len(stack), -1, 2, *outputs_first.shape[2:])
    return pairs.transpose(1, 2).reshape(outputs_first.shape)


GPT_OSS_NAMES = NAMES.replacing(
    {
        "model.layers.{i}.self_attn.sinks": parameter("layers.{i}.attn.sinks"),
        "model.layers.{i}.mlp.router": "layers.{i}.mlp.router",
        PUBLISHED + "gate_up_proj": stacked(EXPERT + "gate_up.weight", _gates_first, full_name=True),
        PUBLISHED + "gate_up_proj_bias": stacked(EXPERT + "gate_up.bias", _gates_first, full_name=True),
        PUBLISHED + "down_proj": stacked(EXPERT + "down.weight", lambda w: w.transpose(1, 2), full_name=True),
        PUBLISHED + "down_proj_bias": stacked(EXPERT + "down.bias", full_name=True),
    }
)


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    size, scaling = file.value("expert_feed_forward_length"), shared.get("rope_scaling")
    return {"intermediate_size": size, "rope_scaling": {**YARN, **scaling} if scaling else None}


@architecture(
    "GptOssForCausalLM",
    about="gpt-oss",
    examples=("openai/gpt-oss-20b", "openai/gpt-oss-120b"),
    gguf=GGUFFormat("gpt-oss", config=_from_gguf),
)
def gpt_oss(c: Config) -> CausalLM:
    if (alpha := c.get("swiglu_alpha", 1.702)) != 1.702:
        raise UnsupportedModelError(f"config.json: swiglu_alpha {alpha:g} is not supported; gates are those of 1.702.")
    if c.get("rope_scaling") is None and c.get("rope_parameters") is None:
        c = c.replace(rope_scaling=YARN)
    types = layer_types(c, [FULL if i % 2 else SLIDING for i in range(c.num_hidden_layers)])
    windows = [c.get("sliding_window") if kind == SLIDING else None for kind in types]
    norm, bias, count = rms_norm(c), c.attention_bias, c.num_local_experts
    attn = attention(c, window=windows, bias=bias, out_bias=bias, has_sinks=True)
    gate = Gate("quick_gelu", limit=c.swiglu_limit, up_offset=1.0)
    expert = partial(GatedMLP, c.hidden_size, c.intermediate_size, gate, bias=True)
    route = softmax_then_topk(c.num_experts_per_tok)  # the same as a softmax over the chosen ones' logits

    def mlp() -> MoE:
        return MoE(Linear(c.hidden_size, count, bias=True, exact=True), [expert() for _ in range(count)], route)

    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()), GPT_OSS_NAMES)
