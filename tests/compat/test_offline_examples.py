"""Scripts that call vLLM's names as its examples for offline use do (0.33), one for each of these, with a tiny model.

In examples/: basic/offline_inference (basic, chat, generate, embed, score), deployment (llm_engine_example,
async_llm_streaming), observability/metrics, features (reset_kv, structured_outputs, lora), rl/pause_resume; those of
logits processors are in tests/executor/test_batch_logits.py.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.adapter_folders import write_adapter
from tests.server.conftest import write_tiny

CHAT = """
from vllm import LLM, EngineArgs
from vllm.outputs import RequestOutput
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
EngineArgs.add_cli_args(parser)
parser.set_defaults(model="nothing", enforce_eager=True)
group = parser.add_argument_group("Sampling parameters")
group.add_argument("--max-tokens", type=int)
group.add_argument("--top-k", type=int)
args = vars(parser.parse_args())
max_tokens, top_k = args.pop("max_tokens"), args.pop("top_k")
assert args["seed"] == 0 and args["tensor_parallel_size"] == 1
llm = LLM(**args)
params = llm.get_default_sampling_params()
params.max_tokens = max_tokens
conversation = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hello"}]
one = llm.chat(conversation, params, use_tqdm=False)
ten = llm.chat([conversation] * 10, params, use_tqdm=True)
assert isinstance(one[0], RequestOutput) and len(ten) == 10
assert llm.generate(["Hello"], params)[0].finished
print("DONE", len(one[0].outputs[0].token_ids))
"""

POOLING = """
from argparse import Namespace
from vllm import LLM, EngineArgs, PoolingParams
from vllm.config import PoolerConfig
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.print_utils import print_embeddings

parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
parser.set_defaults(runner="pooling", enforce_eager=True, trust_remote_code=True)
llm = LLM(**vars(parser.parse_args()))
for output in llm.embed(["Hello", "Good bye"]):
    print_embeddings(output.outputs.embedding)
print(llm.score("Hello", ["Hello", "Bye"])[0].outputs.score)
tokenizer = llm.get_tokenizer()
(output,) = llm.encode(["Hello"], pooling_task="token_embed")
assert len(tokenizer.convert_ids_to_tokens(output.prompt_token_ids)) == len(output.outputs.data) == 5
assert llm.llm_engine.vllm_config.model_config.hf_config.id2label
assert tokenizer.all_special_tokens == ["</s>"]
print("DONE")
"""

ENGINE = """
import argparse
from vllm import EngineArgs, LLMEngine, RequestOutput, SamplingParams
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = EngineArgs.add_cli_args(FlexibleArgumentParser(description="an engine by itself"))
engine = LLMEngine.from_engine_args(EngineArgs.from_cli_args(parser.parse_args()))
prompts = [
    ("A robot may not", SamplingParams(temperature=0.0, logprobs=1, prompt_logprobs=1)),
    ("To be or not", SamplingParams(temperature=0.8, top_k=5, presence_penalty=0.2)),
    ("What is it?", SamplingParams(n=2, temperature=0.8, top_p=0.95, frequency_penalty=0.1)),
]
number, done = 0, []
while prompts or engine.has_unfinished_requests():
    if prompts:
        engine.add_request(str(number), *prompts.pop(0))
        number += 1
    if number == 3:
        engine.reset_prefix_cache(reset_running_requests=True)
    done += [output for output in engine.step() if output.finished]
assert sorted(len(output.outputs) for output in done) == [1, 1, 2], done
print("DONE")
"""

METRICS = """
import sys
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.v1.metrics.reader import Counter, Gauge, Histogram, Vector

llm = LLM(model=sys.argv[2], disable_log_stats=False, gpu_memory_utilization=0.4)
llm.generate(["Hello, my name is", "The future of AI is"], SamplingParams(temperature=0.8, top_p=0.95))
seen = set()
for metric in llm.get_metrics():
    if isinstance(metric, Gauge | Counter):
        seen.add((metric.name, metric.value > 0))
    elif isinstance(metric, Histogram):
        seen.add((metric.name, metric.count == 2 and metric.buckets["+Inf"] == metric.count))
assert ("vllm:generation_tokens", True) in seen and ("vllm:e2e_request_latency_seconds", True) in seen
del llm
cleanup_dist_env_and_memory()
print("DONE")
"""

ASYNC = """
import asyncio, sys, time
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

