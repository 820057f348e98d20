"""What an engine tells of itself by vLLM's names, the same of LLMEngine and AsyncLLM."""

from functools import cached_property
from typing import Any

from octavo.client.engine_client import KnownEngine
from octavo.errors import InvalidRequestError
from octavo.loading.engine_config import ModelConfig, VllmConfig
from octavo.text.users_tokenizer import users_tokenizer


class EngineFacts:
    """For a class with an `engine`."""

    engine: KnownEngine

    @cached_property
    def vllm_config(self) -> VllmConfig:
        """The engine's options and model, by vLLM's names."""
        ready = self.engine.ready
        return VllmConfig.of(self.engine.args, self.engine.info, ready.num_blocks, ready.prefix_block_size > 0)

    @property
    def model_config(self) -> ModelConfig:
        return self.vllm_config.model_config

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, as one of transformers'; None with skip_tokenizer_init."""
        if self.engine.tokenizer is None:
            return None
        return users_tokenizer(self.engine.tokenizer, self.model_config.tokenizer, self.engine.max_model_len)

    def _needed_tokenizer(self) -> Any:
        """The same. Raises InvalidRequestError with skip_tokenizer_init."""
        if self.tokenizer is None:
            raise InvalidRequestError("skip_tokenizer_init=True: there is no tokenizer.")
        return self.tokenizer
