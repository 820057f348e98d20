"""vLLM's options that Octavo does not have, and what becomes of them: said to have no effect, or refused.

One table for Python's keywords and for flags. What EngineArgs or the server's options have by the same name is built,
and goes before an entry here.
"""

import functools
import json
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

from octavo.errors import ConfigError, shorten


@dataclass(frozen=True)
class VllmOption:
    """An option that vLLM has and Octavo has not.

    Args:
        name: as a keyword.
        kind: what it is: switch, int, float, text, list or object.
        of: `engine` for what Python has too, `server`, or `older` for what vLLM itself has no longer.
        taken: the values that mean what happens anyway; None for all.
        why: for people: why it means nothing here, or what to do instead.
        shorts: short spellings of the flag.
    """

    name: str
    kind: str
    of: str
    taken: tuple[Any, ...] | None
    why: str
    shorts: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def note(self, value: Any, label: str) -> str:
        """What is said of a value that is accepted, under the name `label`. Raises ConfigError for another."""
        if self.taken is not None and not any(type(value) is type(one) and value == one for one in self.taken):
            raise ConfigError(f"{label}={shorten(repr(value))} is not available: {self.why}.")
        return f"{label} has no effect: {self.why}"


# Name and short spellings | kind | values that are accepted (as JSON; * for all) | why, or what to do.
_ENGINE = """
tokenizer_mode | text | "auto", "hf", "mistral" | the tokenizer's own files decide; leave it out
hf_config_path | text | null | give the model's folder with its own config.json, or hf_overrides
code_revision | text | null | code of tokenizers is of the revision that revision or tokenizer_revision says
quantization_config | object | null | give quantization="int8" or "q4", or a checkpoint that is quantized already
allow_deprecated_quantization | switch | * | no way of storing weights is deprecated
enforce_eager | switch | * | there is no compilation to switch off
enable_return_routed_experts | switch | false | which experts a token went through is not told; leave it out
return_sampling_mask | switch | false | which tokens were left to draw from is not told; leave it out
use_fp64_gumbel | switch | * | tokens are drawn without Gumbel noise
enable_trace_replay | switch | false | steps cannot be replayed from a trace; leave it out
disable_sliding_window | switch | false | a max_model_len of the window's size has the same effect
disable_cascade_attn | switch | * | there is no cascade attention
enable_prompt_embeds | switch | false | prompts are text, token ids and media; leave it out
config_format | text | "auto", "hf", "mistral" | the format is recognised by the files; leave it out
model_class_overrides | object | null, {} | architectures are added as docs/extending.md shows
enable_sleep_mode | switch | * | LLM.sleep() can be called without it
sleep_mode_backend | text | * | there is no memory allocator to choose
sleep_mode_offload_cudagraph | switch | * | decode steps become graphs by themselves
sleep_preserve_parameter_names | list | * | weights stay where they are while the engine sleeps
enable_cumem_allocator | switch | * | there is no memory allocator to choose
enable_nccl_comm_suspend | switch | * | ranks meet without NCCL
model_impl | text | "auto", "vllm" | there is Octavo's own implementation of each model; leave it out
io_processor_plugin | text | null, "" | there are no such plugins; prepare prompts before they are sent
renderer_num_workers | int | * | texts are rendered and tokenized beside the event loop anyway
safetensors_load_strategy | text | * | files are mapped into memory and read once
safetensors_prefetch_num_threads | int | * | files are mapped into memory and read once
safetensors_prefetch_block_size | int | * | files are mapped into memory and read once
model_loader_extra_config | object | null, {} | weights are read from plain files; leave it out
ignore_patterns | list | * | only files that the model needs are downloaded
use_tqdm_on_load | switch | * | loading shows its own progress
pt_load_map_location | text | * | weights go to where the model runs
attention_backend | text | * | each device has one attention
attention_config -ac | object | * | each device has one attention
mamba_backend | text | * | each device has one implementation of state-space layers
mamba_ssu_algorithm | text | * | each device has one implementation of state-space layers
enable_mamba_cache_stochastic_rounding | switch | * | states are kept in float32
mamba_cache_philox_rounds | int | * | states are kept in float32
reasoning_parser_plugin | text | null, "" | formats of thoughts are entries of octavo/server/reasoning_formats.py
nnodes -n | int | 1 | for several machines give distributed_executor_backend="ray"
node_rank -r | int | 0 | for several machines give distributed_executor_backend="ray"
master_addr | text | * | ranks find each other by themselves
master_port | int | * | ranks find each other by themselves
cpu_distributed_timeout_seconds | int | * | distributed_timeout_seconds is for all ranks
numa_bind | switch | * | ranks are spread over NUMA nodes anyway; cpu_bind says how
numa_bind_nodes | list | null | give cpu_bind, which names processors
numa_bind_cpus | list | null | give cpu_bind, such as 0-3|4-7
device_ids | text | null | set CUDA_VISIBLE_DEVICES
decode_context_parallel_size -dcp | int | 1 | a sequence's cache is on one group of ranks; give tensor_parallel_size
dcp_comm_backend | text | * | a sequence's cache is on one group of ranks
dcp_q_replicate | switch | * | a sequence's cache is on one group of ranks
dcp_kv_cache_interleave_size | int | * | a sequence's cache is on one group of ranks
cp_kv_cache_interleave_size | int | * | a sequence's cache is on one group of ranks
prefill_context_parallel_size -pcp | int | 1 | a prompt is computed by one group of ranks; give tensor_parallel_size
data_parallel_rank -dpn | int | null | one server has all replicas: give data_parallel_size alone
data_parallel_start_rank -dpr | int | null, 0 | one server has all replicas: give data_parallel_size alone
data_parallel_size_local -dpl | int | null | one server has all replicas: give data_parallel_size alone
data_parallel_address -dpa | text | null | one server has all replicas: give data_parallel_size alone
data_parallel_rpc_port -dpp | int | * | replicas need no port
data_parallel_backend -dpb | text | "mp" | for several machines see docs/parallel.md
data_parallel_hybrid_lb -dph | switch | false | one server balances all replicas: give data_parallel_size alone
data_parallel_external_lb -dpe | switch | false | start a server for each replica, without it
data_parallel_multi_port_external_lb -dpm | switch | false | start a server for each replica, each with its own port
enable_hc_sp | switch | * | ranks share streams as tensor_parallel_size says
enable_expert_parallel -ep | switch | * | ranks share each expert's inner values, so that all have the same to do
enable_batch_sharded_sampling | switch | * | tokens are chosen once for all ranks
enable_ep_weight_filter | switch | * | a rank reads only what it computes anyway
all2all_backend | text | * | experts need no exchange of tokens
enable_dbo | switch | * | there is one batch a step
dbo_decode_token_threshold | int | * | there is one batch a step
dbo_prefill_token_threshold | int | * | there is one batch a step
ubatch_size | int | * | there is one batch a step
enable_shm_tensor_arena | switch | * | ranks share memory anyway
enable_elastic_ep | switch | false | the number of ranks stays as it is; leave it out
elastic_ep_max_dp_size | int | * | the number of ranks stays as it is
dp_sync_interval | int | * | replicas do not wait for each other
disable_nccl_for_dp_synchronization | switch | * | replicas do not wait for each other
enable_eplb | switch | * | all ranks have a part of each expert, so that none has more to do
eplb_config | object | * | all ranks have a part of each expert, so that none has more to do
expert_placement_strategy | text | * | all ranks have a part of each expert
max_parallel_loading_workers | int | * | weights are read in parallel by themselves
ray_workers_use_nsight | switch | false | there is no profiler for ranks; leave it out
disable_custom_all_reduce | switch | * | there is no all-reduce to replace
worker_cls | text | "auto" | ranks are Octavo's own; see docs/extending.md for what can be added
worker_extension_cls | text | null, "" | ranks are Octavo's own; see docs/extending.md for what can be added
enable_fault_tolerance | switch | * | an engine that dies is started again anyway
fault_tolerance_config | object | * | an engine that dies is started again anyway
num_gpu_blocks_override | int | * | use kv_cache_memory
prefix_caching_hash_algo | text | * | beginnings of prompts are known by blake2b
prefix_cache_retention_interval | int | * | blocks stay until others need the memory
kv_cache_dtype_skip_layers | list | null, [] | all layers have the cache that kv_cache_dtype says; leave it out
kv_sharing_fast_prefill | switch | * | layers that share a cache are computed as others are
swa_bounded_replay | switch | * | blocks that a window has passed are given back
mamba_cache_dtype | text | * | states are kept in float32
mamba_ssm_cache_dtype | text | * | states are kept in float32
mamba_block_size | int | * | states are not cut into blocks
prefix_match_unit | int | * | prompts are matched by blocks
mamba_cache_mode | text | * | prompts share no states
enable_mamba_shared_prefix_checkpoint | switch | * | prompts share no states
replayssm_buffer_len | int | * | states are not computed again
use_replayssm | switch | * | states are not computed again
offload_backend | text | * | weights stay where the device is
cpu_offload_gb | float | * | weights stay where the device is; of experts larger than memory, on disk (weights_on_disk)
cpu_offload_params | list | * | weights stay where the device is
offload_group_size | int | * | weights stay where the device is
offload_num_in_group | int | * | weights stay where the device is
offload_prefetch_step | int | * | weights stay where the device is
offload_params | list | * | weights stay where the device is
enable_mm_embeds | switch | * | models that take embeddings do so without it
mm_processor_cache_gb | float | * | what processors make is not cached; feature_cache_memory bounds what towers make
mm_processor_cache_type | text | * | what processors make is not cached, only what towers do
mm_shm_cache_max_object_size_mb | int | * | what processors make is not cached, only what towers do
mm_hasher_algorithm | text | * | media are known by blake2b
mm_encoder_only | switch | false | a model's towers run with the rest of it; leave it out
mm_encoder_tp_mode | text | * | towers are cut as the rest of the model is
mm_encoder_attn_backend | text | * | each device has one attention
mm_encoder_attn_dtype | text | null | towers compute as their weights are; leave it out
mm_encoder_fp8_scale_path | text | null | towers compute as their weights are; leave it out
mm_encoder_fp8_scale_save_path | text | null | towers compute as their weights are; leave it out
mm_encoder_fp8_scale_save_margin | float | * | towers compute as their weights are
interleave_mm_strings | switch | * | media stand where a message has them anyway
skip_mm_profiling | switch | * | nothing is profiled
video_pruning_rate | float | null, 0, 0.0 | films are not pruned; give media_io_kwargs with fewer frames
video_pruning_method | text | * | films are not pruned
mm_tensor_ipc | text | * | media reach the engine in one way
mm_processor_device | text | "auto", "cpu" | media are prepared by processors; leave it out
mm_ipc_gpu_memory_gb | float | * | media are prepared by processors
mm_device_do_normalize | switch | * | media are prepared by processors
fully_sharded_loras | switch | * | adapters lie where their weights do
lora_target_modules | list | null | an adapter changes what its files say; leave out of them what it should not
enable_lora_bias | switch | * | biases of adapters are always used
lora_extra_vocab_size | int | * | adapters bring as many tokens as they have
long_lora_scaling_factors | list | null | no adapter has scaling factors of its own; leave it out
enable_tower_connector_lora | switch | * | towers have adapters without it
specialize_active_lora | switch | * | decode steps become graphs by themselves
enable_mixed_moe_lora_format | switch | * | an adapter's tensors say how its experts are stored
enable_moe_shared_loras | switch | * | an adapter's tensors say how its experts are stored
max_lora_cls_labels | int | * | an adapter's head may have as many classes as it has
default_mm_loras | object | null | give each prompt its lora_request
show_hidden_metrics_for_version | text | * | no metrics are hidden
collect_detailed_traces | list | null | traces tell of requests, not of steps; leave it out
per_request_spec_decode_metrics | text | "none" | /metrics counts drafts of all requests together; leave it out
kv_cache_metrics | switch | * | /metrics has the share of blocks that are used, not how long they stay
kv_cache_metrics_sample | float | * | /metrics has the share of blocks that are used, not how long they stay
custom_histogram_buckets | object | null | the bounds of histograms are fixed; leave it out
cudagraph_metrics | switch | * | decode steps become graphs by themselves
enable_layerwise_nvtx_tracing | switch | * | layers are not traced
enable_mfu_metrics | switch | * | operations are not counted
enable_logging_iteration_details | switch | * | steps are not logged
jit_monitor_mode | text | * | nothing is compiled while it runs
jit_monitor_verbose | switch | * | nothing is compiled while it runs
max_num_scheduled_tokens | int | null | give max_num_batched_tokens
max_num_active_seqs | int | null | give max_num_seqs
max_num_queued_tokens | int | null | give the server max_queued_requests, or max_queued_sequences
long_prefill_token_threshold | int | * | long prompts are always computed in chunks of max_num_batched_tokens
long_prefill_token_threshold_adaptive | switch | * | long prompts are always computed in chunks
enable_chunked_prefill | switch | * | long prompts are always computed in chunks of max_num_batched_tokens
disable_chunked_mm_input | switch | * | towers compute each picture, film or sound whole
scheduler_cls | text | null | there is one scheduler; scheduling_policy says in which order it goes
scheduler_reserve_full_isl | switch | * | a prompt starts when there is room for its next chunk
watermark | float | * | blocks that run out preempt whoever would go last
prefill_schedule_interval | int | * | prompts are computed beside answers, in each step
disable_hybrid_kv_cache_manager | switch | * | there is one manager for all kinds of layers
async_scheduling | switch | * | scheduling takes far less time than a step
stream_interval | int | * | tokens are sent as they come, together where a client is slow
compilation_config -cc | object | * | nothing is compiled
cudagraph_capture_sizes | list | * | decode steps become graphs by themselves
max_cudagraph_capture_size | int | * | decode steps become graphs by themselves
optimization_level -O | text | * | nothing is compiled
performance_mode | text | * | there is one way of running
kernel_config | object | * | each device has one implementation of an operation
ir_op_priority | object | * | each device has one implementation of an operation
enable_flashinfer_autotune | switch | * | each device has one implementation of an operation
monokernel | switch | * | each device has one implementation of an operation
moe_backend | text | * | each device has one implementation of an operation
linear_backend | text | * | each device has one implementation of an operation
sparse_indexer_topk_backend | text | * | each device has one implementation of an operation
gdn_prefill_backend | text | * | each device has one implementation of an operation
kda_prefill_backend | text | * | each device has one implementation of an operation
kda_decode_backend | text | * | each device has one implementation of an operation
watermark_config | object | null | answers carry no watermark; leave it out
diffusion_config -dc | object | null | there are no models that answer by diffusion; leave it out
kv_events_config | object | null | there are no events of the cache; leave it out
ec_transfer_config | object | null | towers run in the engine; leave it out
ec_manager_config | object | * | feature_cache_memory bounds what is kept of towers
engram_config | object | null | there are no such models; leave it out
reasoning_config | object | null | thoughts have no budget of their own; give max_tokens
additional_config | object | null, {} | nothing reads it; leave it out
aux_output_config | object | null, {} | nothing is told beside answers; leave it out
profiler_config | object | null, {} | there is no profiler; `octavo bench` measures
watchdog_config | object | * | an engine that hangs or dies is started again anyway
weight_transfer_config | object | null | weights come from files; leave it out
aggregate_engine_logging | switch | * | statistics are of all replicas
fail_on_environ_validation | switch | * | variables of the environment are not checked
model_weights | text | null, "" | weights are read from the model's own folder; leave it out
served_model_name | list | * | outputs carry no model's name
max_num_queued_reqs | int | null | prompts wait as long as it takes; leave it out
disable_log_stats | switch | * | no statistics are logged; LLM.get_metrics has them
enable_log_requests | switch | * | requests are not logged
logging_config | object | * | logs go where Python's logging of the name octavo says
log_level | text | * | logs go where Python's logging of the name octavo says
log_config_file | text | * | logs go where Python's logging of the name octavo says
structured_outputs_config | object | * | grammars are checked and followed by llguidance
reasoning_parser | text | null, "" | answers are given whole, with their thoughts; leave it out
otlp_traces_endpoint | text | null | traces are of a server's requests; give it to octavo serve
enable_mm_processor_stats | switch | * | RequestOutput.metrics has a request's times
mamba_config | object | * | each device has one implementation of state-space layers
shutdown_timeout | int | * | shutdown() ends at once
"""

