"""One engine's figures, in a process of its own, as JSON on stdout:

    peers_worker.py ENGINE MODEL MODE THREADS [NAME=VALUE ...]

MODE is `steady` (decode and prefill, after a warm-up; then memory), `cold` (seconds of this process to its first
token), or `logprobs:FILE` (for bench/accuracy.py: FILE.json has token ids, and FILE.npy gets the log-probability of
each but the first). The options are Octavo's. Nothing of Octavo's is imported unless ENGINE is octavo, so that peers
run in environments of their own; every engine is kept to THREADS processors and told so by its own option.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

START = time.perf_counter()
TOKENS, PROMPT, PREFILL, CONTEXT = 64, 32, 1024, 2048
KV = 64 << 20
"""Bytes of cache that Octavo is given: so few that all of them are used."""


def prompts(count: int, length: int, salt: int) -> list[list[int]]:
    """Prompts that share no beginning, so that no cache helps anybody."""
    return [[(i * 37 + j * 11 + salt * 7919) % 40000 + 100 for j in range(length)] for i in range(count)]


class Engine:
    """An engine with a model. Its constructor takes the model's path, threads and options."""

    def generate(self, batch: list[list[int]], tokens: int) -> None:
        """Answer these prompts, all at once, with exactly so many greedy tokens each."""
        raise NotImplementedError

    def logprobs(self, ids: list[int]) -> Any:
        """Natural logarithms of the probability of each of `ids` but the first, given those before it."""
        raise NotImplementedError


class Octavo(Engine):
    def __init__(self, model: str, threads: int, **options: str) -> None:
        import logging

        logging.getLogger("octavo").addHandler(logging.NullHandler())
        from octavo import LLM

        self.llm = LLM(model, max_model_len=CONTEXT, kv_cache_memory=KV, skip_tokenizer_init=True, **options)

    def generate(self, batch: list[list[int]], tokens: int) -> None:
        from octavo import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        self.llm.generate(list(batch), params, use_tqdm=False)

    def logprobs(self, ids: list[int]) -> Any:
        from octavo import SamplingParams

        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        (output,) = self.llm.generate([ids], params, use_tqdm=False)
        assert output.prompt_logprobs is not None
        return [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True) if entry]


class Transformers(Engine):
    def __init__(self, model: str, threads: int, dtype: str = "bfloat16") -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self.model.generation_config.eos_token_id = None

    def generate(self, batch: list[list[int]], tokens: int) -> None:
        import torch

        ids = torch.tensor(batch)
        with torch.inference_mode():
            self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
            )

    def logprobs(self, ids: list[int]) -> Any:
        import torch

        with torch.inference_mode():
            logits = self.model(torch.tensor([ids])).logits[0, :-1].float()
        return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)


