"""Classes of users that change the logits of a whole batch, by vLLM's protocol for them: who came, went and moved.

A sequence has a place in the batch from its first logits to its end, also in steps that leave it out. Places stay
dense: the last one moves to where another has ended.
"""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeVar

import torch
from torch import Tensor

from octavo.config import EngineArgs
from octavo.errors import ConfigError, failure
from octavo.executor.sampling_state import SamplingState
from octavo.loading.engine_config import VllmConfig
from octavo.loading.model_info import ModelInfo
from octavo.ops import Backend
from octavo.params import LogitsProcessor as RequestProcessor
from octavo.params import SamplingParams
from octavo.processor_classes import load_class

T = TypeVar("T")


class MoveDirectionality(Enum):
    """How two places of a batch change."""

    UNIDIRECTIONAL = auto()
    """What is at the first goes to the second, whose sequence has ended."""
    SWAP = auto()


AddedRequest = tuple[int, SamplingParams, list[int] | None, list[int]]
"""Place, values, the prompt's tokens and the answer's: that list grows as tokens come."""
MovedRequest = tuple[int, int, MoveDirectionality]


@dataclass(frozen=True)
class BatchUpdate:
    """What has changed in a batch. To be taken in this order: removed, added, moved.

    Args:
        batch_size: places of the batch from now on.
        removed: places whose sequence has ended, and that no other takes.
        added: sequences that are new, at places that are new or were another's.
        moved: sequences that are at another place from now on.
    """

    batch_size: int
    removed: Sequence[int]
    added: Sequence[AddedRequest]
    moved: Sequence[MovedRequest]


class LogitsProcessor(ABC):
    """Changes the logits of a whole batch. LLM's option `logits_processors` takes classes of this kind."""

    @classmethod  # noqa: B027
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises ValueError for values of a request that it cannot follow."""

    @abstractmethod
    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None: ...

    @abstractmethod
    def apply(self, logits: Tensor) -> Tensor:
        """New logits for those of the batch, `[places, vocab]`, which may be changed in place."""

    @abstractmethod
    def is_argmax_invariant(self) -> bool:
        """Whether the likeliest token of a place always stays the likeliest: then it may be left out if it alone
        counts."""

    @abstractmethod
    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Called before each `apply`, with what has changed in the batch; None if nothing has."""


def process_dict_updates(
    req_entries: dict[int, T],
    batch_update: BatchUpdate | None,
    new_state: Callable[[SamplingParams, list[int] | None, list[int]], T | None],
) -> bool:
    """Bring what is kept by place up to date; whether anything has changed.

    Args:
        req_entries: what is kept, for those places that have something.
        batch_update: what has changed.
        new_state: what is kept of a new sequence, by its values, prompt and answer; None for nothing.
    """
    if batch_update is None:
        return False
    before = dict(req_entries)
    for place in batch_update.removed:
        req_entries.pop(place, None)
    for place, params, prompt, answer in batch_update.added:
        req_entries.pop(place, None)
        if (state := new_state(params, prompt, answer)) is not None:
            req_entries[place] = state
    for first, second, direction in batch_update.moved:
        one, other = req_entries.pop(first, None), req_entries.pop(second, None)
        if one is not None:
            req_entries[second] = one
        if other is not None and direction is MoveDirectionality.SWAP:
            req_entries[first] = other
    return before.keys() != req_entries.keys() or any(before[k] is not v for k, v in req_entries.items())


class AdapterLogitsProcessor(LogitsProcessor):
    """Makes of functions for one request, `new_req_logits_processor`, a processor of batches."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.req_info: dict[int, functools.partial[Tensor]] = {}
        """By place, each request's function with its tokens."""

    @abstractmethod
    def new_req_logits_processor(self, params: SamplingParams) -> RequestProcessor | None:
        """The function of a request, f(answer, logits) or f(prompt, answer, logits); None where it has none."""

    def _new_state(
        self, params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]
    ) -> functools.partial[Tensor] | None:
        function = self.new_req_logits_processor(params)
        if function is None:
            return None
        takes_prompt = len(inspect.signature(function).parameters) == 3
        return functools.partial(function, *([prompt_ids, output_ids] if takes_prompt else [output_ids]))

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.req_info, batch_update, self._new_state)

    def apply(self, logits: Tensor) -> Tensor:
        for place, function in self.req_info.items():
            row = logits[place]
            if (made := function(row)) is not row:
                logits[place] = made
        return logits


