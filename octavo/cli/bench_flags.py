"""Flags of `octavo bench`, those of vLLM's too."""

from typing import Any

from octavo.cli.flags import add_engine_flags, add_lora_flag, add_model_argument, whole
from octavo.cli.vllm_flags import add_table_flags
from octavo.vllm_options import rows_of

# What vLLM's have beside: name | kind | values that are accepted (as JSON; * for all) | why, or what to do.
_ALL = """
profile | switch | false | there is no profiler; leave it out
disable_detokenize | switch | * | answers are measured without their text
"""
_LATENCY = """
n | int | 1 | each prompt has one answer; give --batch-size
use_beam_search | switch | false | beams are not measured; leave it out
"""
_THROUGHPUT = """
backend | text | "vllm", "vllm-chat" | Octavo itself is measured; leave it out
n | int | 1 | each prompt has one answer; give --num-prompts
no_oversample | switch | * | prompts are not drawn twice unless a file has too few
enable_multimodal_chat | switch | false | prompts are text; leave it out
hf_max_batch_size | int | null | Octavo itself is measured; leave it out
hf_enable_torch_compile | switch | * | nothing is compiled
async_engine | switch | * | the engine is the same
prequeue_requests | switch | * | all requests wait from the start
lora_assignment | text | * | all requests have the one adapter
hf_subset | text | null | give a file with --dataset-path
hf_split | text | null | give a file with --dataset-path
hf_name | text | null | give a file with --dataset-path
prefix_repetition_prefix_len | int | null | give --prefix-len
prefix_repetition_suffix_len | int | null | give --input-len
prefix_repetition_num_prefixes | int | null | give --prefix-len
prefix_repetition_output_len | int | null | give --output-len
asr_min_audio_len_sec | float | * | prompts are text
asr_max_audio_len_sec | float | * | prompts are text
"""
_STARTUP = """
num_iters_warm | int | * | each run is a process of its own, whose files are cached after the first
"""
_SERVE = """
tokenizer | text | * | prompts are made without a tokenizer
tokenizer_mode | text | * | prompts are made without a tokenizer
skip_tokenizer_init | switch | * | prompts are made without a tokenizer
trust_remote_code | switch | * | prompts are made without a tokenizer
use_beam_search | switch | false | beams are not measured; leave it out
probe_request_rate | float | 0, 0.0 | there are no probes; leave it out
ramp_up_strategy | text | null | give --request-rate
ramp_up_start_rps | int | null | give --request-rate
ramp_up_end_rps | int | null | give --request-rate
lora_modules | list | null | give an adapter's name as --model
lora_assignment | text | * | one model is measured
plot_timeline | switch | * | --save FOLDER has a plot
timeline_itl_thresholds | text | * | --save FOLDER has a plot
plot_dataset_stats | switch | * | --save FOLDER has a plot
self_timed | switch | * | times are taken here
hf_subset | text | null | give a file with --dataset-path
hf_split | text | null | give a file with --dataset-path
hf_name | text | null | give a file with --dataset-path
no_stream | switch | false | streams are measured; leave it out
no_oversample | switch | * | prompts are not drawn twice unless a file has too few
disable_shuffle | switch | * | a file's prompts are taken in their order
"""


SENT = {
    "top_p": float,
    "top_k": whole,
    "min_p": float,
    "temperature": float,
    "logprobs": whole,
    "frequency_penalty": float,
    "presence_penalty": float,
    "repetition_penalty": float,
}
"""What is sent with each request, where it is given."""


def add_bench(commands: Any) -> None:
    """The command, with all that it measures."""
    bench = commands.add_parser("bench", help="measure start-up, latency, throughput, or a server under load")
    kinds = bench.add_subparsers(dest="kind", metavar="KIND", required=True)
    startup = kinds.add_parser("startup", help="seconds from a new process to its first token")
    latency = kinds.add_parser("latency", help="seconds for one batch, and the time of a token")
    throughput = kinds.add_parser("throughput", help="tokens a second for many requests at once")
    counts = {startup: "--num-iters-cold", latency: "--num-iters", throughput: "--num-iters"}
    for each, runs in counts.items():
        add_model_argument(each)
        each.add_argument("--runs", runs, type=whole, default=5, help="counted runs (default: 5)")
        each.add_argument(
            *("--warmups", "--num-iters-warmup", "--num-warmups"),
            type=whole, default=1, metavar="N", help="runs before these, which do not count (default: 1)",
        )  # fmt: skip
        each.add_argument("--json", action="store_true", help="print one JSON object")
        each.add_argument("--output-json", metavar="FILE", help="write that object into a file")
    for each, count in ((latency, 1), (throughput, 64)):
        names = ("--num-prompts", "--batch-size")
        each.add_argument(*names, type=whole, default=count, help=f"requests (default: {count})")
        each.add_argument("--input-len", type=whole, default=128, help="tokens of each prompt (default: 128)")
    latency.add_argument("--output-len", type=whole, default=64, help="tokens of each answer (default: 64)")
    throughput.add_argument("--output-len", type=whole, help="tokens of each answer (default: 64, or as the file has)")
    throughput.add_argument("--prefix-len", type=whole, default=0, help="tokens with which all prompts begin")
    _add_dataset(throughput)
    throughput.add_argument(
        "--custom-output-len", "--sharegpt-output-len", dest="output_len", type=whole, help="as --output-len"
    )
    for each, table in ((startup, _STARTUP), (latency, _LATENCY), (throughput, _THROUGHPUT)):
        add_lora_flag(each, "measure")
        add_table_flags(each, rows_of(_ALL + table, "bench"))
        add_engine_flags(each)
    throughput.add_argument("--lora-path", dest="lora", metavar="PATH", help="as --lora")
    _add_serve(kinds)