class IkLlama(Engine):
    """ik_llama.cpp through its Python package: its own core, and numpy in place of the package's sampling, which
    takes some 20 ms a token (`through_class` uses that too)."""

    SEQUENCES = 16

    def __init__(self, model: str, threads: int, through_class: str = "") -> None:
        from ik_llama_cpp import IkLlama
        from ik_llama_cpp import _ctypes_api as api
        from ik_llama_cpp._internals import IkContext, IkModel

        self.api = api
        self.of_class = IkLlama(model, n_ctx=CONTEXT, n_threads=threads, verbose=False) if through_class else None
        self.model = IkModel(model)

        def context(sequences: int) -> Any:
            # Its fast attention, which the class leaves out where a package is missing that it does not install, ends
            # in an assertion where a step has several sequences.
            options = {"n_seq_max": sequences, "flash_attn": sequences == 1}
            return IkContext(self.model, n_ctx=CONTEXT, n_threads=threads, **options)

        self.one, self.many = context(1), context(self.SEQUENCES)
        self.context = self.one

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Compute `(token, position, sequence, wants logits)` rows, so many at a time as it takes."""
        for first in range(0, len(rows), self.context._n_ubatch):
            part = rows[first : first + self.context._n_ubatch]
            batch = self.api.llama_batch_init(len(part), 0, 1)
            batch.n_tokens = len(part)
            for i, (token, position, sequence, wanted) in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
                batch.seq_id[i][0] = sequence
            status = self.context.decode(batch)
            self.api.llama_batch_free(batch)
            if status:
                raise RuntimeError(f"llama_decode: {status}")

    def logits(self, row: int) -> Any:
        import numpy

        return numpy.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context.ctx, row), (self.model.n_vocab,))

    def generate(self, batch: list[list[int]], tokens: int) -> None:
        if self.of_class is not None:
            if len(batch) > 1:
                raise NotImplementedError("the class answers one prompt at a time")
            # It stops at an end token, which these prompts do not lead to within so few.
            self.of_class.generate(batch[0], max_tokens=tokens)
            return
        self.context = self.one if len(batch) == 1 else self.many
        self.context.kv_cache_clear()
        last = []
        for sequence, prompt in enumerate(batch):
            self.decode([(token, i, sequence, i == len(prompt) - 1) for i, token in enumerate(prompt)])
            last.append(int(self.logits(-1).argmax()))
        for step in range(tokens - 1):
            self.decode([(token, len(batch[s]) + step, s, True) for s, token in enumerate(last)])
            last = [int(self.logits(s).argmax()) for s in range(len(batch))]

    def logprobs(self, ids: list[int]) -> Any:
        import numpy

        self.context = self.one
        self.context.kv_cache_clear()
        found, size = [], self.context._n_ubatch
        for first in range(0, len(ids), size):
            part = ids[first : first + size]
            self.decode([(token, first + i, 0, True) for i, token in enumerate(part)])
            for i in range(len(part)):
                if first + i + 1 < len(ids):
                    logits = self.logits(i).astype(numpy.float64)
                    top = logits.max()
                    found.append(logits[ids[first + i + 1]] - top - numpy.log(numpy.exp(logits - top).sum()))
        return found


class LlamaCpp(Engine):
    def __init__(self, model: str, threads: int) -> None:
        from llama_cpp import Llama

        self.llama = Llama(
            model,
            n_ctx=CONTEXT,
            n_batch=512,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
            logits_all=True,
        )

    def generate(self, batch: list[list[int]], tokens: int) -> None:
        if len(batch) > 1:
            raise NotImplementedError("its high-level interface answers one prompt at a time")
        self.llama.reset()
        self.llama.eval(batch[0])
        for _ in range(tokens - 1):
            self.llama.eval([self.llama.sample(temp=0.0)])
        self.llama.sample(temp=0.0)

    def logprobs(self, ids: list[int]) -> Any:
        import numpy

        self.llama.reset()
        self.llama.eval(ids)
        logits = numpy.array(self.llama.scores[: len(ids) - 1], dtype=numpy.float64)
        top = logits.max(1)
        chosen = logits[numpy.arange(len(logits)), ids[1:]]
        return chosen - top - numpy.log(numpy.exp(logits - top[:, None]).sum(1))


class OpenVINO(Engine):
    """OpenVINO GenAI, which reads GGUF itself: a pipeline for one prompt, the continuous-batching one for more."""

    def __init__(self, model: str, threads: int) -> None:
        import openvino_genai

        self.genai, self.path, self.options = openvino_genai, model, {"INFERENCE_NUM_THREADS": threads}
        self.one = openvino_genai.LLMPipeline(model, "CPU", PERFORMANCE_HINT="LATENCY", **self.options)
        self._many: Any = None

    @property
    def many(self) -> Any:
        if self._many is None:
            scheduler = self.genai.SchedulerConfig()
            scheduler.cache_size, scheduler.max_num_batched_tokens = 1, CONTEXT
            scheduler.enable_prefix_caching = False
            self._many = self.genai.ContinuousBatchingPipeline(self.path, scheduler, "CPU", self.options)
        return self._many

    def generate(self, batch: list[list[int]], tokens: int) -> None:
        import numpy
        import openvino

        config = self.genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        inputs = [openvino.Tensor(numpy.array([prompt])) for prompt in batch]
        if len(batch) == 1:
            self.one.generate(inputs[0], config)
        else:
            self.many.generate(inputs, [config] * len(batch))

    def logprobs(self, ids: list[int]) -> Any:
        import numpy
        import openvino

        config = self.genai.GenerationConfig(max_new_tokens=1, ignore_eos=True, do_sample=False, echo=True, logprobs=1)
        handle = self.many.add_request(0, openvino.Tensor(numpy.array([ids])), config)
        while self.many.has_non_finished_requests():
            self.many.step()
        (output,) = handle.read_all()
        return output.generated_log_probs[1 : len(ids)]


class VLLM(Engine):
    def __init__(self, model: str, threads: int) -> None:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB; its own choice is half of the memory
        from vllm import LLM

        self.llm = LLM(
            model,
            dtype="bfloat16",
            max_model_len=CONTEXT,
            enforce_eager=True,
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
        )

    def generate(self, batch: list[list[int]], tokens: int) -> None:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        self.llm.generate([{"prompt_token_ids": p} for p in batch], params, use_tqdm=False)


ENGINES: dict[str, Callable[..., Engine]] = {
    "octavo": Octavo,
    "transformers": Transformers,
    "openvino": OpenVINO,
    "ik_llama.cpp": IkLlama,
    "llama.cpp": LlamaCpp,
    "vllm": VLLM,
}


def seconds(engine: Engine, count: int, length: int, tokens: int, salt: int) -> float:
    batch = prompts(count, length, salt)
    start = time.perf_counter()
    engine.generate(batch, tokens)
    return time.perf_counter() - start


def steady(engine: Engine) -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    for count in (1, 16):
        try:
            seconds(engine, count, PROMPT, 3, count)
            first = seconds(engine, count, PROMPT, 1, count + 1)
            whole = seconds(engine, count, PROMPT, TOKENS + 1, count + 2)
            figures[f"decode, batch {count}"] = count * TOKENS / (whole - first)
        except NotImplementedError:
            figures[f"decode, batch {count}"] = None
    figures["prefill 1024"] = PREFILL / min(seconds(engine, 1, PREFILL, 1, s) for s in (100, 101))
    return figures


def memory_beside(model: str, options: dict[str, str]) -> float:
    """MB of this process's memory that are neither the weights' nor the cache's."""
    files = [Path(model)] if model.endswith(".gguf") else list(Path(model).glob("*.safetensors"))
    weights = sum(f.stat().st_size for f in files) / (2 if "quantization" in options else 1)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return (int(status["VmRSS"].split()[0]) * 1024 - weights - KV) / 1e6


def main() -> None:
    name, model, mode, threads = sys.argv[1:5]
    options = dict(option.split("=", 1) for option in sys.argv[5:])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    engine = ENGINES[name](model, int(threads), **options)
    figures: dict[str, float | None] = {}
    if mode == "cold":
        engine.generate(prompts(1, 8, 0), 1)
        figures["start to first token"] = time.perf_counter() - START
    elif mode.startswith("logprobs:"):
        import numpy

        where = mode.removeprefix("logprobs:")
        numpy.save(where + ".npy", numpy.array(engine.logprobs(json.loads(Path(where + ".json").read_text()))))
    else:
        figures = steady(engine)
        if name == "octavo":
            figures["memory beside weights and KV"] = memory_beside(model, options)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
