"""What is known of an engine by the names of vLLM's VllmConfig, for scripts and logits processors that read it."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from octavo.config import EngineArgs
from octavo.errors import ConfigError
from octavo.files import read_json
from octavo.loading.model_files import find_model
from octavo.loading.model_info import ModelInfo
from octavo.params import recommended_sampling
from octavo.speculative_config import SpeculativeConfig

DTYPES = {"float": "float32", "half": "float16"}


class ModelConfig:
    """A model, by the names of vLLM's ModelConfig.

    Args:
        args: the engine's options.
        info: the loaded model; None before it is loaded.
    """

    def __init__(self, args: EngineArgs, info: ModelInfo | None = None) -> None:
        self._args, self._info = args, info
        self.model, self.seed, self.quantization = args.model, args.seed, args.quantization
        self.tokenizer = args.tokenizer or args.model
        self.tokenizer_mode, self.tokenizer_revision = "auto", args.tokenizer_revision
        self.trust_remote_code, self.revision = args.trust_remote_code, args.revision
        self.skip_tokenizer_init, self.max_logprobs = args.skip_tokenizer_init, args.max_logprobs
        self.logprobs_mode, self.served_model_name = args.logprobs_mode, args.model
        self.enforce_eager = True
        self.task = args.task if info is None else info.task
        self.runner_type = "generate" if self.task in ("auto", "generate") else "pooling"
        self.is_multimodal_model = info is not None and info.media is not None
        self.is_encoder_decoder = info is not None and info.has_encoder
        self.renderer_num_workers = 1

    @cached_property
    def hf_config(self) -> Any:
        """The model's config.json as transformers has it, with hf_overrides. Raises ConfigError where there is none."""
        from transformers import AutoConfig, PretrainedConfig

        files = find_model(self._args)
        if files.is_gguf:
            raise ConfigError(f"{self.model} is a GGUF file, which has no config.json; see model_config's other names.")
        try:
            config = AutoConfig.from_pretrained(
                str(files.path), trust_remote_code=self.trust_remote_code, local_files_only=True
            )
        except Exception:  # an architecture that this transformers does not know
            config = PretrainedConfig.from_dict(read_json(files.path / "config.json"))
        for name, value in self._args.hf_overrides.items():
            setattr(config, name, value)
        return config

    @property
    def hf_text_config(self) -> Any:
        """The part of hf_config that is the language model's."""
        return self.hf_config.get_text_config()

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus answer, in tokens."""
        if self._info is not None:
            return self._info.max_model_len
        if self._args.max_model_len is not None:
            return self._args.max_model_len
        return int(getattr(self.hf_text_config, "max_position_embeddings", 0)) or 8192

    @property
    def dtype(self) -> torch.dtype:
        """The number type of weights: that of the options, else the checkpoint's."""
        said = self._args.dtype
        if said == "auto":
            try:
                said = str(getattr(self.hf_config, "dtype", None) or "float32")
            except ConfigError:
                said = "float32"
        return getattr(torch, DTYPES.get(said, said.removeprefix("torch.")))  # type: ignore[no-any-return]

    def get_vocab_size(self) -> int:
        """How many tokens an answer may be made of."""
        return self._info.vocab_size if self._info is not None else int(self.hf_text_config.vocab_size)

    def get_hidden_size(self) -> int:
        """Values of a row of the residual stream."""
        return int(self.hf_text_config.hidden_size)

    def get_diff_sampling_param(self) -> dict[str, Any]:
        """What the model's generation_config.json recommends."""
        return {} if self._info is None else recommended_sampling(self._info.generation_config)


@dataclass(frozen=True)
class SchedulerConfig:
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    policy: str
    enable_chunked_prefill: bool = True
    async_scheduling: bool = False


@dataclass(frozen=True)
class ParallelConfig:
    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    data_parallel_rank: int
    distributed_executor_backend: str | None
    rank: int = 0

    @property
    def world_size(self) -> int:
        """Processes that compute one replica."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def world_size_across_dp(self) -> int:
        """Processes of all replicas."""
        return self.world_size * self.data_parallel_size


@dataclass(frozen=True)
class CacheConfig:
    block_size: int
    gpu_memory_utilization: float
    cache_dtype: str
    enable_prefix_caching: bool
    num_gpu_blocks: int | None
    """Blocks of the KV cache, wherever it is."""
    num_cpu_blocks: int = 0


@dataclass(frozen=True)
class LoRAConfig:
    max_loras: int
    max_lora_rank: int
    max_cpu_loras: int | None


@dataclass(frozen=True)
class DeviceConfig:
    device: torch.device

    @property
    def device_type(self) -> str:
        """cpu or cuda."""
        return self.device.type


@dataclass(frozen=True)
class VllmConfig:
    """An engine's options and model, by vLLM's names. To read; what is set here changes nothing."""

    model_config: ModelConfig
    cache_config: CacheConfig
    parallel_config: ParallelConfig
    scheduler_config: SchedulerConfig
    device_config: DeviceConfig
    lora_config: LoRAConfig | None = None
    speculative_config: SpeculativeConfig | None = None
    kv_transfer_config: None = None
    reasoning_config: None = None
    additional_config: dict[str, Any] = field(default_factory=dict)
    instance_id: str = ""

    @classmethod
    def of(
        cls,
        args: EngineArgs,
        info: ModelInfo | None = None,
        num_blocks: int | None = None,
        prefix_caching: bool = False,
        device: torch.device | None = None,
    ) -> "VllmConfig":
        """That of an engine with these options.

        Args:
            info: the loaded model; None before it is loaded.
            num_blocks: of the KV cache, once there is one.
            prefix_caching: whether equal beginnings are found again.
            device: where the model runs.
        """
        model = ModelConfig(args, info)
        return cls(
            model,
            CacheConfig(args.block_size, args.gpu_memory_utilization, args.kv_cache_dtype, prefix_caching, num_blocks),
            ParallelConfig(
                args.tensor_parallel_size,
                args.pipeline_parallel_size,
                args.data_parallel_size,
                args.data_parallel_rank,
                args.distributed_executor_backend,
            ),
            SchedulerConfig(
                args.max_num_seqs,
                args.max_num_batched_tokens,
                0 if info is None else info.max_model_len,
                args.scheduling_policy,
            ),
            DeviceConfig(device or torch.device("cpu" if args.device == "auto" else args.device)),
            LoRAConfig(args.max_loras, args.max_lora_rank, args.max_cpu_loras) if args.enable_lora else None,
            args.speculation,
        )
