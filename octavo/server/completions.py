"""/v1/completions"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from octavo.errors import InvalidRequestError
from octavo.outputs import TokenLogprobs
from octavo.server.protocol import CompletionRequest
from octavo.server.service import Answer, Run, Service
from octavo.server.streaming import event_response, json_response, while_connected

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


def salted(prompt: Any, salt: str | None) -> Any:
    if not salt:
        return prompt
    return {**(prompt if isinstance(prompt, dict) else {"prompt": prompt}), "cache_salt": salt}


class Logprobs:
    """OpenAI's lists of log-probabilities for completions, over what has come so far."""

    def __init__(self, service: Service, count: int) -> None:
        self.service, self.count, self._offset = service, count, 0

    def describe(self, token_ids: list[int], entries: list[TokenLogprobs | None]) -> dict[str, Any]:
        out: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, of_token in zip(token_ids, entries, strict=True):
            text = self._text(token, of_token)
            out["tokens"].append(text)
            out["text_offset"].append(self._offset)
            self._offset += len(text)
            if of_token is None:
                out["token_logprobs"].append(None)
                out["top_logprobs"].append(None)
                continue
            best = sorted(of_token.values(), key=lambda e: e.rank or 0)[: max(1, self.count)]
            out["token_logprobs"].append(of_token[token].logprob)
            out["top_logprobs"].append({e.decoded_token or "": e.logprob for e in best})
        return out

    def _text(self, token: int, entries: TokenLogprobs | None) -> str:
        if entries is not None:
            return entries[token].decoded_token or ""
        tokenizer = self.service.tokenizer
        return "" if tokenizer is None else tokenizer.decode([token], skip_special_tokens=False)


class Completions:
    """One request of /v1/completions: a Run for each of its prompts."""

    def __init__(self, service: Service, request: CompletionRequest) -> None:
        self.service, self.request = service, request
        self.id, self.created = service.new_id("cmpl"), int(time.time())
        self.runs: list[Run] = []

    async def prepare(self) -> None:
        """Check everything before anything runs. Raises InvalidRequestError."""
        request, service = self.request, self.service
        if request.suffix:
            raise InvalidRequestError("suffix is not served: models complete at the end of the prompt.")
        max_tokens = DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens
        only_prompt = max_tokens == 0 and bool(request.echo)  # the usual way to ask for a prompt's log-probabilities
        params = request.sampling_params(service.defaults, 1 if only_prompt else max_tokens, request.logprobs)
        if request.best_of is not None and request.best_of != params.n:
            raise InvalidRequestError("best_of is not served over HTTP; ask for n answers.")
        if request.echo and request.logprobs is not None:
            params.prompt_logprobs = request.logprobs
        self.only_prompt = only_prompt
        prompts = prompts_of(request.prompt)
        service.admit(len(prompts))
        for i, prompt in enumerate(prompts):
            checked = await service.check(salted(prompt, request.cache_salt), params)
            self.runs.append(Run(f"{self.id}-{i}", checked, params))

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.service.model_name,
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

    def echoed(self, run: Run) -> str:
        """The prompt's text, where it is asked for."""
        if not self.request.echo:
            return ""
        if run.prompt.text is not None:
            return run.prompt.text
        tokenizer = self.service.tokenizer
        return "" if tokenizer is None else tokenizer.decode(run.prompt.token_ids)

    async def whole(self) -> dict[str, Any]:
        priority = self.request.priority or 0
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.service.whole(run, priority)) for run in self.runs]
        choices = list[dict[str, Any]]()
        for run, task in zip(self.runs, tasks, strict=True):
            for answer in task.result():
                choices.append(self._choice(len(choices), run, answer))
        return {**self.chunk(choices), "usage": self.usage()}

    def _choice(self, index: int, run: Run, answer: Answer) -> dict[str, Any]:
        logprobs = None
        if self.only_prompt:
            answer = Answer(finish_reason="length")
        if self.request.logprobs is not None:
            tokens, entries = list(answer.token_ids), list[TokenLogprobs | None](answer.logprobs)
            if self.request.echo:
                tokens = run.prompt.token_ids + tokens
                entries = (run.prompt_logprobs or [None] * len(run.prompt.token_ids)) + entries
            logprobs = Logprobs(self.service, self.request.logprobs).describe(tokens, entries)
        return {
            "index": index,
            "text": self.echoed(run) + answer.text,
            "logprobs": logprobs,
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
            **({"prompt_logprobs": _as_json(run.prompt_logprobs)} if self.request.prompt_logprobs is not None else {}),
        }

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a stream: those of all prompts as they come."""
        queue: asyncio.Queue[dict[str, Any] | BaseException | None] = asyncio.Queue(maxsize=64)

        async def follow(run: Run, first_index: int) -> None:
            try:
                async for chunk in self._follow(run, first_index):
                    await queue.put(chunk)
                await queue.put(None)
            except Exception as error:
                await queue.put(error)

        count = self.runs[0].params.n
        tasks = [asyncio.create_task(follow(run, i * count)) for i, run in enumerate(self.runs)]
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
        options = self.request.stream_options
        if options is not None and options.include_usage:
            yield {**self.chunk([]), "usage": self.usage()}

    async def _follow(self, run: Run, first_index: int) -> AsyncGenerator[dict[str, Any], None]:
        described: dict[int, Logprobs] = {}
        wanted, started = self.request.logprobs, set[int]()
        async with contextlib.aclosing(self.service.generate(run, self.request.priority or 0)) as pieces:
            async for piece in pieces:
                text, tokens = piece.text, list(piece.token_ids)
                entries: list[TokenLogprobs | None] = list(piece.logprobs or [])
                if self.only_prompt:
                    text, tokens, entries = "", [], []
                if piece.index not in started:
                    started.add(piece.index)
                    text = self.echoed(run) + text
                    if self.request.echo and wanted is not None:
                        tokens = run.prompt.token_ids + tokens
                        entries = (run.prompt_logprobs or [None] * len(run.prompt.token_ids)) + entries
                logprobs = None
                if wanted is not None:
                    describer = described.setdefault(piece.index, Logprobs(self.service, wanted))
                    logprobs = describer.describe(tokens, entries)
                if text or piece.finish_reason or tokens:
                    choice = {
                        "index": first_index + piece.index,
                        "text": text,
                        "logprobs": logprobs,
                        "finish_reason": "length" if self.only_prompt else piece.finish_reason,
                        "stop_reason": piece.stop_reason,
                    }
                    yield self.chunk([choice])


def _as_json(entries: list[TokenLogprobs | None] | None) -> list[Any] | None:
    if entries is None:
        return None
    return [
        e and {str(t): {"logprob": x.logprob, "rank": x.rank, "decoded_token": x.decoded_token} for t, x in e.items()}
        for e in entries
    ]


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/completions", summary="Continue a text")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        service.serves(body.model, "generate")
        work = Completions(service, body)
        await work.prepare()
        if body.stream:
            return await event_response(work.events())
        return json_response(await while_connected(request, work.whole()))

    return routes