_SERVER = """
headless | switch | false | a server has its own HTTP process; for several machines see docs/parallel.md
grpc | switch | false | the server speaks HTTP; leave it out
grpc_port | int | null | the server speaks HTTP; leave it out
api_server_count -asc | int | * | one process speaks HTTP for all replicas, with threads for texts
trust_request_mm_kwargs | switch | * | a request's settings of media are always bounded
tool_parser_plugin | text | null, "" | formats of calls are entries of octavo/server/tool_formats.py
tool_strict_level | text | null, "auto" | a tool's own `strict`, and tool_choice, say what holds
tool_server | text | null | the server runs no tools; clients do
enable_prompt_tokens_details | switch | * | usage always says how many tokens were cached
enable_per_request_metrics | switch | false | a request's times are in the log and in /metrics, not in its answer
enable_log_deltas | switch | * | answers are logged whole
cohere_is_reasoning_model | switch | * | there is no /cohere/v2/chat
cohere_format | text | "cmd4" | the model's chat template decides
anthropic_disabled_thinking_effort | text | * | thinking is switched off as the chat template does it
log_error_stack | switch | * | errors of Octavo's own are always logged with their stack
tokens_only | switch | false | all endpoints are there; leave it out
enable_scale_out | switch | false | there are no such endpoints; leave it out
data_parallel_supervisor_port | int | * | replicas have no supervisor of their own
dp_supervisor_probe_interval_s | float | * | replicas have no supervisor of their own
dp_supervisor_probe_timeout_s | float | * | replicas have no supervisor of their own
dp_supervisor_probe_failure_threshold | int | * | replicas have no supervisor of their own
enable_request_id_headers | switch | * | answers always have X-Request-Id
h11_max_incomplete_event_size | int | * | headers may have 64 KiB; max_body_size bounds bodies
h11_max_header_count | int | * | headers may have 64 KiB
enable_offline_docs | switch | * | /openapi.json is there, and no pages that would load something from elsewhere
enable_flash_late_interaction | switch | * | scores are computed by the engine
enable_server_load_tracking | switch | * | /load always tells it
exclude_tools_when_tool_choice_none | switch | * | such prompts have no tools anyway
fingerprint_mode | text | "full", "hash", "none" | answers have no fingerprint
fingerprint_value | text | null | answers have no fingerprint; leave it out
enable_auto_tool_choice | switch | * | tools may always be chosen
"""

