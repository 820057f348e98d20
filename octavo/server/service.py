"""What the endpoints have in common: prompts checked, requests run, times counted."""

import asyncio
import contextlib
import dataclasses
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from octavo.client.output_processor import Chunk, OutputProcessor, PoolingProcessor
from octavo.client.replicas import Replicas
from octavo.client.scoring import ScoreOptions, ScorePlan, pair_up, plan_scores
from octavo.config import EngineArgs
from octavo.engine.messages import Ready, Stats
from octavo.errors import InvalidRequestError, OctavoError, shorten
from octavo.loading.model_tokenizer import model_tokenizer
from octavo.lora import AdapterRef, LoRARequest
from octavo.media.content import MediaPart, fetch_media_async
from octavo.media.fetch import MediaFetcher, is_remote
from octavo.media.limits import DEFAULT_LIMITS
from octavo.media.model_media import ModelMedia
from octavo.outputs import TokenLogprobs
from octavo.params import PoolingParams, RequestOutputKind, SamplingParams, recommended_sampling
from octavo.server.admission import Admission
from octavo.server.file_store import FileStore
from octavo.server.metrics import Metrics, RequestClock
from octavo.server.pausing import PausingRequests
from octavo.server.protocol import Request
from octavo.server.request_log import add_to_request_log, asked
from octavo.server.served_models import ServedModel, ServedModels
from octavo.server.server_options import BODY_WITH_MEDIA, ServerOptions
from octavo.server.tracing import Traces
from octavo.server.work_threads import TextThreads, size_of
from octavo.text.chat_prompt import chat_prompt
from octavo.text.checked_prompt import CheckedPrompt
from octavo.text.inputs import InputChecker
from octavo.text.tokenizer import Tokenizer

log = logging.getLogger("octavo")

MEDIA_REQUESTS = 8
"""For how many requests media are fetched and decoded at a time: as many of other machines', and of the rest."""
LIMITS = dataclasses.replace(DEFAULT_LIMITS, max_bytes=BODY_WITH_MEDIA)
"""Of each item: what a body could hold, also where it is fetched."""


@dataclass
class MediaPrompt:
    """A prompt whose media are not fetched yet."""

    prompt: dict[str, Any]
    parts: list[MediaPart]

    @property
    def is_remote(self) -> bool:
        """Whether other machines are asked for some of them."""
        return any(is_remote(part.source) for part in self.parts)

    async def fetched(self, fetcher: MediaFetcher) -> dict[str, Any]:
        """The prompt with its media, not decoded. Raises InvalidRequestError for what may not be had."""
        for part in self.parts:
            if not isinstance(part.source, (str, bytes)):
                raise InvalidRequestError(f"{part.name} must be a URL, or data in base64.")
        return {**self.prompt, "multi_modal_data": await fetch_media_async(self.parts, fetcher)}


def sent_bytes(parts: list[MediaPart]) -> int:
    """What a request's media take as they were sent."""
    return sum(len(part.source) for part in parts if isinstance(part.source, (str, bytes)))


class RequestTimeoutError(OctavoError):
    """A request took longer than the server allows."""


@dataclass
class Run:
    """A request on its way: its prompt, and what it has used so far."""

    request_id: str
    prompt: CheckedPrompt
    params: SamplingParams
    num_cached: int = 0
    num_generated: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    shown: dict[int, str] = field(default_factory=dict)
    """Special tokens that are in the text though others are skipped, and what stands for them."""

    def update(self, processor: OutputProcessor) -> None:
        """Note what has been used. Raises the error of an answer that ended as one."""
        self.num_cached, self.num_generated = processor.num_cached, processor.num_tokens
        self.prompt_logprobs = processor.prompt_logprobs
        for answer in processor.answers:
            if answer.finish_reason == "error":
                raise (InvalidRequestError if answer.is_invalid else OctavoError)(str(answer.stop_reason))

    def usage(self) -> dict[str, Any]:
        prompt, generated = len(self.prompt.encoder_token_ids or self.prompt.token_ids), self.num_generated
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": self.num_cached},
        }


