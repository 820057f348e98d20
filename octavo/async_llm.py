"""The asynchronous Python interface: one engine thread, and an async iterator for each request."""

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncGenerator, Iterable
from functools import partial
from typing import Any

from octavo.batch_calls import as_tensor
from octavo.client.async_requests import AsyncRequests
from octavo.client.local_client import ThreadClient
from octavo.client.output_processor import processor_of
from octavo.client.output_streams import OneAnswer, OutputStream
from octavo.client.replica_engine import ReplicaEngine
from octavo.client.transcribing import Question, Transcriber
from octavo.config import DEFAULT_MODEL, EngineArgs
from octavo.engine.upkeep import reset_caches
from octavo.engine_facts import EngineFacts
from octavo.errors import (
    ConfigError,
    EngineDeadError,
    InvalidRequestError,
    OctavoError,
    RequestFailedError,
    failure,
)
from octavo.launch import launch_engine
from octavo.llm import args_of
from octavo.llm_engine import SLEEP_MODES
from octavo.lora import AdapterRef, LoRARequest
from octavo.outputs import CompletionOutput, PoolingOutput, PoolingRequestOutput, RequestOutput
from octavo.params import PoolingParams, SamplingParams
from octavo.prompts import Prompt
from octavo.text.checked_prompt import CheckedPrompt
from octavo.transcribe import answer_of, transcribe_async
from octavo.transcripts import Transcript, TranscriptionParams

LOOK_AGAIN = 0.02
"""Seconds after which somebody who waits for all requests sees whether one still runs."""


