"""Apertus (Project Apertus 2025): Llama's body with norms of each head, and xIELU without a gate."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.architectures.decoder import NAMES, attention, decoder, head_norms, rms_norm
from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.ops import Backend
from octavo.parts import MLP, Batch, CausalLM, Linear, PreNorm, parameter
from octavo.parts.split import Split

PARAMETERS = ("alpha_p", "alpha_n", "beta", "eps")
ACTIVATION = "layers.{i}.mlp.activation."
APERTUS_NAMES = NAMES.replacing(
    {
        "model.layers.{i}.attention_layernorm": "layers.{i}.attn_norm",
        "model.layers.{i}.feedforward_layernorm": "layers.{i}.mlp_norm",
        "model.layers.{i}.mlp.{up|down}_proj": "layers.{i}.mlp.{up|down}",
        **{
            f"model.layers.{{i}}.mlp.act_fn.{name}": parameter(ACTIVATION + name, lambda t: t.reshape(1))
            for name in PARAMETERS
        },
    }
)


class XIELU(nn.Module):
    """xIELU with two learned numbers; beta and eps are 0.5 and -1e-6 where the checkpoint has none."""

    float32_parameters = True

    def __init__(self) -> None:
        super().__init__()
        for name in PARAMETERS:
            self.register_parameter(name, nn.Parameter(torch.empty(1), requires_grad=False))

    def prepare(self, backend: Backend) -> None:
        self._xielu = backend.xielu
        values: dict[str, Tensor] = {name: value.data.float() for name, value in self.named_parameters()}
        beta, eps = (values.get(name, values["alpha_p"].new_full((1,), usual)) for name, usual in USUAL.items())
        above, below = functional.softplus(values["alpha_p"]), beta + functional.softplus(values["alpha_n"])
        self._shape = torch.cat([above, below, beta, eps])

    def forward(self, x: Tensor) -> Tensor:
        return self._xielu(x, self._shape)


USUAL = {"beta": 0.5, "eps": -1e-6}


class XIELUMLP(nn.Module):
    """`down(xielu(up(x)))`."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.up, self.down = Linear(hidden_size, intermediate_size), Linear(intermediate_size, hidden_size)
        self.activation = XIELU()

    def split(self, split: Split) -> None:
        """See octavo.parts.split."""
        own = split.share(self.up.outputs)
        self.up.split_outputs(own)
        self.down.split_inputs(split, own)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self.down(self.activation(self.up(x, batch)), batch)  # type: ignore[no-any-return]


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 12000000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


@architecture(
    "ApertusForCausalLM",
    about="Apertus",
    examples=("swiss-ai/Apertus-8B-Instruct-2509",),
    gguf=GGUFFormat(
        "apertus",
        config=lambda shared, file: {"hidden_act": "xielu", "rope_parameters": {"rope_theta": shared["rope_theta"]}},
        parameters={f"model.layers.{{i}}.mlp.act_fn.{name}": f"xielu.{name}" for name in PARAMETERS},
    ),
)
def apertus(c: Config) -> CausalLM:
    if c.get("rope_parameters") is None and c.get("rope_scaling") is None:
        c = c.replace(rope_parameters=LLAMA3_ROPE)
    norm, bias, sizes = rms_norm(c), c.attention_bias, (c.hidden_size, c.intermediate_size)
    attn = attention(c, qk_transform=head_norms(c), bias=bias, out_bias=bias)
    mlp = partial(XIELUMLP, *sizes) if c.hidden_act == "xielu" else partial(MLP, *sizes, c.hidden_act)
    scalars = [f"layers.{i}.mlp.activation.{name}" for i in range(c.num_hidden_layers) for name in USUAL]
    return decoder(c, norm, lambda i: PreNorm(norm, attn=attn(i), mlp=mlp()), APERTUS_NAMES, optional=tuple(scalars))
