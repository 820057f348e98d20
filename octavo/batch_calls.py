"""What calls for many prompts at once have in common: each prompt with its own adapter, values and output."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from tqdm import tqdm

from octavo.errors import InvalidRequestError
from octavo.lora import LoRARequest
from octavo.outputs import PoolingOutput, PoolingRequestOutput
from octavo.params import PoolingParams, RequestOutputKind, SamplingParams
from octavo.prompts import Prompt

Adapters = LoRARequest | Sequence[LoRARequest | None] | None
"""An adapter for all prompts, or one (or None) for each."""
Priorities = int | Sequence[int] | None
"""A priority for all prompts, or one for each."""
ShowsProgress = bool | Callable[..., Any]
"""Whether a progress bar is shown, or what makes one, as tqdm does."""


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


def each_priority(priority: Priorities, prompts: Sequence[Any]) -> Sequence[int]:
    """A priority for each prompt, of one for all or one each."""
    if priority is None or isinstance(priority, int):
        return [priority or 0] * len(prompts)
    same_length("priority", priority, prompts)
    return priority


NO_EFFECT = ("padding", "return_tensors", "return_attention_mask", "return_token_type_ids", "pad_to_multiple_of")
"""Arguments of a tokenizer's call that change how ids are laid out, not which they are."""
Params = TypeVar("Params", SamplingParams, PoolingParams, SamplingParams | PoolingParams)


def tokenized_so(prompt: Prompt, params: Params, options: Mapping[str, Any] | None) -> tuple[Prompt, Params]:
    """The prompt and values that say what `options` do of how a tokenizer is called: `tokenization_kwargs`.

    These are add_special_tokens, truncation with max_length, truncation_side, truncate_prompt_tokens, and arguments
    that change no ids. Raises InvalidRequestError for others.
    """
    if not options:
        return prompt, params
    left, said = dict(options), dict[str, Any]()
    for name in NO_EFFECT:
        left.pop(name, None)
    special = left.pop("add_special_tokens", True)
    is_cut, most, side = left.pop("truncation", None), left.pop("max_length", None), left.pop("truncation_side", None)
    most = left.pop("truncate_prompt_tokens", most if is_cut not in (None, False, "do_not_truncate") else None)
    if left:
        known = "add_special_tokens, truncation, max_length, truncation_side, truncate_prompt_tokens"
        raise InvalidRequestError(f"tokenization_kwargs: {next(iter(left))!r:.60} is not supported; there are {known}.")
    if most is not None:
        said["truncate_prompt_tokens"] = most
    if side is not None:
        said["truncation_side"] = side
    if said:
        params = replace(params, **said)
    if special is False and isinstance(prompt, str):
        prompt = {"prompt": prompt, "add_special_tokens": False}
    elif special is False and isinstance(prompt, dict):
        prompt = cast(Prompt, {**prompt, "add_special_tokens": False})
    return prompt, params


def with_media_settings(prompts: list[Prompt], settings: Mapping[str, Any] | None) -> list[Prompt]:
    """Prompts whose media are prepared with `settings` (`mm_processor_kwargs`), but those that have their own."""
    if not settings:
        return prompts
    return [
        cast(Prompt, {"mm_processor_kwargs": settings, **p})
        if isinstance(p, dict) and p.get("multi_modal_data") is not None
        else p
        for p in prompts
    ]


def progress(show: Any, **options: Any) -> Any:
    """A progress bar: tqdm's where `show` is true, or what `show` makes where it is a function."""
    return show(**options) if callable(show) else tqdm(disable=not show, dynamic_ncols=True, **options)


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