def _add_dataset(parser: Any) -> None:
    parser.add_argument(
        "--dataset-name", choices=("random", "sharegpt", "custom"), default="random",
        help="prompts: random tokens, or of a file: sharegpt (conversations), custom (lines of JSON with a prompt)",
    )  # fmt: skip
    parser.add_argument("--dataset-path", metavar="FILE", help="the file of sharegpt or custom")


def _add_serve(kinds: Any) -> None:
    serve = kinds.add_parser("serve", help="load on a running server, this one or another, by OpenAI's API")
    serve.add_argument("served", nargs="?", metavar="MODEL", help="the model's name there, as --model takes it")
    serve.add_argument("--url", "--base-url", help="where it is (default: http://127.0.0.1:8000)")
    serve.add_argument("--host", default="127.0.0.1", help="its host, where there is no --url (default: %(default)s)")
    serve.add_argument("--port", type=whole, default=8000, help="its port (default: %(default)s)")
    serve.add_argument("--endpoint", help="/v1/completions (default) or /v1/chat/completions")
    serve.add_argument(
        "--backend", default="openai", metavar="NAME", help="openai or vllm, for completions; openai-chat for chats"
    )
    serve.add_argument(
        "--model", "--served-model-name", help="the model's name there (default: the first that it lists)"
    )
    serve.add_argument("--api-key", help="sent as a bearer token")
    serve.add_argument("--header", nargs="*", default=[], metavar="NAME=VALUE", help="more headers")
    serve.add_argument("--insecure", action="store_true", help="take any certificate")
    serve.add_argument("--num-prompts", type=whole, default=200, help="requests (default: %(default)s)")
    serve.add_argument("--num-warmups", type=whole, default=0, help="requests before these, which do not count")
    serve.add_argument("--request-rate", type=float, help="requests a second, Poisson arrivals (default: all at once)")
    serve.add_argument(
        "--burstiness", type=float, default=1.0, help="1: Poisson arrivals; less: in bursts; more: evenly (default: 1)"
    )
    serve.add_argument("--max-concurrency", type=whole, default=64, help="most at a time (default: %(default)s)")
    lengths = {"--input-len": ("prompt", 128), "--output-len": ("answer", 64)}
    for flag, (what, default) in lengths.items():
        names = [
            flag,
            f"--random-{flag[2:]}",
            *(("--custom-output-len", "--sharegpt-output-len") if "out" in flag else ()),
        ]
        serve.add_argument(
            *names, type=whole, default=default, metavar="N", help=f"mean tokens of a {what} (default: {default})"
        )
    serve.add_argument(
        "--input-distribution", choices=("fixed", "uniform", "exponential"), default="fixed", help="of prompts' lengths"
    )
    serve.add_argument("--random-range-ratio", type=float, default=0.0, help="share of the mean by which lengths vary")
    serve.add_argument("--random-prefix-len", type=whole, default=0, help="tokens with which all prompts begin")
    _add_dataset(serve)
    for name, kind in SENT.items():
        serve.add_argument("--" + name.replace("_", "-"), type=kind, help="sent with each request")
    serve.add_argument(
        "--ignore-eos", action="store_true", default=True, help="answers have their full length (always)"
    )
    serve.add_argument("--extra-body", metavar="JSON", help="more keys of each request")
    serve.add_argument("--chat-template-kwargs", metavar="JSON", help="names for the chat template, sent with each")
    serve.add_argument("--request-id-prefix", default="bench-", help="of X-Request-Id (default: %(default)s)")
    serve.add_argument("--ready-check-timeout-sec", type=whole, default=0, help="wait so long for the server")
    serve.add_argument("--seed", type=whole, default=0, help="of prompts and arrivals (default: %(default)s)")
    _add_results(serve)
    add_table_flags(serve, rows_of(_ALL + _SERVE, "bench"))


def _add_results(serve: Any) -> None:
    serve.add_argument("--percentile-metrics", metavar="NAMES", help="of ttft, tpot, itl, e2el, which are told (all)")
    serve.add_argument("--metric-percentiles", default="50,90,99", metavar="N,N", help="default: %(default)s")
    serve.add_argument(
        "--goodput", nargs="+", default=[], metavar="NAME:MS", help="tell who was within ttft:MS, tpot:MS, e2el:MS"
    )
    serve.add_argument("--save", metavar="FOLDER", help="write results.json and a plot, times.svg, there")
    serve.add_argument("--save-result", action="store_true", help="write the result into a JSON file")
    serve.add_argument("--save-detailed", action="store_true", help="the same, with each request's times")
    serve.add_argument("--append-result", action="store_true", help="add to that file, a line each")
    serve.add_argument("--result-dir", metavar="FOLDER", help="where that file is (default: here)")
    serve.add_argument("--result-filename", metavar="NAME", help="its name (default: of model and time)")
    serve.add_argument("--metadata", nargs="*", default=[], metavar="KEY=VALUE", help="kept in the result")
    serve.add_argument("--label", help="kept in the result")
    serve.add_argument("--disable-tqdm", action="store_true", help="no progress bar")
    serve.add_argument("--json", action="store_true", help="print one JSON object")