class AsyncLLM(EngineFacts):
    """A model that answers many requests at a time, each as its own async iterator.

    Args are those of octavo.LLM. The engine runs in a thread of its own until `shutdown()`, or, with
    data_parallel_size above 1, several do in processes of their own.
    """

    def __init__(self, model: str | os.PathLike[str] = DEFAULT_MODEL, **options: Any) -> None:
        self._start(args_of(model, options))

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs, **_: Any) -> "AsyncLLM":
        """An AsyncLLM of options that are already an EngineArgs. What vLLM takes beside them has no effect."""
        llm = cls.__new__(cls)
        llm._start(engine_args)
        return llm

    def _start(self, args: EngineArgs) -> None:
        self._ids = itertools.count()
        self._requests = AsyncRequests()
        self._added_adapters: dict[int, AdapterRef] = {}
        self._is_paused = False
        self.client: ThreadClient | ReplicaEngine
        if args.data_parallel_size > 1:
            self.engine = self.client = ReplicaEngine(args, self._requests.on_outputs)
        else:
            self.engine = engine = launch_engine(args)
            self.client = ThreadClient(engine, self._requests.on_outputs, self._requests.fail_all)

    def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams,
        request_id: str | None = None,
        *,
        priority: int = 0,
        lora_request: LoRARequest | None = None,
    ) -> OutputStream[RequestOutput]:
        """Outputs of one request as they come, by its output kind. Closing the iterator aborts the request.

        Who reads more slowly than the model writes finds what came meanwhile in one output.

        Raises InvalidRequestError, before anything runs, for a request that cannot be served, and EngineDeadError if
        the engine has stopped.
        """
        run = self._run(prompt, sampling_params, request_id, priority, lora_request)
        return OutputStream(run, "AsyncLLM.generate")

    def encode(
        self,
        prompt: Prompt,
        pooling_params: PoolingParams | None = None,
        request_id: str | None = None,
        lora_request: LoRARequest | None = None,
    ) -> OneAnswer[PoolingRequestOutput[PoolingOutput]]:
        """The pooled answer of one request, as a tensor: to be awaited, or by `async for`, which gives it alone."""
        return OneAnswer(partial(self._encode, prompt, pooling_params, request_id, lora_request))

    async def _encode(
        self,
        prompt: Prompt,
        pooling_params: PoolingParams | None,
        request_id: str | None,
        lora_request: LoRARequest | None,
    ) -> PoolingRequestOutput[PoolingOutput]:
        run = self._run(prompt, pooling_params or PoolingParams(), request_id, 0, lora_request)
        async with contextlib.aclosing(run) as outputs:
            async for output in outputs:
                return as_tensor(output)
        raise EngineDeadError("the engine ended the request without an answer.")

    async def transcribe(
        self, audio: Any, params: TranscriptionParams | None = None, *, lora_request: LoRARequest | None = None
    ) -> Transcript:
        """What is said in a sound of any length, as LLM.transcribe has it. Cancelling it ends its requests."""
        transcriber = Transcriber(self.engine.info, self.engine.checker)
        begun = await asyncio.to_thread(transcriber.begin, audio, params or TranscriptionParams(), lora_request)

        async def ask(question: Question) -> CompletionOutput:
            run = self._run(question.prompt, question.params, None, 0, None)
            async with contextlib.aclosing(run) as outputs:
                return answer_of([output async for output in outputs][-1])

        return await transcribe_async(begun, ask)

    async def _run(
        self,
        prompt: Prompt | CheckedPrompt,
        params: SamplingParams | PoolingParams,
        request_id: str | None,
        priority: int,
        adapter: LoRARequest | None,
    ) -> AsyncGenerator[Any, None]:
        self.client.check_alive()
        name = request_id or f"request-{next(self._ids)}"
        try:
            # Tokenized beside the event loop, and so that the engine's thread does nothing but compute.
            if isinstance(prompt, CheckedPrompt):
                checked = prompt
            else:
                checked = await asyncio.to_thread(self.engine.checker.prompt, prompt, params, adapter)
            processor = processor_of(name, checked, params, self.engine.tokenizer)
        except (OctavoError, asyncio.CancelledError):
            raise
        except BaseException as error:
            raise RequestFailedError(f"the request could not be prepared: {failure(error)}") from error
        async with contextlib.aclosing(self._requests.generate(self.client, processor, priority)) as outputs:
            async for output in outputs:
                yield output

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        """Load an adapter before a prompt needs it. It stays as long as there is room, as those of prompts do.

        Raises InvalidRequestError for one that cannot be used.
        """
        ref = await asyncio.to_thread(self.engine.checker.adapter, lora_request)
        await self._requests.load_adapter(self.client, ref)
        self._added_adapters[lora_request.lora_int_id] = ref
        return True

    async def remove_lora(self, lora_id: int) -> bool:
        """Give back the memory of an adapter that `add_lora` has loaded; False for another number."""
        ref = self._added_adapters.pop(lora_id, None)
        if ref is not None:
            self.client.drop_adapter(ref)
        return ref is not None

    async def list_loras(self) -> set[int]:
        """The numbers of adapters that `add_lora` has loaded, and `remove_lora` has not removed."""
        return set(self._added_adapters)

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """End requests; their iterators get a last output with finish_reason "abort"."""
        for one in [request_id] if isinstance(request_id, str) else request_id:
            self._requests.abort(self.client, one)

    async def pause_generation(self, *, mode: str = "abort", clear_cache: bool = True) -> None:
        """Compute nothing until `resume_generation`, nor give anything. Requests may be added meanwhile.

        Args:
            mode: what becomes of requests that run: abort ends them, wait computes them first, keep goes on with them
                afterwards.
            clear_cache: forget the KV cache of earlier prompts too; not with mode="keep".

        Raises InvalidRequestError for another mode, and ConfigError with data_parallel_size above 1.
        """
        if mode not in SLEEP_MODES:
            raise InvalidRequestError(f"mode={mode!r:.40} is unknown; it is one of {', '.join(SLEEP_MODES)}.")
        client = self._own_thread("pause_generation")
        if mode == "abort":
            await self.abort(self._requests.unfinished)
        while mode == "wait" and self._requests.unfinished:
            await asyncio.sleep(LOOK_AGAIN)
        client.pause(True)
        self._is_paused = True
        # The step that was computed has ended then, and its tokens are with those who wait for them.
        await asyncio.to_thread(client.between_steps, lambda engine: None)
        if clear_cache and mode != "keep":
            await self.reset_prefix_cache()

    async def resume_generation(self) -> None:
        """Go on after `pause_generation`."""
        self._own_thread("resume_generation").pause(False)
        self._is_paused = False

    async def is_paused(self) -> bool:
        """Whether `pause_generation` was called last."""
        return self._is_paused

    async def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """As LLM.reset_prefix_cache."""
        client = self._own_thread("reset_prefix_cache")
        reset = partial(client.between_steps, lambda engine: reset_caches(engine.scheduler, reset_running_requests))
        return bool(await asyncio.to_thread(reset))

    def _own_thread(self, name: str) -> ThreadClient:
        if not isinstance(self.client, ThreadClient):
            raise ConfigError(f"{name} needs one engine in this process; start it with data_parallel_size=1.")
        return self.client

    async def get_tokenizer(self) -> Any:
        """The model's tokenizer, as one of transformers'. Raises InvalidRequestError with skip_tokenizer_init."""
        return self._needed_tokenizer()

    async def check_health(self) -> None:
        """Raises EngineDeadError if the engine has stopped."""
        self.client.check_alive()

    @property
    def errored(self) -> bool:
        """Whether the engine has stopped."""
        try:
            self.client.check_alive()
        except EngineDeadError:
            return True
        return False

    @property
    def is_running(self) -> bool:
        return not self.errored

    def shutdown(self) -> None:
        """Stop the engine. Requests that run are ended."""
        self.client.close()
