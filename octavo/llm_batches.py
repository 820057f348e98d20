"""Calls of an LLM for many prompts at once: what they share, how they wait, and what is done when one fails."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octavo.batch_calls import (
    Adapters,
    Priorities,
    ShowsProgress,
    each_adapter,
    each_priority,
    final_only,
    progress,
    prompt_list,
    same_length,
    tokenized_so,
    with_media_settings,
)
from octavo.client.engine_client import KnownEngine
from octavo.client.local_client import LocalRequests
from octavo.engine.messages import Failed
from octavo.errors import ConfigError, InvalidRequestError, RequestFailedError
from octavo.llm_control import LLMControl
from octavo.lora import LoRARequest
from octavo.outputs import RequestOutput
from octavo.params import PoolingParams, SamplingParams
from octavo.prompts import Prompt

AnyParams = SamplingParams | PoolingParams


@dataclass(frozen=True)
class Call:
    """Prompts, each with its own values, adapter and priority."""

    prompts: Sequence[Prompt]
    params: Sequence[AnyParams]
    adapters: Sequence[LoRARequest | None]
    priorities: Sequence[int]


class LLMBatches(LLMControl):
    """The part of an LLM that queues prompts and waits for them."""

    engine: KnownEngine
    requests: LocalRequests

    def _begin_calls(self) -> None:
        self._ids = itertools.count()
        self._enqueued: list[str] = []
        """What `wait_for_completion` waits for, in order."""
        self._early: dict[str, Any] = {}
        """What came of these while another call waited."""

    def _call(
        self,
        prompts: Any,
        params: AnyParams | Sequence[AnyParams],
        adapters: Adapters = None,
        priority: Priorities = None,
        tokenization: dict[str, Any] | None = None,
        media: dict[str, Any] | None = None,
    ) -> Call:
        """Prompts with what is theirs. Raises InvalidRequestError where there are not as many values as prompts.

        Args:
            tokenization, media: settings of the tokenizer, and of the media processor.
        """
        batch = with_media_settings(prompt_list(prompts), media)
        each = [params] * len(batch) if isinstance(params, AnyParams) else list(params)
        same_length("sampling_params" if isinstance(params, SamplingParams) else "params", each, batch)
        pairs = [tokenized_so(prompt, own, tokenization) for prompt, own in zip(batch, each, strict=True)]
        return Call(
            [prompt for prompt, _ in pairs],
            [final_only(own) if isinstance(own, SamplingParams) else own for _, own in pairs],
            each_adapter(adapters, batch),
            each_priority(priority, batch),
        )

    def _params_list(
        self, params: SamplingParams | Sequence[SamplingParams] | None
    ) -> SamplingParams | Sequence[SamplingParams]:
        return self.get_default_sampling_params() if params is None else params

    def _run(self, call: Call, use_tqdm: ShowsProgress, label: str) -> list[Any]:
        """The outputs of a call's prompts, in order. Nothing of a call that fails is left behind in the engine."""
        if self.llm_engine.is_sleeping():
            raise ConfigError("the engine sleeps; call wake_up() first.")
        ids = self._add(call)
        try:
            return self._finish(ids, use_tqdm, label)
        except BaseException:
            self.requests.abort(ids)
            raise

    def _add(self, call: Call) -> list[str]:
        """Queue a call's prompts: all, or none and an error that says which is at fault."""
        ids = list[str]()
        try:
            for i, prompt in enumerate(call.prompts):
                ids.append(str(next(self._ids)))
                try:
                    self.requests.add(ids[-1], prompt, call.params[i], call.priorities[i], call.adapters[i])
                except InvalidRequestError as error:
                    where = f"prompt {i}: " if len(call.prompts) > 1 else ""
                    raise InvalidRequestError(f"{where}{error}") from error
        except BaseException:
            self.requests.abort(ids)
            raise
        return ids

    def _enqueue(self, call: Call) -> list[str]:
        ids = self._add(call)
        self._enqueued += ids
        return ids

    def wait_for_completion(
        self, output_type: type[Any] | tuple[type[Any], ...] | None = None, *, use_tqdm: ShowsProgress = True
    ) -> list[Any]:
        """The outputs of all that `enqueue` has queued, in that order. Raises if one fails; then all are ended.

        `output_type`: which kinds of outputs are expected; a TypeError if there is another.
        """
        if self.llm_engine.is_sleeping():
            raise ConfigError("the engine sleeps; call wake_up() first.")
        ids, self._enqueued = self._enqueued, []
        try:
            outputs = self._finish(ids, use_tqdm, "Processed prompts")
        except BaseException:
            self.requests.abort(ids)
            self._early.clear()
            raise
        for output in outputs if output_type is not None else ():
            if not isinstance(output, output_type):  # type: ignore[arg-type]
                raise TypeError(f"an output is a {type(output).__name__}, not of {output_type}.")
        return outputs

    def _finish(self, ids: list[str], use_tqdm: ShowsProgress, label: str) -> list[Any]:
        """The outputs of requests, in order; what comes of others that are enqueued is kept."""
        bar = progress(use_tqdm, total=len(ids), desc=label, unit="request")
        done: dict[str, Any] = {}
        wanted, read, written = set(ids), 0, 0
        came: list[Any] = [self._early.pop(i) for i in ids if i in self._early]
        while True:
            for output in came:
                if output.request_id not in wanted:
                    if isinstance(output, Failed) or output.finished:
                        self._early[output.request_id] = output
                    continue
                if isinstance(output, Failed):
                    where = f"prompt {ids.index(output.request_id)}: " if len(ids) > 1 else ""
                    raise output.exception(where)
                if not output.finished:
                    continue
                done[output.request_id] = output
                read += len(output.prompt_token_ids or [])
                if isinstance(output, RequestOutput):
                    written += sum(len(c.token_ids) for c in output.outputs)
                _advance(bar, read, written)
            if len(done) == len(ids):
                break
            if not self.requests.has_work:
                raise RequestFailedError(f"{len(ids) - len(done)} of {len(ids)} requests were aborted meanwhile.")
            came = self.requests.step()
        bar.close()
        return [done[i] for i in ids]


def _advance(bar: Any, read: int, written: int) -> None:
    """One request more is done; so many tokens were read and written in all."""
    elapsed = getattr(bar, "format_dict", {}).get("elapsed") or 1e-9
    if not getattr(bar, "disable", False):
        bar.set_postfix_str(f"in {read / elapsed:.0f} tok/s, out {written / elapsed:.0f} tok/s", refresh=False)
    bar.update(1)
