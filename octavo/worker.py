"""What runs the model, as functions of `LLM.collective_rpc` get it: by the names of vLLM's worker."""

from collections.abc import Callable
from typing import Any

import torch

from octavo.executor.local import LocalExecutor
from octavo.loading.engine_config import VllmConfig
from octavo.parts import CausalLM


class Worker:
    """The one process that computes the model.

    Args:
        executor: where the model is.
        config: the engine's options and model.
    """

    rank = local_rank = 0

    def __init__(self, executor: LocalExecutor, config: VllmConfig) -> None:
        self.vllm_config, self.model_config = config, config.model_config
        self.model_runner = executor.runner
        self.device: torch.device = executor.runner.device

    def get_model(self) -> CausalLM:
        """The model, a torch module."""
        return self.model_runner.model

    def apply_model(self, func: Callable[[CausalLM], Any]) -> Any:
        """What a function of the model gives."""
        return func(self.get_model())

    def get_model_inspection(self) -> str:
        """The model's parts, as text."""
        return str(self.get_model())

    def check_health(self) -> None:
        """Nothing can be wrong with this process without the caller's."""