async def main():
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=sys.argv[2], enforce_eager=True))
    text, delta = "", SamplingParams(max_tokens=8, seed=42, output_kind=RequestOutputKind.DELTA, ignore_eos=True)
    async for output in engine.generate(request_id="stream-1", prompt="Hello", sampling_params=delta):
        text += output.outputs[0].text
        if output.finished:
            break
    tokens, pauses = [], []

    async def write():
        params = SamplingParams(max_tokens=400, ignore_eos=True)
        async for output in engine.generate(request_id="test", prompt="Once", sampling_params=params):
            tokens.append(len(output.outputs[0].token_ids))
        return output

    async def control():
        while len(tokens) < 2:
            await asyncio.sleep(0.001)
        await engine.pause_generation(mode="keep")
        assert await engine.reset_prefix_cache(reset_running_requests=True)  # between two steps
        for _ in range(5):
            before = tokens[-1]
            await asyncio.sleep(0.1)
            pauses.append(tokens[-1] - before)
            assert await engine.is_paused()
            await engine.resume_generation()
            while tokens[-1] == before and tokens[-1] < 400:
                await asyncio.sleep(0.001)
            await engine.pause_generation(mode="keep")
        await engine.resume_generation()

    final, _ = await asyncio.gather(write(), control())
    assert final.finished and len(final.outputs[0].token_ids) == 400
    assert pauses == [0] * 5, pauses
    engine.shutdown()
    print("DONE")

asyncio.run(main())
"""

STRUCTURED = """
import sys
from enum import Enum
from pydantic import BaseModel
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

class Kind(str, Enum):
    sedan = "sedan"
    truck = "Truck"

class Car(BaseModel):
    kind: Kind

llm = LLM(model=sys.argv[2], max_model_len=200)
schemas = [
    StructuredOutputsParams(choice=["Positive", "Negative"]),
    StructuredOutputsParams(regex=r"[a-z]{3}@[a-z]{2}\\.com"),
    StructuredOutputsParams(json=Car.model_json_schema()),
    StructuredOutputsParams(grammar='root ::= "SELECT " column\\ncolumn ::= "a" | "b"'),
]
texts = []
for schema in schemas:
    params = SamplingParams(structured_outputs=schema, max_tokens=50)
    texts.append(llm.generate("Say it", sampling_params=params)[0].outputs[0].text)
assert texts[0] in ("Positive", "Negative") and texts[1].endswith(".com"), texts
assert texts[3] in ("SELECT a", "SELECT b"), texts
Car.model_validate_json(texts[2])
print("DONE")
"""

ADAPTERS = """
import sys
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.lora.request import LoRARequest

engine = LLMEngine.from_engine_args(
    EngineArgs(model=sys.argv[2], enable_lora=True, max_loras=1, max_lora_rank=8, max_cpu_loras=2, max_num_seqs=256)
)
greedy = SamplingParams(temperature=0.0, logprobs=1, max_tokens=8)
requests = [None, LoRARequest("sql-lora", 1, sys.argv[3]), LoRARequest("sql-lora2", 2, sys.argv[3])]
for number, request in enumerate(requests):
    engine.add_request(str(number), "To be", greedy, lora_request=request)
done = {}
while engine.has_unfinished_requests():
    done |= {output.request_id: output.outputs[0].token_ids for output in engine.step() if output.finished}
assert done["0"] != done["1"] == done["2"]
print("DONE")
"""

SCRIPTS = {
    "chat": (CHAT, ["--max-tokens", "4"]),
    "pooling": (POOLING, []),
    "engine": (ENGINE, []),
    "metrics": (METRICS, []),
    "async": (ASYNC, []),
    "structured": (STRUCTURED, []),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("examples") / "tiny")


def run(script: str, folder: Path, *arguments: str) -> None:
    path = folder / "script.py"
    path.write_text(script)
    command = [sys.executable, "-m", "octavo.compat.vllm", str(path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "DONE" in done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(name: str, tmp_path: Path, model: Path) -> None:
    script, arguments = SCRIPTS[name]
    run(script, tmp_path, "--model", str(model), *arguments)


def test_script_with_adapters(tmp_path: Path, model: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", model, 1)
    run(ADAPTERS, tmp_path, "--model", str(model), str(adapter))
