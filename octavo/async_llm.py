"""The asynchronous Python interface: one engine thread, and an async iterator for each request."""

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from octavo.batch_calls import as_tensor
from octavo.client.async_requests import AsyncRequests
from octavo.client.engine_client import KnownEngine
from octavo.client.local_client import ThreadClient
from octavo.client.output_processor import processor_of
from octavo.client.replica_engine import ReplicaEngine
from octavo.client.transcribing import Question, Transcriber
from octavo.config import DEFAULT_MODEL, EngineArgs
from octavo.errors import EngineDeadError, OctavoError, RequestFailedError, failure
from octavo.launch import launch_engine
from octavo.llm import args_of
from octavo.lora import AdapterRef, LoRARequest
from octavo.outputs import CompletionOutput, PoolingOutput, PoolingRequestOutput, RequestOutput
from octavo.params import PoolingParams, SamplingParams
from octavo.prompts import Prompt
from octavo.text.inputs import CheckedPrompt
from octavo.transcribe import answer_of, transcribe_async
from octavo.transcripts import Transcript, TranscriptionParams


class AsyncLLM:
    """A model that answers many requests at a time, each as its own async iterator.

    Args are those of octavo.LLM. The engine runs in a thread of its own until `shutdown()`, or, with
    data_parallel_size above 1, several do in processes of their own.
    """

    def __init__(self, model: str | os.PathLike[str] = DEFAULT_MODEL, **options: Any) -> None:
        self._start(args_of(model, options))

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> "AsyncLLM":
        """An AsyncLLM of options that are already an EngineArgs."""
        llm = cls.__new__(cls)
        llm._start(args)
        return llm

    def _start(self, args: EngineArgs) -> None:
        self._ids = itertools.count()
        self._requests = AsyncRequests()
        self._added_adapters: dict[int, AdapterRef] = {}
        self.engine: KnownEngine
        self.client: ThreadClient | ReplicaEngine
        if args.data_parallel_size > 1:
            self.engine = self.client = ReplicaEngine(args, self._requests.on_outputs)
        else:
            self.engine = engine = launch_engine(args)
            self.client = ThreadClient(engine, self._requests.on_outputs, self._requests.fail_all)

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams,
        request_id: str | None = None,
        *,
        priority: int = 0,
        lora_request: LoRARequest | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """Outputs of one request as they come, by its output kind. Closing the iterator aborts the request.

        Who reads more slowly than the model writes finds what came meanwhile in one output.

        Raises InvalidRequestError, before anything runs, for a request that cannot be served, and EngineDeadError if
        the engine has stopped.
        """
        run = self._run(prompt, sampling_params, request_id, priority, lora_request)
        async with contextlib.aclosing(run) as outputs:
            async for output in outputs:
                yield output

    async def encode(
        self,
        prompt: Prompt,
        pooling_params: PoolingParams | None = None,
        request_id: str | None = None,
        lora_request: LoRARequest | None = None,
    ) -> PoolingRequestOutput[PoolingOutput]:
        """The pooled answer of one request, as a tensor."""
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

    async def abort(self, request_id: str) -> None:
        """End a request; its iterator gets a last output with finish_reason "abort"."""
        self._requests.abort(self.client, request_id)

    def shutdown(self) -> None:
        """Stop the engine. Requests that run are ended."""
        self.client.close()
