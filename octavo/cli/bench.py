"""`octavo bench`: measurements on this machine, medians of several runs."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octavo.batch_calls import final_only
from octavo.cli.bench_prompts import file_prompts
from octavo.cli.flags import adapters_of, engine_args_of, engine_flags_of, take_model
from octavo.cli.load_spinner import loading
from octavo.cli.run_bar import RunBar
from octavo.engine.messages import Failed
from octavo.errors import ConfigError, OctavoError
from octavo.llm import LLM
from octavo.outputs import RequestOutput
from octavo.params import SamplingParams

OUTPUT_LEN = 64
"""Tokens of an answer, where nothing says how many."""


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _repeat(run: Callable[[], float], runs: int, warmups: int) -> dict[str, float]:
    bar = RunBar(warmups + runs, 1)

    def timed() -> float:
        seconds = run()
        bar.step()
        bar.end_run()
        return seconds

    return _spread([timed() for _ in range(warmups + runs)][warmups:])


def startup(namespace: argparse.Namespace) -> dict[str, Any]:
    """Seconds from starting a process to the first byte of its answer."""
    engine_args_of(namespace)  # what is wrong with them is said before anything starts
    flags = engine_flags_of(namespace)
    flags += [f"--lora={namespace.lora}"] if namespace.lora is not None else []
    command = [
        sys.executable,
        "-m",
        "octavo",
        "generate",
        "The capital of France is",
        "--raw",
        "--max-tokens",
        "4",
        *flags,
    ]

    def run() -> float:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - start
        _, errors = process.communicate()
        if process.returncode or not first:
            raise OctavoError(f"the measured process failed: {errors.decode(errors='replace').strip()[-400:]}")
        return seconds

    return {"first_token_seconds": _repeat(run, namespace.runs, namespace.warmups)}


def _random_prompts(llm: LLM, namespace: argparse.Namespace, salt: int) -> list[Any]:
    """Prompts of different token ids, so that no prefix is shared but the one that is asked for."""
    vocab, length = llm.engine.info.vocab_size, namespace.input_len
    prefix = [(17 * j + 1) % vocab for j in range(getattr(namespace, "prefix_len", 0))]
    return [
        prefix + [(7919 * (i + 1) + 104729 * salt + 31 * j) % vocab for j in range(length)]
        for i in range(namespace.num_prompts)
    ]


def _time_batch(llm: LLM, namespace: argparse.Namespace, salt: int, bar: RunBar) -> tuple[float, list[RequestOutput]]:
    """Seconds of a batch's answers, and these."""
    prompts, lengths = _random_prompts(llm, namespace, salt), [namespace.output_len or OUTPUT_LEN]
    if of_file := file_prompts(namespace) if hasattr(namespace, "dataset_name") else None:
        prompts = [{"prompt": text, "cache_salt": str(salt)} for text, _ in of_file]
        if namespace.output_len is None:
            tokenizer = llm.get_tokenizer()
            lengths = [OUTPUT_LEN if answer is None else max(1, len(tokenizer.encode(answer))) for _, answer in of_file]
    lengths = lengths * len(prompts) if len(lengths) == 1 else lengths
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False) for n in lengths]
    adapter, outputs = next(iter(adapters_of(namespace)), None), list[RequestOutput]()
    start = time.perf_counter()
    for i, (prompt, each) in enumerate(zip(prompts, params, strict=True)):
        llm.requests.add(str(i), prompt, final_only(each), adapter=adapter)
    while llm.requests.has_work:
        for output in llm.requests.step():
            if isinstance(output, Failed):
                raise output.exception()
            if isinstance(output, RequestOutput):
                outputs.append(output)
        bar.step()
    seconds = time.perf_counter() - start
    bar.end_run()
    return seconds, outputs


def _load(namespace: argparse.Namespace) -> LLM:
    args = engine_args_of(namespace)
    with loading(args.model):
        return LLM.from_args(args)


def _bar(llm: LLM, namespace: argparse.Namespace) -> RunBar:
    """Of all runs, by the steps that a batch should take."""
    chunks = -(-namespace.num_prompts * namespace.input_len // llm.engine.args.max_num_batched_tokens)
    return RunBar(namespace.warmups + namespace.runs, chunks + (namespace.output_len or OUTPUT_LEN))


def latency(namespace: argparse.Namespace) -> dict[str, Any]:
    """The time to a batch's first tokens, and from token to token."""
    llm = _load(namespace)
    whole, first, between = [], [], []
    skipped, bar = namespace.warmups, _bar(llm, namespace)
    for i in range(skipped + namespace.runs):
        seconds, outputs = _time_batch(llm, namespace, i, bar)
        requests = [output.metrics for output in outputs if output.metrics]
        firsts, lasts = [m.first_token_time or 0.0 for m in requests], [m.last_token_time or 0.0 for m in requests]
        whole.append(seconds)
        first.append(max(firsts) - min(m.arrival_time for m in requests))
        between.append((max(lasts) - max(firsts)) / max(1, namespace.output_len - 1))
    return {
        "seconds": _spread(whole[skipped:]),
        "first_token_seconds": _spread(first[skipped:]),
        "seconds_per_token": _spread(between[skipped:]),
    }


def throughput(namespace: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second for many requests at once."""
    llm = _load(namespace)
    bar = _bar(llm, namespace)
    rates: dict[str, list[float]] = {"output_tokens": [], "total_tokens": [], "requests": []}
    for i in range(namespace.warmups + namespace.runs):
        seconds, outputs = _time_batch(llm, namespace, i, bar)
        answered = sum(len(output.outputs[0].token_ids) for output in outputs)
        asked = sum(len(output.prompt_token_ids or []) for output in outputs)
        if i >= namespace.warmups:
            rates["output_tokens"].append(answered / seconds)
            rates["total_tokens"].append((answered + asked) / seconds)
            rates["requests"].append(len(outputs) / seconds)
    return {f"{name}_per_second": _spread(values) for name, values in rates.items()}


def run(namespace: argparse.Namespace) -> int:
    if namespace.runs < 1:
        raise ConfigError(f"--runs {namespace.runs} must be at least 1.")
    if namespace.warmups < 0:
        raise ConfigError(f"--warmups {namespace.warmups} must be at least 0.")
    take_model(namespace, namespace.served)
    if getattr(namespace, "dataset_name", None):
        file_prompts(namespace)  # what is wrong with its file is said before a model is loaded
    measured = {"startup": startup, "latency": latency, "throughput": throughput}[namespace.kind](namespace)
    if namespace.output_json:
        try:
            Path(namespace.output_json).write_text(json.dumps(measured, indent=2) + "\n")
        except OSError as error:
            raise ConfigError(f"--output-json {namespace.output_json} cannot be written: {error}") from error
    if namespace.json:
        print(json.dumps(measured))
    else:
        for name, spread in measured.items():
            print(f"{name:26s} {spread['median']:10.4g}   ({spread['min']:.4g} to {spread['max']:.4g})")
    return 0
