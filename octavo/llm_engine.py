"""An engine whose steps the caller computes, as vLLM's `LLMEngine` has it; what `LLM` stands on."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from octavo.batch_calls import tokenized_so
from octavo.client.request_counts import Metric
from octavo.config import EngineArgs
from octavo.engine.engine import Engine
from octavo.engine.messages import Failed
from octavo.engine.upkeep import counters_of, gauges, reset_caches
from octavo.engine_facts import EngineFacts
from octavo.errors import ConfigError, InvalidRequestError
from octavo.executor.local import LocalExecutor
from octavo.launch import start_requests
from octavo.lora import AdapterRef, LoRARequest
from octavo.outputs import PoolingOutput, PoolingRequestOutput, RequestOutput
from octavo.params import PoolingParams, SamplingParams
from octavo.prompts import Prompt
from octavo.worker import Worker

SLEEP_MODES = ("abort", "wait", "keep")


class LLMEngine(EngineFacts):
    """Takes requests, and computes a step whenever `step` is called.

    Args:
        args: the engine's options.

    Raises ConfigError, ModelNotFoundError or CheckpointError, each saying what to do.
    """

    def __init__(self, args: EngineArgs) -> None:
        self.requests = start_requests(args)
        self.engine = self.requests.engine
        self._added_adapters: dict[int, AdapterRef] = {}
        self._ids = itertools.count()
        self._sleep_level: int | None = None

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs, **_: Any) -> "LLMEngine":
        """An engine of these options. What vLLM takes beside them has no effect: how usage is told, statistics."""
        return cls(engine_args)

    def get_tokenizer(self) -> Any:
        """The model's tokenizer, as one of transformers'. Raises InvalidRequestError with skip_tokenizer_init."""
        return self._needed_tokenizer()

    def get_supported_tasks(self) -> tuple[str, ...]:
        """What requests may ask for."""
        info = self.engine.info
        return ("generate",) if info.task == "generate" else tuple(info.pooling_tasks)

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | PoolingParams,
        arrival_time: float | None = None,
        lora_request: LoRARequest | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        trace_headers: Any = None,
        priority: int = 0,
        **_: Any,
    ) -> str:
        """Queue a request, whose outputs `step` gives; its id. `arrival_time` and `trace_headers` have no effect.

        Raises InvalidRequestError, before anything runs, for one that cannot be served.
        """
        if not isinstance(request_id, str):
            raise InvalidRequestError(f"request_id must be a text, not {type(request_id).__name__}.")
        prompt, params = tokenized_so(prompt, params, tokenization_kwargs)
        self.requests.add(request_id, prompt, params, priority, lora_request)
        return request_id

    def step(self) -> list[RequestOutput | PoolingRequestOutput[PoolingOutput]]:
        """Compute one step; the outputs that are due after it. Raises the error of a request that has failed."""
        if self._sleep_level is not None:
            return []
        outputs = list[RequestOutput | PoolingRequestOutput[PoolingOutput]]()
        failed: Failed | None = None
        for output in self.requests.step() if self.requests.has_work else ():
            if isinstance(output, Failed):
                failed = failed or output
            else:
                outputs.append(output)
        if failed is not None:
            raise failed.exception(f"request {failed.request_id}: ")
        return outputs

    def has_unfinished_requests(self) -> bool:
        return self.requests.has_work

    def get_num_unfinished_requests(self) -> int:
        return len(self.requests.unfinished)

    def abort_request(self, request_id: str | Iterable[str], internal: bool = False) -> None:
        """End requests now. Unknown ids are ignored; `internal` has no effect."""
        self.requests.abort([request_id] if isinstance(request_id, str) else list(request_id))

    def add_lora(self, lora_request: LoRARequest) -> bool:
        """Load an adapter before a prompt needs it. It stays as long as there is room, as those of prompts do.

        Raises InvalidRequestError for one that cannot be used.
        """
        self._added_adapters[lora_request.lora_int_id] = self.requests.load_adapter(lora_request)
        return True

    def remove_lora(self, lora_id: int) -> bool:
        """Give back the memory of an adapter that `add_lora` has loaded; False for another number."""
        ref = self._added_adapters.pop(lora_id, None)
        if ref is not None:
            self.requests.client.drop_adapter(ref)
        return ref is not None

    def list_loras(self) -> set[int]:
        """The numbers of adapters that `add_lora` has loaded, and `remove_lora` has not removed."""
        return set(self._added_adapters)

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """Forget the KV cache of earlier prompts; whether that was done.

        It is not while requests run, unless `reset_running_requests` has them computed anew. `reset_connector` has no
        effect: what kv_offload keeps outside of the cache is still right, and stays.
        """
        return reset_caches(self._own_engine("reset_prefix_cache").scheduler, reset_running_requests)

    def reset_mm_cache(self) -> None:
        """Forget what towers made of pictures, films and sounds, where no request runs."""
        reset_caches(self._own_engine("reset_mm_cache").scheduler)

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """Compute nothing until `wake_up`. Requests may be added meanwhile.

        Args:
            level: 0 keeps all caches; from 1 on, what they hold is forgotten, and on Linux's CPUs their memory given
                back, where the model runs in this process. Weights stay where they are.
            mode: what becomes of requests that run: abort ends them, wait computes them first, keep goes on with them
                after `wake_up`.

        Raises InvalidRequestError for another mode.
        """
        if mode not in SLEEP_MODES:
            raise InvalidRequestError(f"mode={mode!r:.40} is unknown; it is one of {', '.join(SLEEP_MODES)}.")
        if mode == "abort":
            self.requests.keep(self.requests.abort(self.requests.unfinished))
        while mode == "wait" and self.requests.unfinished:
            self.requests.keep(self.requests.step())
        if level > 0:
            engine = self._own_engine("sleep")
            reset_caches(engine.scheduler, preempt=True)
            if isinstance(engine.executor, LocalExecutor):
                engine.executor.forget_caches()
        self._sleep_level = level

    def wake_up(self, tags: list[str] | None = None) -> bool:
        """Go on after `sleep`; whether the engine is awake. `tags` ("weights", "kv_cache", "scheduling") are parts of
        what sleeps in vLLM; here "scheduling", which None has too, ends the sleep, and of level 1 "kv_cache" as well.
        """
        ends = {"scheduling"} if self._sleep_level == 0 else {"scheduling", "kv_cache"}
        if tags is None or ends & set(tags):
            self._sleep_level = None
        return self._sleep_level is None

    def is_sleeping(self) -> bool:
        return self._sleep_level is not None

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """What a call on the worker gives, in a list of one: the model runs in this process.

        Args:
            method: the name of a method of octavo.worker.Worker, or a function that takes the worker first.
            timeout: no effect.

        Raises ConfigError where the model runs in other processes, and InvalidRequestError for an unknown method.
        """
        executor = self._own_engine("collective_rpc").executor
        if not isinstance(executor, LocalExecutor):
            raise ConfigError("collective_rpc needs the model in this process: start it with tensor_parallel_size=1.")
        worker = Worker(executor, self.vllm_config)
        if callable(method):
            return [method(worker, *args, **(kwargs or {}))]
        call = None if method.startswith("_") else getattr(worker, method, None)
        if not callable(call):
            known = ", ".join(name for name in dir(Worker) if callable(getattr(Worker, name)) and name[0] != "_")
            raise InvalidRequestError(f"collective_rpc: a worker has no method {method[:60]!r}; it has {known}.")
        return [call(*args, **(kwargs or {}))]

    def apply_model(self, func: Callable[..., Any]) -> list[Any]:
        """What a function of the model (a torch module) gives, in a list of one."""
        return self.collective_rpc("apply_model", args=(func,))

    def get_metrics(self) -> list[Metric]:
        """Counts of this engine's requests, and how full it is, by the names of vLLM's metrics."""
        engine = self.engine if isinstance(self.engine, Engine) else None
        now = {} if engine is None else gauges(engine.scheduler)
        counters = {"num_preemptions": 0} if engine is None else counters_of(engine.scheduler, engine.speculation)
        by_place = [] if engine is None or engine.speculation is None else engine.speculation.accepted_by_place
        return self.requests.counts.snapshot(self.engine.args.model, now, counters, by_place)

    def do_log_stats(self) -> None:
        """No statistics are logged; `get_metrics` has them."""

    def shutdown(self, timeout: float | None = None) -> None:
        """End what was started for the engine. It takes no requests any more; `timeout` has no effect."""
        self.abort_request(self.requests.unfinished)
        if isinstance(self.engine, Engine):
            self.engine.executor.close()
        else:
            self.engine.close()  # type: ignore[attr-defined]

    def _own_engine(self, name: str) -> Engine:
        if not isinstance(self.engine, Engine):
            raise ConfigError(f"{name} needs one engine in this process; start it with data_parallel_size=1.")
        return self.engine
