"""An adapter's files: where they lie, its adapter_config.json, and its tensors."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from octavo.errors import CheckpointError, InvalidRequestError, shorten
from octavo.files import read_json
from octavo.loading.adapter_paths import TENSORS
from octavo.loading.formats.plain import safetensors_tensors
from octavo.loading.pickled import pickled_tensors
from octavo.lora import CONFIG, AdapterRef
from octavo.option_types import is_finite

KINDS = ("LORA",)
REPEATED, REPEATED_GROUP, MOST_REPEATED = r"(?<!\\)[*+{]", r"\)\s*[*+{]", 3
"""What makes a regular expression slow: what may repeat within what repeats, or beside much else that does."""
UNSUPPORTED = (
    "use_qalora",
    "arrow_config",
    "alora_invocation_tokens",
    "layer_replication",
    "kasa_config",
    "use_bdlora",
    "monteclora_config",
)
"""Settings with which a LoRA computes something else."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""What init_lora_weights begins with where PEFT changes the base's own weights when it reads the adapter."""


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says of a LoRA that its tensors do not say themselves."""

    lora_alpha: float = 8.0
    use_rslora: bool = False
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """By a regular expression that ends a module's name."""
    target_parameters: tuple[str, ...] = ()
    """Parameters that stack one weight for each expert."""
    trainable_token_indices: tuple[int, ...] | Mapping[str, tuple[int, ...]] = ()
    """Of the token table, or by the name of a module."""
    old_stacks: bool = False
    """Whether matrices of target_parameters are in the order that PEFT had before 0.19."""

    def scale(self, module: str, rank: int) -> float:
        """What `b @ a` of a module is multiplied with."""
        alpha = self.lora_alpha
        for pattern, value in self.alpha_pattern.items():
            if _ends(pattern, module):
                alpha = value
                break
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def tokens(self, module: str) -> tuple[int, ...]:
        """The ids of a token table's rows that are trained."""
        ids = self.trainable_token_indices
        if isinstance(ids, tuple):
            return ids
        of_one = next(iter(ids.values())) if len(ids) == 1 else ()  # a head's, that is tied to the table
        return ids.get(module.rpartition(".")[2], ids.get(module, of_one))


def _ends(pattern: str, module: str) -> bool:
    if pattern == module or module.endswith("." + pattern):
        return True
    if len(pattern) > 1000 or re.search(REPEATED_GROUP, pattern) or len(re.findall(REPEATED, pattern)) > MOST_REPEATED:
        raise InvalidRequestError(
            f"{CONFIG}: alpha_pattern has {shorten(pattern, 80)!r}, which may take very long to look for. Write it "
            f"without repeated groups, and with {MOST_REPEATED} repetitions at most; or name the modules."
        )
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error as error:
        raise InvalidRequestError(f"{CONFIG}: alpha_pattern has {shorten(pattern, 80)!r}: {error}.") from error


def read_config(folder: Path) -> AdapterConfig:
    """adapter_config.json. Raises InvalidRequestError for adapters of another kind than LoRA, and for values that no
    adapter has."""
    try:
        values = read_json(folder / CONFIG)
    except CheckpointError as error:
        raise InvalidRequestError(str(error)) from error
    kind = values.get("peft_type")
    if not isinstance(kind, str) or kind.upper() not in KINDS:
        raise InvalidRequestError(
            f"{CONFIG}: peft_type is {shorten(kind, 40)!r}, and LORA is what can be used. Merge this adapter into its "
            "checkpoint (merge_and_unload), or train a LoRA."
        )
    for key in UNSUPPORTED:
        if values.get(key):
            raise InvalidRequestError(f"{CONFIG}: {key} is not supported. Merge this adapter into its checkpoint.")
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise InvalidRequestError(
            f"{CONFIG}: init_lora_weights is {shorten(start, 40)!r}, whose matrices are for a base with other weights. "
            "Save it by save_pretrained(..., path_initial_model_for_weight_conversion=...), which makes a LoRA of it."
        )
    alpha = _number(values.get("lora_alpha", 8), "lora_alpha")
    patterns = values.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise InvalidRequestError(f"{CONFIG}: alpha_pattern must name a number for each pattern.")
    return AdapterConfig(
        alpha,
        bool(values.get("use_rslora")),
        {str(k): _number(v, f"alpha_pattern {k!r:.80}") for k, v in patterns.items()},
        tuple(str(name) for name in values.get("target_parameters") or ()),
        _token_ids(values.get("trainable_token_indices")),
        _is_before(values.get("peft_version"), (0, 19)),
    )


def _is_before(version: Any, first: tuple[int, int]) -> bool:
    """Whether PEFT's version is older; files have one since 0.18."""
    numbers = re.match(r"(\d{1,9})\.(\d{1,9})", version) if isinstance(version, str) else None
    return numbers is None or (int(numbers[1]), int(numbers[2])) < first


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not is_finite(value):
        raise InvalidRequestError(f"{CONFIG}: {name} is {shorten(value, 40)!r}, and must be a number.")
    return float(value)


def _token_ids(value: Any) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
    if not value:
        return ()
    if isinstance(value, dict):
        return {str(name): cast(tuple[int, ...], _token_ids(ids)) for name, ids in value.items()}
    if not isinstance(value, list) or not all(type(i) is int and i >= 0 for i in value):
        raise InvalidRequestError(f"{CONFIG}: trainable_token_indices must be a list of token ids.")
    return tuple(value)


def read_tensors(folder: Path, ref: AdapterRef, most_bytes: int) -> dict[str, Tensor]:
    """An adapter's tensors by the names in its file, in float32.

    Raises InvalidRequestError for a damaged file, and for more than `most_bytes`.
    """
    found = next((folder / name for name in TENSORS if (folder / name).is_file()), None)
    if found is None:
        raise InvalidRequestError(
            f"the adapter {ref.name!r} has no weights: there is neither {' nor '.join(TENSORS)} in "
            f"{shorten(folder, 200)}. Download it as a whole."
        )
    tensors = dict[str, Tensor]()
    read = safetensors_tensors if found.suffix == ".safetensors" else pickled_tensors
    try:
        sources = dict(read(found))
        if 4 * sum(math.prod(source.shape) for source in sources.values()) > most_bytes:
            raise InvalidRequestError(f"{found} is larger than the model; it is no adapter.")
        for name, source in sources.items():
            tensors[name] = source.read().to(torch.float32)
    except CheckpointError as error:
        raise InvalidRequestError(f"the adapter {ref.name!r}: {error}") from error
    return tensors