class BatchLogits:
    """The processors of an engine, and who is at which place of their batch.

    Args:
        classes: what they are made of.
        config: what they are told of the engine.
        device: where logits are.

    Raises whatever a processor raises when it is made.
    """

    def __init__(self, classes: Sequence[type[Any]], config: VllmConfig, device: torch.device) -> None:
        self._processors: list[Any] = [cls(config, device, device.type == "cuda") for cls in classes]
        self._places: list[SamplingState] = []
        self._place_of: dict[SamplingState, int] = {}

    def update(self, states: Sequence[SamplingState]) -> BatchUpdate | None:
        """Take in who is new among `states`, and who has ended; what has changed."""
        free = [place for place, state in enumerate(self._places) if state.ended]
        for place in free:
            del self._place_of[self._places[place]]
        added, moved = list[AddedRequest](), list[MovedRequest]()
        for state in states:
            if state in self._place_of:
                continue
            place = free.pop(0) if free else len(self._places)
            if place == len(self._places):
                self._places.append(state)
            self._places[place], self._place_of[state] = state, place
            added.append((place, state.params, state.prompt_token_ids, state.output_token_ids))
        removed = list[int]()
        while free:
            last = len(self._places) - 1
            if last in free:
                free.remove(last)
                removed.append(last)
            else:
                hole = free.pop(0)
                self._places[hole] = self._places[last]
                self._place_of[self._places[hole]] = hole
                moved.append((last, hole, MoveDirectionality.UNIDIRECTIONAL))
            self._places.pop()
        return BatchUpdate(len(self._places), removed, added, moved) if removed or added or moved else None

    def apply(self, logits: Tensor, states: Sequence[SamplingState]) -> str | None:
        """Change the logits `[rows, vocab]` of `states` in place; what went wrong, if anything has.

        Processors that keep the likeliest token are applied to logits that are divided by the temperature, and left
        out where all rows take the likeliest token, as in vLLM.
        """
        change = self.update(states)
        rows = torch.tensor([self._place_of[state] for state in states], device=logits.device)
        any_drawn = not all(state.params.greedy for state in states)
        name = ""
        try:
            for processor in self._processors:
                name = type(processor).__name__
                processor.update_state(change)
            for processor in self._processors:
                name = type(processor).__name__
                keeps_likeliest = bool(processor.is_argmax_invariant())
                if keeps_likeliest and not any_drawn:
                    continue
                heat = _temperatures(states, logits) if keeps_likeliest else None
                given = logits if heat is None else logits / heat
                batch = given.new_zeros(len(self._places), given.shape[1])
                batch[rows] = given
                made = processor.apply(batch)
                if not isinstance(made, Tensor) or made.shape != batch.shape:
                    raise TypeError(f"apply must return a tensor of shape {list(batch.shape)}")
                made = made[rows]
                # What it left as it was keeps its very bits.
                logits.copy_(made if heat is None else torch.where(made == given, logits, made * heat))
        except BaseException as error:  # a stranger's code
            return f"logits processor {name} failed: {failure(error)}"
        return None


def batch_logits(args: EngineArgs, info: ModelInfo, backend: Backend, num_blocks: int) -> BatchLogits | None:
    """The processors that `args` names; None for none, and where no tokens are chosen.

    Raises ConfigError for a model that chooses none, and for processors that cannot be made.
    """
    if not args.logits_processors or not backend.place.is_output:
        return None
    if info.task != "generate":
        raise ConfigError(f"logits_processors: task={info.task!r} chooses no tokens. Leave them out.")
    config = VllmConfig.of(args, info, num_blocks, device=backend.device)
    classes = [load_class(one) for one in args.logits_processors]
    try:
        return BatchLogits(classes, config, backend.device)
    except Exception as error:  # a stranger's code
        raise ConfigError(f"logits_processors could not be made: {failure(error)}") from error


def _temperatures(states: Sequence[SamplingState], logits: Tensor) -> Tensor:
    """Each row's temperature `[rows, 1]`, 1 for rows that take the likeliest token."""
    values = [1.0 if state.params.greedy else float(state.params.temperature) for state in states]
    return torch.tensor(values, device=logits.device).unsqueeze(1)