class Service:
    """One model behind the endpoints. Between `start()` and `stop()` it takes requests."""

    def __init__(self, args: EngineArgs, options: ServerOptions) -> None:
        self.args, self.options = args, options
        names = options.served_model_name or [args.model]
        self.model_name = names[0]
        self.models = ServedModels([*names, args.model], self._load_adapter, self._drop_adapter, self._on_adapter)
        self.requests = PausingRequests()
        self.client = Replicas(args, self.requests.on_outputs, self._on_stats)
        self.tokenizer: Tokenizer | None = None
        self.chat_template = options.template_text()
        self.metrics: Metrics | None = None
        self.traces = Traces.of(options.otlp_traces_endpoint, self.model_name)
        self.admission = Admission(options)
        self.accepting = True
        self.threads = TextThreads()
        self.fetcher = MediaFetcher.of_options(args, LIMITS)
        self.media: ModelMedia | None = None
        """What the model takes beside text; None for text alone."""
        self.files: FileStore | None = None
        """What /v1/files has, where there is that."""
        self._checker: InputChecker | None = None
        self._media_gates = {remote: asyncio.Semaphore(MEDIA_REQUESTS) for remote in (False, True)}
        self._stopping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the tokenizer here while the model loads there. Raises OctavoError with the reason for what fails."""
        loading = asyncio.create_task(self.client.start())
        try:
            self.tokenizer = await asyncio.to_thread(self._load_tokenizer)
        except BaseException:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            raise
        ready = await loading
        self.metrics = Metrics(
            self.model_name,
            self.args.max_loras if self.args.enable_lora else None,
            ready.info.max_model_len,
            {"block_size": self.args.block_size, "num_gpu_blocks": ready.num_blocks},
            also_vllm=self.options.metrics_prefix == "vllm",
        )
        self._checker = await asyncio.to_thread(ready.checker, self.tokenizer, self.args.max_logprobs, LIMITS)
        self.media = self._checker.media
        for module in self.options.lora_adapters:
            try:
                await self.models.load(module.name, module.path, base_model_name=module.base_model_name)
            except OctavoError as error:
                raise OctavoError(f"lora_modules: {error}") from error

    def _load_tokenizer(self) -> Tokenizer | None:
        tokenizer = model_tokenizer(self.args)
        if tokenizer is not None:
            _ = tokenizer.longest_token  # found once, and now rather than while a request waits
            if tokenizer.chat_templates:  # likewise the process that renders, and what the template takes
                with contextlib.suppress(InvalidRequestError):
                    chat_prompt(tokenizer, [{"role": "user", "content": "Hello"}])
        return tokenizer

    def begin_stop(self) -> "asyncio.Task[None]":
        """Take nothing more, let what runs finish for `shutdown_timeout`, then end: all of it in a task."""
        self._stopping = self._stopping or asyncio.ensure_future(self._stop())
        return self._stopping

    async def stop(self) -> None:
        """Do that, and wait for it."""
        await self.begin_stop()
        self.threads.stop()
        self.fetcher.close()
        if self.traces is not None:
            await self.traces.stop()

    async def _stop(self) -> None:
        self.accepting = False
        deadline = time.monotonic() + self.options.shutdown_timeout
        while (len(self.requests) or self.admission.load.requests) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        await self.client.stop()

    @property
    def ready(self) -> Ready:
        return self.client.ready

    @property
    def healthy(self) -> bool:
        return self.accepting and self.client.state == "running"

    @property
    def recommended(self) -> dict[str, Any]:
        """Sampling values that the model's generation_config.json recommends."""
        return recommended_sampling(self.ready.info.generation_config)

    async def _load_adapter(self, adapter: LoRARequest) -> AdapterRef:
        assert self._checker is not None
        ref = await asyncio.to_thread(self._checker.adapter, adapter)
        try:
            async with asyncio.timeout(self.options.request_timeout):
                await self.requests.load_adapter(self.client, ref)
        except TimeoutError as error:
            raise RequestTimeoutError(
                f"the adapter could not be loaded within {self.options.request_timeout:g} s: others are in use. Try "
                "again later, or start the server with a larger --max-cpu-loras."
            ) from error
        return ref

    def _drop_adapter(self, ref: AdapterRef) -> None:
        self.client.drop_adapter(ref)

    def _on_adapter(self, name: str, is_served: bool) -> None:
        log.info("adapter %s: %s", "loaded" if is_served else "unloaded", shorten(name))
        if self.metrics is not None and self.metrics.adapters is not None:
            self.metrics.adapters.on_change(name, is_served)

    def accept(self, request: Request, *tasks: str) -> ServedModel:
        """Note whose request this is; what answers it.

        Raises ModelUnknownError for a model that is not served, InvalidRequestError for another task.

        Args:
            request: the body.
            tasks: what the engine may have been started for.
        """
        if request.user:
            add_to_request_log(user=shorten(request.user, 64))
        model = self.models.find(request.model)
        if self.ready.info.task not in tasks:
            raise InvalidRequestError(
                f"this server was started for task {self.ready.info.task!r}; this is for {' or '.join(tasks)}."
            )
        if model.adapter is not None:
            add_to_request_log(adapter=shorten(model.name, 64))
        return model

    def _on_stats(self, replica: int, stats: Stats, restarts: int) -> None:
        if self.metrics is not None:
            self.metrics.take(stats, self.client.clients[replica].ready.num_blocks, restarts, replica)

    @property
    def checker(self) -> InputChecker:
        """Checks prompts, once the engine is there."""
        assert self._checker is not None
        return self._checker

    @property
    def media_kinds(self) -> list[str]:
        """The kinds of media that a prompt may have."""
        return [] if self.media is None else self.media.info.open_kinds

    def check_max_tokens(self, max_tokens: int | None) -> None:
        """Raises InvalidRequestError for longer answers than the model has place for."""
        longest = self.ready.info.max_model_len
        if max_tokens is not None and max_tokens > longest:
            raise InvalidRequestError(
                f"max_tokens={max_tokens} cannot be greater than max_model_len={longest}. Please request fewer output "
                "tokens."
            )

    async def check(
        self, prompt: Any, params: SamplingParams | PoolingParams, adapter: LoRARequest | None = None
    ) -> CheckedPrompt:
        """Tokenized and checked, off the event loop."""
        return (await self.check_all([prompt], params, adapter))[0]

    async def check_all(
        self, prompts: list[Any], params: SamplingParams | PoolingParams, adapter: LoRARequest | None = None
    ) -> list[CheckedPrompt]:
        """Several prompts, tokenized and checked off the event loop. An error says which prompt it is of."""
        if any(isinstance(prompt, MediaPrompt) for prompt in prompts):
            checked = [await self._check_media(prompt, params, adapter) for prompt in prompts]
        else:
            checked = await self.threads.run(size_of(prompts), self._checked, prompts, params, adapter)
        if self.options.log_prompts:
            for one in checked:
                prompt = one.text if one.text is not None else one.token_ids
                add_to_request_log(prompt=self.options.shortened(prompt))
        return checked

    async def _check_media(
        self, prompt: Any, params: SamplingParams | PoolingParams, adapter: LoRARequest | None
    ) -> CheckedPrompt:
        """A prompt whose media are fetched and decoded off the event loop, for few requests at a time."""
        if not isinstance(prompt, MediaPrompt):
            return (await self.threads.run(size_of(prompt), self._checked, [prompt], params, adapter))[0]
        async with self._media_gates[prompt.is_remote]:
            given = await prompt.fetched(self.fetcher)
            (checked,) = await self.threads.media(self._checked, [given], params, adapter)
        # What was sent is not kept: its features are, until the request ends.
        self.admission.admit_media(sum(len(feature.data) for feature in checked.features) - sent_bytes(prompt.parts))
        return checked

    def _checked(
        self, prompts: list[Any], params: SamplingParams | PoolingParams, adapter: LoRARequest | None
    ) -> list[CheckedPrompt]:
        assert self._checker is not None
        if isinstance(params, SamplingParams):
            self._checker.sampling(params)
        checked = []
        for i, prompt in enumerate(prompts):
            try:
                checked.append(self._checker.prompt(prompt, params, adapter))
            except InvalidRequestError as error:
                raise InvalidRequestError(f"input {i}: {error}" if len(prompts) > 1 else str(error)) from error
        return checked

    async def plan_scores(self, first: list[str], second: list[str], options: ScoreOptions) -> ScorePlan:
        """What gives the scores of texts and their partners; found off the event loop."""
        pairs = pair_up(first, second)
        return await self.threads.template(size_of(pairs), plan_scores, pairs, self.ready, self.checker, options)

    @staticmethod
    def new_id(kind: str) -> str:
        return f"{kind}-{uuid.uuid4().hex}"

    async def generate(
        self, run: Run, priority: int = 0, kind: RequestOutputKind = RequestOutputKind.DELTA
    ) -> AsyncGenerator[Chunk, None]:
        """What is new of a request's answers as it comes. Closing the generator ends the request.

        Raises OctavoErrors for what cannot run, takes too long, or ran into the engine's end.
        """
        assert self.metrics is not None
        clock, reason = RequestClock(self.metrics), "abort"
        processor = OutputProcessor(
            run.request_id, run.prompt, run.params, self.tokenizer, run.shown, with_entries=True
        )
        processor.params.output_kind = kind

        def on_tokens(count: int) -> None:
            clock.on_tokens(count)
            run.update(processor)

        try:
            outputs = self.requests.generate(self.client, processor, priority, on_tokens)
            async with contextlib.aclosing(outputs):
                with self._in_time(run.request_id):
                    async for output in outputs:
                        if output.finished:
                            reason = output.outputs[-1].finish_reason
                        for chunk in output.outputs:
                            yield chunk
        finally:
            clock.end(reason)
            self._count_adapter(run.prompt, run.num_generated)
            num_prompt = len(run.prompt.encoder_token_ids or run.prompt.token_ids)
            self.metrics.ended.end(
                processor.metrics, num_prompt, run.num_generated, run.params.n, run.params.max_tokens
            )
            if self.traces is not None:
                self.traces.generated(
                    run.request_id, run.params, processor.metrics, num_prompt, run.num_generated, reason
                )
            add_to_request_log(
                **asked(self.options, run.params, processor.answers),
                prompt_tokens=num_prompt,
                completion_tokens=run.num_generated,
                finish=reason,
                **({"media": len(media)} if (media := run.prompt.media) else {}),
            )

    def _count_adapter(self, prompt: CheckedPrompt, generated: int) -> None:
        """A request has ended, and counts for its adapter."""
        assert self.metrics is not None
        if prompt.adapter is not None and self.metrics.adapters is not None:
            num_tokens = len(prompt.encoder_token_ids or prompt.token_ids)
            self.metrics.adapters.end(prompt.adapter.name, num_tokens, generated)

    @contextlib.contextmanager
    def _in_time(self, request_id: str) -> Iterator[None]:
        """Within it a request's outputs are read. They end with a RequestTimeoutError at the server's limit.

        A timer for the whole of it: one for each token would cost more than what it waits for.
        """
        seconds = self.options.request_timeout
        error = RequestTimeoutError(f"the request was ended after {seconds:g} s. Ask for less.")
        timer = asyncio.get_running_loop().call_later(seconds, self.requests.fail, request_id, error)
        try:
            yield
        finally:
            timer.cancel()

    async def whole(self, run: Run, priority: int = 0) -> list[Chunk]:
        """A request's answers, when all are there."""
        return [answer async for answer in self.generate(run, priority, RequestOutputKind.FINAL_ONLY)]

    async def pool(self, prompt: CheckedPrompt, params: PoolingParams, priority: int = 0) -> "np.ndarray[Any, Any]":
        """A pooling request's result as float32."""
        assert self.metrics is not None
        clock, reason = RequestClock(self.metrics), "abort"
        processor = PoolingProcessor(self.new_id("pool"), prompt, params)
        outputs = self.requests.generate(self.client, processor, priority)
        try:
            async with contextlib.aclosing(outputs):
                with self._in_time(processor.request_id):
                    async for output in outputs:
                        reason = "stop"
                        return output.outputs.data  # type: ignore[no-any-return]
        finally:
            clock.end(reason)
            if self.traces is not None:
                self.traces.pooled(processor.request_id, time.monotonic() - clock.arrival, len(prompt.token_ids))
            self._count_adapter(prompt, 0)
        raise OctavoError("the engine gave no result.")

    async def pool_all(
        self, prompts: list[Any], params: PoolingParams, adapter: LoRARequest | None = None, priority: int = 0
    ) -> "tuple[list[np.ndarray[Any, Any]], int]":
        """Results of many prompts, computed together, and how many tokens they had."""
        self.admission.admit(len(prompts))
        checked = await self.check_all(prompts, params, adapter)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.pool(c, params, priority)) for c in checked]
        return [t.result() for t in tasks], sum(len(c.token_ids) for c in checked)