_OLDER = """
swap_space | float | * | preempted requests are recomputed, not swapped
max_seq_len_to_capture | int | * | decode steps become graphs by themselves
max_context_len_to_capture | int | * | decode steps become graphs by themselves
disable_async_output_proc | switch | * | outputs are processed in order
disable_log_requests | switch | * | requests are logged where enable_log_requests says so
use_v2_block_manager | switch | * | there is one block manager
num_scheduler_steps | int | * | each step is scheduled
multi_step_stream_outputs | switch | * | each step is scheduled
num_lookahead_slots | int | * | blocks for drafts are taken as they are needed
worker_use_ray | switch | * | distributed_executor_backend says what places ranks
preemption_mode | text | * | preempted requests are recomputed
guided_decoding_backend | text | * | llguidance does the grammars
guided_decoding_disable_fallback | switch | * | llguidance does the grammars
guided_decoding_disable_any_whitespace | switch | * | between JSON's tokens there is at most a space
guided_decoding_disable_additional_properties | switch | * | objects take no keys beyond their schema's
enable_reasoning | switch | * | reasoning_parser decides
tokenizer_pool_size | int | * | texts are tokenized beside the event loop
tokenizer_pool_type | text | * | texts are tokenized beside the event loop
tokenizer_pool_extra_config | object | * | texts are tokenized beside the event loop
disable_frontend_multiprocessing | switch | * | HTTP and the engine have a process each
max_num_partial_prefills | int | * | prompts share a step's tokens
max_long_partial_prefills | int | * | prompts share a step's tokens
cuda_graph_sizes | list | * | decode steps become graphs by themselves
rope_scaling | object | null | give hf_overrides={"rope_scaling": ...}
rope_theta | float | null | give hf_overrides={"rope_theta": ...}
enable_multimodal_encoder_data_parallel | switch | * | towers are cut as the rest of the model is
disable_mm_preprocessor_cache | switch | * | what processors make is not cached, only what towers do
num_speculative_tokens | int | null | give speculative_config
speculative_model | text | null | give speculative_config
qlora_adapter_name_or_path | text | null | give enable_lora, and the adapter in lora_modules
max_prompt_adapters | int | * | there are no prompt adapters
enable_prompt_adapter | switch | false | there are no prompt adapters; leave it out
disable_logprobs_during_spec_decoding | switch | * | log-probabilities are as they are without speculation
"""


def rows_of(table: str, of: str) -> Iterator[VllmOption]:
    """The options of a table: name and short spellings | kind | values that are accepted | why."""
    for line in filter(str.strip, table.splitlines()):
        names, kind, taken, why = (part.strip() for part in line.split(" | ", 3))
        name, *shorts = names.split()
        values = None if taken == "*" else tuple(json.loads(f"[{taken}]"))
        yield VllmOption(name, kind, of, values, why, tuple(shorts))


def all_rows() -> Iterator[VllmOption]:
    """Those of all tables, the oldest first."""
    for table, of in ((_OLDER, "older"), (_SERVER, "server"), (_ENGINE, "engine")):
        yield from rows_of(table, of)


@functools.cache
def vllm_options() -> dict[str, VllmOption]:
    """All of them by their names."""
    return {row.name: row for row in all_rows()}


def vllm_keywords(built: Container[str]) -> dict[str, VllmOption]:
    """Those that vLLM's Python classes take, without what is built."""
    return {name: one for name, one in vllm_options().items() if one.of != "server" and name not in built}
