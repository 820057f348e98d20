"""`octavo bench`: measurements on this machine, medians of several runs."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from octavo.batch_calls import final_only
from octavo.cli.flags import adapters_of, engine_args_of, engine_flags_of
from octavo.cli.run_bar import RunBar
from octavo.engine.messages import Failed
from octavo.errors import ConfigError, OctavoError
from octavo.llm import LLM
from octavo.outputs import RequestMetrics, RequestOutput
from octavo.params import SamplingParams


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _repeat(run: Callable[[], float], runs: int) -> dict[str, float]:
    bar = RunBar(runs + 1, 1)

    def timed() -> float:
        seconds = run()
        bar.step()
        bar.end_run()
        return seconds

    return _spread([timed() for _ in range(runs + 1)][1:])


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

    return {"first_token_seconds": _repeat(run, namespace.runs)}


def _random_prompts(llm: LLM, namespace: argparse.Namespace, salt: int) -> list[list[int]]:
    """Prompts of different token ids, so that no prefix is shared."""
    vocab, length = llm.engine.info.vocab_size, namespace.input_len
    return [
        [(7919 * (i + 1) + 104729 * salt + 31 * j) % vocab for j in range(length)] for i in range(namespace.num_prompts)
    ]


def _time_batch(llm: LLM, namespace: argparse.Namespace, salt: int, bar: RunBar) -> tuple[float, list[RequestMetrics]]:
    """Seconds of a batch's answers, and its requests' own times."""
    params = SamplingParams(temperature=0, max_tokens=namespace.output_len, ignore_eos=True, detokenize=False)
    prompts, adapter = _random_prompts(llm, namespace, salt), next(iter(adapters_of(namespace)), None)
    metrics = list[RequestMetrics]()
    start = time.perf_counter()
    for i, prompt in enumerate(prompts):
        llm.requests.add(str(i), prompt, final_only(params), adapter=adapter)
    while llm.requests.has_work:
        for output in llm.requests.step():
            if isinstance(output, Failed):
                raise output.exception()
            if isinstance(output, RequestOutput) and output.metrics:
                metrics.append(output.metrics)
        bar.step()
    seconds = time.perf_counter() - start
    bar.end_run()
    return seconds, metrics


def _bar(llm: LLM, namespace: argparse.Namespace) -> RunBar:
    """Of all runs, by the steps that a batch should take."""
    chunks = -(-namespace.num_prompts * namespace.input_len // llm.engine.args.max_num_batched_tokens)
    return RunBar(namespace.runs + 1, chunks + namespace.output_len)


def latency(namespace: argparse.Namespace) -> dict[str, Any]:
    """The time to a batch's first tokens, and from token to token."""
    llm = LLM.from_args(engine_args_of(namespace))
    whole, first, between = [], [], []
    bar = _bar(llm, namespace)
    for i in range(namespace.runs + 1):
        seconds, requests = _time_batch(llm, namespace, i, bar)
        firsts, lasts = [m.first_token_time or 0.0 for m in requests], [m.last_token_time or 0.0 for m in requests]
        whole.append(seconds)
        first.append(max(firsts) - min(m.arrival_time for m in requests))
        between.append((max(lasts) - max(firsts)) / max(1, namespace.output_len - 1))
    return {
        "seconds": _spread(whole[1:]),
        "first_token_seconds": _spread(first[1:]),
        "seconds_per_token": _spread(between[1:]),
    }


def throughput(namespace: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second for many requests at once."""
    llm = LLM.from_args(engine_args_of(namespace))
    bar = _bar(llm, namespace)
    seconds = [_time_batch(llm, namespace, i, bar)[0] for i in range(namespace.runs + 1)][1:]
    count = namespace.num_prompts
    return {
        "output_tokens_per_second": _spread([count * namespace.output_len / s for s in seconds]),
        "total_tokens_per_second": _spread([count * (namespace.output_len + namespace.input_len) / s for s in seconds]),
        "requests_per_second": _spread([count / s for s in seconds]),
    }


def run(namespace: argparse.Namespace) -> int:
    if namespace.runs < 1:
        raise ConfigError(f"--runs {namespace.runs} must be at least 1.")
    measured = {"startup": startup, "latency": latency, "throughput": throughput}[namespace.kind](namespace)
    if namespace.json:
        print(json.dumps(measured))
    else:
        for name, spread in measured.items():
            print(f"{name:26s} {spread['median']:10.4g}   ({spread['min']:.4g} to {spread['max']:.4g})")
    return 0
