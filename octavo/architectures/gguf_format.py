"""How llama.cpp stores an architecture, where that differs from the published checkpoint."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from octavo.architectures.model_config import Config
from octavo.parts import Into


class GGUFHeader(Protocol):
    """What a GGUF file says of itself."""

    @property
    def tensors(self) -> Mapping[str, Any]:
        """By llama.cpp's names."""
        ...

    def value(self, key: str, default: Any = None) -> Any:
        """Metadata of the file's own architecture: `value("block_count")` is `llama.block_count`."""
        ...

    def texts(self, key: str) -> list[str] | None:
        """A list of texts among them."""
        ...


@dataclass(frozen=True)
class Joined:
    """A published tensor that is several in a GGUF file."""

    parts: tuple[str, ...]
    """llama.cpp's names, with `{i}`."""
    join: Callable[..., Tensor]
    """The published tensor of these, in their order."""


@dataclass(frozen=True)
class GGUFFormat:
    """How llama.cpp stores an architecture.

    Args:
        arch: llama.cpp's `general.architecture`.
        config: config.json keys from the file's header, beside those that most models share (which it gets, already
            translated); a key of None takes a shared one away.
        names: entries of the name table that are other ones in a GGUF file: what it splits, or stores in another order.
            Their left sides are names that the `gguf` package knows, with `{e}` where llama.cpp stacks experts.
        undo: published names (of modules, or with `.weight`) to what makes the published tensor of llama.cpp's.
        joined: published names to llama.cpp's names of what makes such a tensor together, and what makes it of them;
            where a file has one of that name, or none of these, nothing is done.
        parameters: published names to keys of the header that have a number for each layer.
        spelled: parts of published names that the `gguf` package has otherwise.
        when: which files this architecture serves, where several share `arch`.
        also: other names of the architecture in files, whose texts are read alike.
        header: for writing: keys of the header from config.json, beside those of `octavo.loading.gguf_from_config`.
        section: of config.json, that has the language model's keys; empty where they are its own.
    """

    arch: str
    config: Callable[[dict[str, Any], GGUFHeader], dict[str, Any]] = lambda shared, file: {}
    names: Mapping[str, str | Into] = field(default_factory=dict)
    undo: Mapping[str, Callable[[Tensor, Config], Tensor]] = field(default_factory=dict)
    joined: Mapping[str, "Joined"] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    spelled: Mapping[str, str] = field(default_factory=dict)
    when: Callable[[GGUFHeader], bool] = lambda file: True
    also: tuple[str, ...] = ()
    header: Callable[[Config], dict[str, Any]] = lambda c: {}
    section: str = ""


SIGMOID = 2
"""llama.cpp's number of a router that scores each expert by itself (expert_gating_func)."""


def has(file: GGUFHeader, name: str) -> bool:
    """Whether some layer has a tensor of that name."""
    return any(stored.endswith(f".{name}") for stored in file.tensors)


def input_biases(file: GGUFHeader) -> dict[str, Any]:
    """attention_bias of models that have it on queries, keys and values."""
    return {"attention_bias": has(file, "attn_q.bias") or has(file, "attn_qkv.bias")}


def unpermute(weight: Tensor, c: Config) -> Tensor:
    """llama.cpp stores q and k with each head's pairs side by side; this puts them back in halves."""
    pairs = c.get("head_dim", c.hidden_size // c.num_attention_heads) // 2
    return weight.view(-1, pairs, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def log_of_negative(weight: Tensor, c: Config) -> Tensor:
    """The rates of decays are stored as what is added to a logarithm, some with a dimension more."""
    return torch.log(-weight).flatten()


def flat(tensor: Tensor, c: Config) -> Tensor:
    """Of parameters that are stored with a dimension more."""
    return tensor.flatten()


UNPERMUTE = {"model.layers.{i}.self_attn.{q|k}_proj": unpermute}


def minus_one(weight: Tensor, c: Config) -> Tensor:
    """Norm weights that are published around 0 are stored with the 1 already added."""
    return weight - 1.0


REDO: Mapping[Callable[[Tensor, Config], Tensor], Callable[[Tensor], Tensor]] = {minus_one: lambda weight: weight + 1.0}
"""What makes llama.cpp's tensor of the published one again, of changes that do more than move rows."""
