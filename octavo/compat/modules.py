"""Which of Octavo's classes and functions answer to vLLM's modules and names, and how Python finds them."""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

from octavo.compat.environment import variable

VERSION = "0.33.0+octavo"
"""The version of vLLM whose interface this is."""

_OUTPUTS = (
    "RequestOutput CompletionOutput PoolingOutput PoolingRequestOutput EmbeddingOutput EmbeddingRequestOutput "
    "ClassificationOutput ClassificationRequestOutput ScoringOutput ScoringRequestOutput"
)
_CONFIGS = "CompilationConfig ProfilerConfig StructuredOutputsConfig AttentionConfig KVTransferConfig SpeculativeConfig"
_V1_PROCESSORS = "LogitsProcessor AdapterLogitsProcessor BatchUpdate MoveDirectionality"
_BYTES = "EMBED_DTYPES ENDIANNESS binary2tensor tensor2binary tensor2base64"
_ITEMS = "MetadataItem build_metadata_items decode_pooling_output"
_METRICS = "Counter Gauge Histogram Metric Vector"

# A module of vLLM's, `: names` of it, `@` the module of Octavo's that has them (a name may be `theirs=ours`).
_TABLE = f"""
: LLM @ octavo.llm
: LLMEngine @ octavo.llm_engine
: AsyncLLMEngine=AsyncLLM @ octavo.async_llm
: EngineArgs AsyncEngineArgs @ octavo.compat.engine_args
: PoolerConfig @ octavo.config
: SamplingParams PoolingParams @ octavo.params
: {_OUTPUTS} @ octavo.outputs
: TextPrompt TokensPrompt PromptType=Prompt @ octavo.prompts
: ModelRegistry initialize_ray_cluster @ octavo.compat.absent
version: __version__=VERSION @ octavo.compat.modules
sampling_params: SamplingParams BeamSearchParams RequestOutputKind StructuredOutputsParams @ octavo.params
sampling_params: GuidedDecodingParams @ octavo.params
pooling_params: PoolingParams @ octavo.params
outputs: {_OUTPUTS} @ octavo.outputs
beam_search: BeamSearchOutput BeamSearchSequence @ octavo.outputs
inputs: TextPrompt TokensPrompt PromptType=Prompt ExplicitEncoderDecoderPrompt @ octavo.prompts
inputs.data: TextPrompt TokensPrompt PromptType=Prompt ExplicitEncoderDecoderPrompt @ octavo.prompts
exceptions: VLLMValidationError=InvalidRequestError @ octavo.errors
engine.arg_utils: EngineArgs AsyncEngineArgs @ octavo.compat.engine_args
engine.llm_engine: LLMEngine @ octavo.llm_engine
engine.async_llm_engine: AsyncLLMEngine=AsyncLLM @ octavo.async_llm
v1.engine.llm_engine: LLMEngine @ octavo.llm_engine
v1.engine.async_llm: AsyncLLM @ octavo.async_llm
v1.metrics.reader: {_METRICS} @ octavo.client.request_counts
v1.sample.logits_processor: {_V1_PROCESSORS} process_dict_updates @ octavo.executor.batch_logits
v1.sample.logits_processor: RequestLogitsProcessor=LogitsProcessor @ octavo.params
v1.sample.logits_processor.interface: {_V1_PROCESSORS} @ octavo.executor.batch_logits
v1.sample.logits_processor.builtin: process_dict_updates @ octavo.executor.batch_logits
logits_process: LogitsProcessor @ octavo.params
entrypoints.llm: LLM @ octavo.llm
entrypoints.openai.api_server: main=serve @ octavo.compat.api_server
entrypoints.cli.main: main @ octavo.cli.main
entrypoints.chat_utils: load_chat_template=given_template @ octavo.text.template_files
entrypoints.chat_utils: resolve_hf_chat_template=resolve_chat_template @ octavo.compat.tokenizers
renderers.chat_utils: load_chat_template=given_template @ octavo.text.template_files
renderers.hf: resolve_chat_template @ octavo.compat.tokenizers
tokenizers: get_tokenizer cached_get_tokenizer=get_tokenizer TokenizerLike @ octavo.compat.tokenizers
tokenizers: cached_tokenizer_from_config @ octavo.compat.tokenizers
transformers_utils.tokenizer: get_tokenizer cached_get_tokenizer=get_tokenizer @ octavo.compat.tokenizers
lora.request: LoRARequest @ octavo.lora
config: PoolerConfig @ octavo.config
config: VllmConfig ModelConfig CacheConfig ParallelConfig @ octavo.loading.engine_config
config: SchedulerConfig DeviceConfig LoRAConfig @ octavo.loading.engine_config
config: {_CONFIGS} @ octavo.compat.settings
config.kv_transfer: KVTransferConfig @ octavo.compat.settings
sequence: Logprob @ octavo.outputs
logprobs: Logprob FlatLogprobs PromptLogprobs=FlatLogprobs SampleLogprobs=FlatLogprobs @ octavo.outputs
logger: init_logger @ octavo.compat.script_logger
usage.usage_lib: UsageContext @ octavo.compat.settings
platforms: current_platform @ octavo.compat.machine
distributed: cleanup_dist_env_and_memory destroy_model_parallel destroy_distributed_environment @ octavo.compat.machine
distributed.parallel_state: cleanup_dist_env_and_memory destroy_model_parallel @ octavo.compat.machine
distributed.parallel_state: destroy_distributed_environment @ octavo.compat.machine
multimodal.utils: fetch_image encode_image_url @ octavo.compat.script_pictures
multimodal.image: convert_image_mode @ octavo.compat.script_pictures
model_executor.models: ModelRegistry @ octavo.compat.absent
model_executor.utils: set_random_seed @ octavo.compat.script_tools
utils: FlexibleArgumentParser=Parser @ octavo.cli.parser
utils: random_uuid Counter get_open_port set_ulimit @ octavo.compat.script_tools
utils.argparse_utils: FlexibleArgumentParser=Parser @ octavo.cli.parser
utils.counter: Counter @ octavo.compat.script_tools
utils.network_utils: get_open_port @ octavo.compat.script_tools
utils.system_utils: set_ulimit @ octavo.compat.script_tools
utils.serial_utils: {_BYTES} @ octavo.compat.embedding_tensors
entrypoints.pooling.utils: {_ITEMS} @ octavo.compat.embedding_tensors
utils.print_utils: print_embeddings @ octavo.compat.script_tools
utils.torch_utils: set_random_seed @ octavo.compat.script_tools
utils.mem_utils: cleanup_dist_env_and_memory @ octavo.compat.machine
"""
ENVIRONMENT = "envs"
"""vLLM's module of environment variables."""
RUNNABLE = {"entrypoints.openai.api_server": "octavo.compat.api_server", "entrypoints.cli.main": "octavo.__main__"}
"""What `python -m vllm.NAME` runs."""


