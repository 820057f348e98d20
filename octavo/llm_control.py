"""What an LLM says of its engine and does with it, beside answering prompts."""

from collections.abc import Callable
from typing import Any

from octavo.client.request_counts import Metric
from octavo.errors import ConfigError, InvalidRequestError
from octavo.llm_engine import LLMEngine
from octavo.loading.engine_config import ModelConfig
from octavo.lora import LoRARequest
from octavo.params import SamplingParams, recommended_sampling
from octavo.text.tokenizer import Tokenizer


class LLMControl:
    """The part of an LLM that its engine does."""

    llm_engine: LLMEngine

    @property
    def model_config(self) -> ModelConfig:
        """The model, by the names of vLLM's ModelConfig."""
        return self.llm_engine.model_config

    @property
    def supported_tasks(self) -> tuple[str, ...]:
        """What prompts may ask for."""
        return self.llm_engine.get_supported_tasks()

    def get_tokenizer(self) -> Any:
        """The model's tokenizer, as one of transformers'. Raises InvalidRequestError with skip_tokenizer_init.

        It is a copy: what is set on it changes nothing in the engine.
        """
        return self.llm_engine.get_tokenizer()

    def _own_tokenizer(self) -> Tokenizer:
        """The engine's tokenizer."""
        if self.llm_engine.engine.tokenizer is None:
            raise InvalidRequestError("skip_tokenizer_init=True: there is no tokenizer.")
        return self.llm_engine.engine.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """Sampling values that the model's generation_config.json recommends."""
        return SamplingParams(**recommended_sampling(self.llm_engine.engine.info.generation_config))

    def get_world_size(self, include_dp: bool = True) -> int:
        """Processes that compute the model: of all replicas, or with `include_dp=False` of one."""
        parallel = self.llm_engine.vllm_config.parallel_config
        return parallel.world_size_across_dp if include_dp else parallel.world_size

    def rank_weight_bytes(self) -> list[int]:
        """Bytes of weights in each process that computes the model."""
        return list(self.llm_engine.engine.ready.rank_weight_bytes)

    def add_lora(self, lora_request: LoRARequest) -> bool:
        """As LLMEngine.add_lora."""
        return self.llm_engine.add_lora(lora_request)

    def remove_lora(self, lora_id: int) -> bool:
        """As LLMEngine.remove_lora."""
        return self.llm_engine.remove_lora(lora_id)

    def list_loras(self) -> set[int]:
        """As LLMEngine.list_loras."""
        return self.llm_engine.list_loras()

    def get_metrics(self) -> list[Metric]:
        """As LLMEngine.get_metrics."""
        return self.llm_engine.get_metrics()

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """As LLMEngine.reset_prefix_cache."""
        return self.llm_engine.reset_prefix_cache(reset_running_requests, reset_connector)

    def reset_mm_cache(self) -> None:
        """As LLMEngine.reset_mm_cache."""
        self.llm_engine.reset_mm_cache()

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """As LLMEngine.sleep."""
        self.llm_engine.sleep(level, mode)

    def wake_up(self, tags: list[str] | None = None) -> bool:
        """As LLMEngine.wake_up."""
        return self.llm_engine.wake_up(tags)

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """As LLMEngine.collective_rpc."""
        return self.llm_engine.collective_rpc(method, timeout, args, kwargs)

    def apply_model(self, func: Callable[..., Any]) -> list[Any]:
        """As LLMEngine.apply_model."""
        return self.llm_engine.apply_model(func)

    def start_profile(self, *_: Any, **__: Any) -> None:
        """Raises ConfigError: there is no profiler here."""
        raise ConfigError("there is no profiler; `octavo bench` measures, and torch.profiler can be used around calls.")

    stop_profile = start_profile

    def shutdown(self, timeout: float | None = None) -> None:
        """As LLMEngine.shutdown."""
        self.llm_engine.shutdown(timeout)
