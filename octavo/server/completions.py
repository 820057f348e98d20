"""/v1/completions"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from octavo.client.output_processor import Chunk, TokenEntry
from octavo.errors import InvalidRequestError
from octavo.server.body import JSONRoute
from octavo.server.event_stream import event_response, json_response, while_connected
from octavo.server.logprobs import LogprobsWriter, prompt_texts
from octavo.server.protocol import CompletionRequest
from octavo.server.request_defaults import fill_in
from octavo.server.served_models import ServedModel
from octavo.server.service import Run, Service
from octavo.text.fill_in import between
from octavo.text.token_text import TokenText

DEFAULT_TOKENS = 16


def prompts_of(value: str | list[Any]) -> list[Any]:
    """One prompt or many, as text or token ids. Raises InvalidRequestError for none."""
    if isinstance(value, str):
        return [value]
    if not value:
        raise InvalidRequestError("the prompt is empty.")
    if isinstance(value[0], int):
        return [{"prompt_token_ids": value}]
    return [v if isinstance(v, str) else {"prompt_token_ids": v} for v in value]


def with_options(prompt: Any, request: CompletionRequest) -> dict[str, Any]:
    """A prompt with what the request says of it."""
    given = prompt if isinstance(prompt, dict) else {"prompt": prompt}
    return {**given, "cache_salt": request.cache_salt, "add_special_tokens": request.add_special_tokens}


class Completions:
    """One request of /v1/completions: a Run for each of its prompts."""

    def __init__(self, service: Service, request: CompletionRequest, model: ServedModel) -> None:
        fill_in(request, service.options)
        self.service, self.request, self.model = service, request, model
        self.options = request.streams
        self.id, self.created = service.new_id("cmpl"), int(time.time())
        self.writer = LogprobsWriter(service.tokenizer, bool(request.return_tokens_as_token_ids))
        self.runs: list[Run] = []
        self.prompts: list[list[TokenText]] = []
        """Of each run, what its prompt's tokens have of the text, where the prompt is to be in the answer."""

    async def prepare(self) -> None:
        """Check everything before anything runs. Raises InvalidRequestError."""
        request, service = self.request, self.service
        max_tokens = request.given().get("max_tokens", DEFAULT_TOKENS)
        only_prompt = max_tokens == 0 and bool(request.echo)  # the usual way to ask for a prompt's log-probabilities
        params = request.sampling_params(
            service.recommended, max_tokens=1 if only_prompt else max_tokens, logprobs=request.logprobs
        )
        service.check_max_tokens(params.max_tokens)
        if request.best_of is not None and request.best_of != params.n:
            raise InvalidRequestError("best_of is not supported over HTTP; use n.")
        if request.echo and request.logprobs is not None:
            params.prompt_logprobs = request.logprobs
        self.only_prompt = only_prompt
        prompts = prompts_of(request.prompt)
        if request.suffix:
            prompts = [self._before_suffix(prompt, request.suffix) for prompt in prompts]
        service.admission.admit(len(prompts), params.n)
        checked = await service.check_all([with_options(p, request) for p in prompts], params, self.model.adapter)
        self.runs = [Run(f"{self.id}-{i}", prompt, params) for i, prompt in enumerate(checked)]
        for prompt in checked:
            texts = list[TokenText]()
            if request.echo:
                size = len(prompt.token_ids)
                texts = await service.threads.run(
                    size, prompt_texts, service.tokenizer, prompt.text, prompt.token_ids, params
                )
            self.prompts.append(texts)

    def _before_suffix(self, prompt: Any, suffix: str) -> str:
        """A prompt that asks for what stands between it and another text."""
        if not isinstance(prompt, str) or self.service.tokenizer is None:
            raise InvalidRequestError("suffix needs prompts that are texts, and a server with a tokenizer.")
        if self.request.echo:
            raise InvalidRequestError("suffix and echo exclude each other: the answer stands between the two texts.")
        return between(self.service.tokenizer, prompt, suffix)

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model.name,
            "choices": choices,
        }

    def usage(self) -> dict[str, Any]:
        each = [run.usage() for run in self.runs]
        generated = 0 if self.only_prompt else sum(u["completion_tokens"] for u in each)
        prompt = sum(u["prompt_tokens"] for u in each)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": sum(run.num_cached for run in self.runs)},
        }

    def _echoed(self, prompt: list[TokenText]) -> str:
        return "".join(part.text for part in prompt)

    def _echoed_entries(self, run: Run, prompt: list[TokenText]) -> list[TokenEntry]:
        places = run.prompt_logprobs or [None] * len(prompt)
        return [TokenEntry(*of) for of in zip(run.prompt.token_ids, prompt, places, strict=False)]

    def _about_prompt(self, run: Run) -> dict[str, Any]:
        """What the request asks to be told of a prompt."""
        told = dict[str, Any]()
        if "prompt_logprobs" in self.request.given():
            told["prompt_logprobs"] = self.writer.prompt(run.prompt_logprobs)
        if self.request.return_token_ids:
            told["prompt_token_ids"] = run.prompt.token_ids
        return told

    def _ids(self, token_ids: list[int]) -> list[int] | None:
        return token_ids if self.request.return_token_ids else None

    async def whole(self) -> dict[str, Any]:
        priority = self.request.priority or 0
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.service.whole(run, priority)) for run in self.runs]
        choices = list[dict[str, Any]]()
        for run, prompt, task in zip(self.runs, self.prompts, tasks, strict=True):
            for answer in task.result():
                choices.append(self._choice(len(choices), run, prompt, answer))
        return {**self.chunk(choices), "usage": self.usage()}

    def _choice(self, index: int, run: Run, prompt: list[TokenText], answer: Chunk) -> dict[str, Any]:
        logprobs = None
        if self.only_prompt:
            answer = Chunk(answer.index, "", [], finish_reason="length")
        if self.request.logprobs is not None:
            entries = self._echoed_entries(run, prompt) + answer.entries
            logprobs, _ = self.writer.completion(entries, 0)
        return {
            "index": index,
            "text": self._echoed(prompt) + answer.text,
            "logprobs": logprobs,
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
            "token_ids": self._ids(answer.token_ids),
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            **self._about_prompt(run),
        }

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a stream: those of all prompts as they come."""
        merged = self._merged() if len(self.runs) > 1 else self._follow(self.runs[0], self.prompts[0], 0)
        async with contextlib.aclosing(merged) as chunks:
            async for chunk in chunks:
                yield chunk
        if self.options.include_usage:
            yield {**self.chunk([]), "usage": self.usage()}

    async def _merged(self) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of several prompts, each followed by a task of its own."""
        queue: asyncio.Queue[dict[str, Any] | BaseException | None] = asyncio.Queue(maxsize=64)

        async def follow(run: Run, prompt: list[TokenText], first_index: int) -> None:
            try:
                async for chunk in self._follow(run, prompt, first_index):
                    await queue.put(chunk)
                await queue.put(None)
            except Exception as error:
                await queue.put(error)

        count = self.runs[0].params.n
        pairs = enumerate(zip(self.runs, self.prompts, strict=True))
        tasks = [asyncio.create_task(follow(run, prompt, i * count)) for i, (run, prompt) in pairs]
        try:
            left = len(tasks)
            while left:
                item = await queue.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(
        self, run: Run, prompt: list[TokenText], first_index: int
    ) -> AsyncGenerator[dict[str, Any], None]:
        offsets = dict[int, int]()
        async with contextlib.aclosing(self.service.generate(run, self.request.priority or 0)) as pieces:
            async for piece in pieces:
                text, entries, first = piece.text, piece.entries, piece.index not in offsets
                ids = self._ids(piece.token_ids)
                if self.only_prompt:
                    text, entries, ids = "", [], None
                if first:
                    text, entries = self._echoed(prompt) + text, self._echoed_entries(run, prompt) + entries
                logprobs, offset = None, offsets.setdefault(piece.index, 0)
                if self.request.logprobs is not None:
                    logprobs, offsets[piece.index] = self.writer.completion(entries, offset)
                if text or piece.finish_reason or entries or ids:
                    choice = {
                        "index": first_index + piece.index,
                        "text": text,
                        "logprobs": logprobs,
                        "finish_reason": "length" if self.only_prompt else piece.finish_reason,
                        "stop_reason": piece.stop_reason,
                        **({} if ids is None else {"token_ids": ids}),
                        **(self._about_prompt(run) if first else {}),
                    }
                    usage = {"usage": self.usage()} if self.options.continuous_usage_stats else {}
                    yield {**self.chunk([choice]), **usage}


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=JSONRoute)

    @routes.post("/v1/completions", summary="Continue a text")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        work = Completions(service, body, service.accept(body, "generate"))
        await work.prepare()
        if body.stream:
            return await event_response(request, work.events())
        return json_response(await while_connected(request, work.whole()))

    return routes