def _read() -> dict[str, dict[str, str]]:
    """For each module of vLLM's, of which each name is: `module:name` of Octavo's."""
    modules: dict[str, dict[str, str]] = {"": {}, ENVIRONMENT: {}}
    for line in _TABLE.strip().splitlines():
        module, _, rest = line.partition(":")
        names, _, home = rest.partition("@")
        for name in names.split():
            theirs, _, ours = name.partition("=")
            modules.setdefault(module, {})[theirs] = f"{home.strip()}:{ours or theirs}"
    for module in list(modules):
        while module:
            module = module.rpartition(".")[0]
            modules.setdefault(module, {})
    return modules


MODULES = _read()


def module_names(module: str) -> tuple[Callable[[str], Any], list[str]]:
    """A module's `__getattr__`, which loads a name when it is asked for, and its `__all__`."""
    full = f"vllm.{module}".rstrip(".")
    names = MODULES[module]

    def get(name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        if name not in names:
            there = ", ".join(sorted(names)) or "none"
            raise AttributeError(f"{full}.{name} has no counterpart in Octavo; there are {there}.")
        home, _, own = names[name].partition(":")
        value = getattr(importlib.import_module(home), own)
        setattr(sys.modules[full], name, value)
        return value

    return get, sorted(names)


class _Answers(Loader):
    """Makes a module of vLLM's, whose names are Octavo's."""

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return types.ModuleType(spec.name, f"Octavo in place of {spec.name}.")

    def exec_module(self, module: types.ModuleType) -> None:
        name = module.__name__.partition(".")[2]
        if name == ENVIRONMENT:
            module.__getattr__ = variable  # type: ignore[method-assign]
            return
        module.__getattr__, module.__all__ = module_names(name)  # type: ignore[method-assign,attr-defined]

    def get_code(self, name: str) -> types.CodeType | None:
        """What `python -m` runs. Raises ImportError for a module that is none to run."""
        home = RUNNABLE.get(name.partition(".")[2])
        spec = None if home is None else importlib.util.find_spec(home)
        if spec is None or spec.loader is None:
            raise ImportError(f"{name} is no program.")
        code: types.CodeType = spec.loader.get_code(home)  # type: ignore[attr-defined]
        return code


class _Finder(MetaPathFinder):
    """Finds the submodules of `vllm` that have an answer."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        root, _, name = fullname.partition(".")
        if root != "vllm" or not name or name not in MODULES:
            return None
        is_package = any(other.startswith(name + ".") for other in MODULES)
        return ModuleSpec(fullname, _Answers(), is_package=is_package)


def answer_submodules() -> None:
    """Have Python find vLLM's modules here."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
