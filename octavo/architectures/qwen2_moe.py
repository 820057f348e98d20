"""Qwen2-MoE (Qwen Team 2024): Qwen2's body with many experts, and one that every token shares behind a gate."""

from functools import partial

import torch
from torch import Tensor, nn

from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.llama import ATTENTION_NAMES, IGNORED, MLP_NAMES, llama_body
from octavo.architectures.model_config import Config
from octavo.architectures.qwen2 import windows
from octavo.architectures.registry import architecture
from octavo.parts import Batch, CausalLM, GatedMLP, Linear, MoE, Names, softmax_then_topk

NAMES = Names(
    {
        **ATTENTION_NAMES,
        **MLP_NAMES,
        "model.layers.{i}.mlp.gate": "layers.{i}.mlp.inner.routed.router",
        "model.layers.{i}.mlp.experts.{e}.{gate|up}_proj": "layers.{i}.mlp.inner.routed.experts.{e}.gate_up.{gate|up}",
        "model.layers.{i}.mlp.experts.{e}.down_proj": "layers.{i}.mlp.inner.routed.experts.{e}.down",
        "model.layers.{i}.mlp.shared_expert.{gate|up}_proj": "layers.{i}.mlp.inner.shared.gate_up.{gate|up}",
        "model.layers.{i}.mlp.shared_expert.down_proj": "layers.{i}.mlp.inner.shared.down",
        "model.layers.{i}.mlp.shared_expert_gate": "layers.{i}.mlp.inner.gate",
    },
    IGNORED,
    prefix="model.",
)


class SharedExpertMoE(nn.Module):
    """`routed(x) + sigmoid(gate(x)) * shared(x)`."""

    def __init__(self, hidden_size: int, routed: MoE, shared: GatedMLP) -> None:
        super().__init__()
        self.routed, self.shared = routed, shared
        self.gate = Linear(hidden_size, 1, exact=True)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        weight = 1.0 / (torch.exp(-self.gate(x).float()) + 1.0)
        return self.routed(x, batch) + (self.shared(x, batch) * weight).to(x.dtype)  # type: ignore[no-any-return]


@architecture(
    "Qwen2MoeForCausalLM",
    about="Qwen1.5-MoE, Qwen2-MoE",
    examples=("Qwen/Qwen1.5-MoE-A2.7B", "Qwen/Qwen1.5-MoE-A2.7B-Chat"),
    gguf=GGUFFormat("qwen2moe"),
)
def qwen2_moe(c: Config) -> CausalLM:
    hidden_size, activation = c.hidden_size, c.hidden_act
    dense = partial(GatedMLP, hidden_size, c.intermediate_size, activation)
    expert = partial(GatedMLP, hidden_size, c.moe_intermediate_size, activation)
    shared = partial(GatedMLP, hidden_size, c.shared_expert_intermediate_size, activation)
    route = softmax_then_topk(c.num_experts_per_tok, c.norm_topk_prob)
    count, every = c.num_experts, c.decoder_sparse_step
    plain: list[int] = c.get("mlp_only_layers", [])

    def mlp(layer: int) -> nn.Module:
        if layer in plain or count == 0 or (layer + 1) % every:
            return dense()
        return SharedExpertMoE(hidden_size, MoE(hidden_size, [expert() for _ in range(count)], route), shared())

    slides = windows(c, lambda layer: layer % 2 == 0 and layer < c.max_window_layers)
    return llama_body(c, mlp=mlp, names=NAMES, bias=c.qkv_bias, window=slides.__getitem__)
