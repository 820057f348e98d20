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
from octavo.cli.bench_shares import MATRIX_SHARE, MEMORY_SHARE, Shares, shares_of
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
Timed = tuple[float, list[RequestOutput], int]


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


def _time_batch(llm: LLM, namespace: argparse.Namespace, salt: int, bar: RunBar) -> Timed:
    """Seconds of a batch's answers, these, and how many steps they took."""
    prompts, lengths = _random_prompts(llm, namespace, salt), [namespace.output_len or OUTPUT_LEN]
    if of_file := file_prompts(namespace) if hasattr(namespace, "dataset_name") else None:
        prompts = [{"prompt": text, "cache_salt": str(salt)} for text, _ in of_file]
        if namespace.output_len is None:
            tokenizer = llm.get_tokenizer()
            lengths = [OUTPUT_LEN if answer is None else max(1, len(tokenizer.encode(answer))) for _, answer in of_file]
    lengths = lengths * len(prompts) if len(lengths) == 1 else lengths
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False) for n in lengths]
    adapter, outputs = next(iter(adapters_of(namespace)), None), list[RequestOutput]()
    start, steps = time.perf_counter(), 0
    for i, (prompt, each) in enumerate(zip(prompts, params, strict=True)):
        llm.requests.add(str(i), prompt, final_only(each), adapter=adapter)
    while llm.requests.has_work:
        for output in llm.requests.step():
            if isinstance(output, Failed):
                raise output.exception()
            if isinstance(output, RequestOutput):
                outputs.append(output)
        bar.step()
        steps += 1
    seconds = time.perf_counter() - start
    bar.end_run()
    return seconds, outputs, steps


def _load(namespace: argparse.Namespace) -> LLM:
    args = engine_args_of(namespace)
    with loading(args.model):
        return LLM.from_args(args)


def _bar(llm: LLM, namespace: argparse.Namespace) -> RunBar:
    """Of all runs, by the steps that a batch should take."""
    chunks = -(-namespace.num_prompts * namespace.input_len // llm.engine.args.max_num_batched_tokens)
    return RunBar(namespace.warmups + namespace.runs, chunks + (namespace.output_len or OUTPUT_LEN))


def _results(shares: Shares | None, runs: list[dict[str, float]]) -> dict[str, Any]:
    """What runs gave by name, and what the shares among it are of."""
    named = {name: _spread([run[name] for run in runs]) for name in runs[0] if all(name in run for run in runs)}
    return named | {name: _spread([value]) for name, value in (shares.measured if shares else {}).items()}


def latency(namespace: argparse.Namespace) -> dict[str, Any]:
    """The time to a batch's first tokens, and from token to token; the shares that these reach."""
    llm = _load(namespace)
    shares, runs, bar = shares_of(llm), list[dict[str, float]](), _bar(llm, namespace)
    for i in range(namespace.warmups + namespace.runs):
        seconds, outputs, _ = _time_batch(llm, namespace, i, bar)
        requests = [output.metrics for output in outputs if output.metrics]
        firsts, lasts = [m.first_token_time or 0.0 for m in requests], [m.last_token_time or 0.0 for m in requests]
        first = max(firsts) - min(m.arrival_time for m in requests)
        between = (max(lasts) - max(firsts)) / max(1, namespace.output_len - 1)
        runs.append({"seconds": seconds, "first_token_seconds": first, "seconds_per_token": between})
        if shares is not None:
            runs[-1] |= {MATRIX_SHARE: shares.of_prompts(outputs, first)}
            if between > 0 and len(outputs) <= llm.engine.args.max_num_seqs:
                runs[-1] |= {MEMORY_SHARE: shares.of_decode(outputs, between)}
    return _results(shares, runs[namespace.warmups :])


def throughput(namespace: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second for many requests at once, and the shares that these reach."""
    llm = _load(namespace)
    shares, runs, bar = shares_of(llm), list[dict[str, float]](), _bar(llm, namespace)
    for i in range(namespace.warmups + namespace.runs):
        seconds, outputs, steps = _time_batch(llm, namespace, i, bar)
        answered = sum(len(output.outputs[0].token_ids) for output in outputs)
        asked = sum(len(output.prompt_token_ids or []) for output in outputs)
        counts = {"output_tokens": answered, "total_tokens": answered + asked, "requests": len(outputs)}
        runs.append({f"{name}_per_second": count / seconds for name, count in counts.items()})
        if shares is not None:
            runs[-1] |= zip((MEMORY_SHARE, MATRIX_SHARE), shares.of_run(outputs, steps, seconds), strict=True)
    return _results(shares, runs[namespace.warmups :])


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
            print(f"{name:34s} {spread['median']:10.4g}   ({spread['min']:.4g} to {spread['max']:.4g})")
    return 0
