"""What calls for many prompts at once have in common: each prompt with its own adapter, values and output."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from octavo.errors import InvalidRequestError
from octavo.lora import LoRARequest
from octavo.outputs import PoolingOutput, PoolingRequestOutput
from octavo.params import PoolingParams, RequestOutputKind, SamplingParams
from octavo.prompts import Prompt

Adapters = LoRARequest | Sequence[LoRARequest | None] | None
"""An adapter for all prompts, or one (or None) for each."""


def each_adapter(adapters: Adapters, prompts: Sequence[Prompt]) -> Sequence[LoRARequest | None]:
    """An adapter, or None, for each prompt."""
    if adapters is None or isinstance(adapters, LoRARequest):
        return [adapters] * len(prompts)
    if not isinstance(adapters, Sequence):
        raise InvalidRequestError(f"lora_request is a LoRARequest or a list of them, not {type(adapters).__name__}.")
    same_length("lora_request", adapters, prompts)
    return adapters


def same_length(name: str, values: Sequence[Any], prompts: Sequence[Any]) -> None:
    if len(values) != len(prompts):
        raise InvalidRequestError(f"there are {len(prompts)} prompts but {len(values)} {name}; give one each.")


def with_value(
    params: PoolingParams | Sequence[PoolingParams] | None, **value: str | None
) -> PoolingParams | Sequence[PoolingParams] | None:
    """Parameters with one more value, if it is given."""
    if None in value.values():
        return params
    if isinstance(params, Sequence):
        return [replace(each, **value) for each in params]  # type: ignore[arg-type]
    return replace(params or PoolingParams(), **value)  # type: ignore[arg-type]


def as_tensor(output: PoolingRequestOutput[PoolingOutput]) -> PoolingRequestOutput[PoolingOutput]:
    """The output with its data as a tensor instead of a numpy array."""
    output.outputs.data = torch.from_numpy(output.outputs.data.copy())
    return output


def final_only(params: SamplingParams) -> SamplingParams:
    params = params.clone()
    params.output_kind = RequestOutputKind.FINAL_ONLY
    return params


def prompt_list(prompts: Any) -> list[Prompt]:
    """One prompt or many as a list: a list of ints is one prompt."""
    if prompts is None:
        raise InvalidRequestError("no prompts were given.")
    if isinstance(prompts, (str, dict)):
        return [cast(Prompt, prompts)]
    if isinstance(prompts, Iterable):
        batch = list(prompts)
        if batch and isinstance(batch[0], int):
            return [cast(Prompt, batch)]
        return batch
    raise InvalidRequestError(
        f"prompts must be text, token ids, dicts, or a list of them, not {type(prompts).__name__}."
    )
