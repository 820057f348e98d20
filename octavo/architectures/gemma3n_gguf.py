"""How llama.cpp stores Gemma 3n's text."""

from functools import partial
from statistics import NormalDist
from typing import Any

from torch import Tensor

from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader, Joined, has

WITH_KEYS = 20
"""Layers that have keys of their own, in files that do not say it."""
STREAMS = 4
"""As all that are published have."""


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    layers, sparsity = shared["num_hidden_layers"], file.value("activation_sparsity_scale")
    made = {
        "altup_num_inputs": file.value("altup.num_inputs", STREAMS),
        "altup_active_idx": file.value("altup.active_idx", 0),
        "altup_correct_scale": has(file, "altup_correct_scale.weight"),
        "laurel_rank": file.tensors["blk.0.laurel_l.weight"].shape[0],
        "hidden_size_per_layer_input": file.value("embedding_length_per_layer_input"),
        "vocab_size_per_layer_input": file.tensors["per_layer_token_embd.weight"].shape[0],
        "num_kv_shared_layers": file.value("attention.shared_kv_layers", max(0, layers - WITH_KEYS)),
        "rope_local_base_freq": file.value("rope.freq_base_swa", 10000.0),
        "hidden_activation": "gelu_pytorch_tanh",
    }
    if isinstance(sparsity, list):  # in standard deviations
        made["activation_sparsity_pattern"] = [round(NormalDist().cdf(each), 6) for each in sparsity]
    return made


def _stream(stack: Tensor, number: int) -> Tensor:
    return stack[number]


GEMMA3N_FORMAT = GGUFFormat(
    "gemma3n",
    config=_from_gguf,
    joined={
        f"model.altup_{kind}projections.{n}.weight": Joined((f"altup_{short}proj.weight",), partial(_stream, number=n))
        for kind, short in (("", ""), ("unembed_", "unembd_"))
        for n in range(STREAMS - 1)
    },
)
