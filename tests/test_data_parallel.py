"""Replicas in Python: the answers of one engine, what a death means, and that nothing of them stays."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from octavo import LLM, AsyncLLM, BeamSearchParams, LoRARequest, PoolingParams, SamplingParams
from octavo.errors import EngineDeadError, InvalidRequestError, OctavoError
from tests.adapter_folders import write_adapter
from tests.server.conftest import write_tiny

pytestmark = pytest.mark.alone

WITHIN = 60.0
"""Seconds after which a test gives up."""
MEMORY = {"kv_cache_memory": "16MiB"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("replicas") / "tiny"))


def engines(parent: int | None = None) -> list[psutil.Process]:
    """The engines' processes of a process."""
    children = psutil.Process(parent).children()
    return [child for child in children if any("engine_process" in part for part in child.cmdline())]


def until(test: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN
    while not test():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def texts(outputs: list[Any]) -> list[list[str]]:
    return [[answer.text for answer in output.outputs] for output in outputs]


def test_answers_are_those_of_one_engine_in_their_order(model: str, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", Path(model), seed=3)
    adapter = LoRARequest("a", 1, str(tmp_path / "adapter"))
    one, two = (LLM(model, enable_lora=True, data_parallel_size=n, **MEMORY) for n in (1, 2))
    prompts = [f"{'x' * (i % 5)} prompt {i}" for i in range(12)]
    sampled = SamplingParams(max_tokens=6, temperature=1.0)
    beams = BeamSearchParams(beam_width=2, max_tokens=4)
    chats = [[{"role": "user", "content": f"hello {i}"}] for i in range(3)]

    def ask(llm: LLM) -> list[Any]:
        assert llm.add_lora(adapter)
        answers = [
            texts(llm.generate(prompts, sampled, use_tqdm=False)),
            texts(llm.generate(prompts[:3], SamplingParams(n=3, max_tokens=5), use_tqdm=False)),
            texts(llm.generate(prompts[:4], SamplingParams(max_tokens=40, stop="e"), use_tqdm=False)),
            texts(llm.chat(chats, SamplingParams(temperature=0, max_tokens=5), use_tqdm=False)),
            texts(llm.generate(prompts, SamplingParams(temperature=0), use_tqdm=False, lora_request=adapter)),
            [[b.text for b in output.sequences] for output in llm.beam_search(prompts[:2], beams)],
        ]
        assert llm.remove_lora(1)
        return answers

    assert ask(one) == ask(two)
    assert two.rank_weight_bytes() == one.rank_weight_bytes() * 2
    with pytest.raises(InvalidRequestError, match=r"prompt 1: .*or set data_parallel_size=1"):
        two.generate(prompts[:2], [sampled, SamplingParams(logits_processors=[lambda ids, row: row])], use_tqdm=False)
    with pytest.raises(InvalidRequestError, match="prompt 1: "):
        two.generate(prompts[:2], [sampled, SamplingParams(logit_bias={9999: 1.0})], use_tqdm=False)
    missing = LoRARequest("b", 2, str(tmp_path / "nothing"))
    with pytest.raises(OctavoError):
        two.add_lora(missing)
    assert texts(two.generate(prompts[:2], SamplingParams(temperature=0, max_tokens=2), use_tqdm=False))


def test_pooling(model: str) -> None:
    one, two = (LLM(model, task="embedding", data_parallel_size=n, **MEMORY) for n in (1, 2))
    prompts = ["one", "two words", "three words here", "four"]
    got = [[o.outputs.embedding for o in llm.embed(prompts, use_tqdm=False)] for llm in (one, two)]
    assert got[0] == got[1]
    scores = [[o.outputs.score for o in llm.score("one", prompts, use_tqdm=False)] for llm in (one, two)]
    assert scores[0] == scores[1]
    encoded = [llm.encode(prompts, PoolingParams(normalize=False), use_tqdm=False) for llm in (one, two)]
    assert all((a.outputs.data == b.outputs.data).all() for a, b in zip(*encoded, strict=True))


def test_a_killed_replica_is_an_error_for_its_own(model: str) -> None:
    """And of the next call nothing is lost, nor of the one after that."""
    llm = LLM(model, data_parallel_size=2, **MEMORY)
    first = engines()

    def kill() -> None:
        until(lambda: llm.engine._replicas._router.replicas[0].sequences)  # type: ignore[attr-defined]
        until(lambda: not llm.engine._replicas._router.replicas[0].prompt_tokens)  # type: ignore[attr-defined]
        first[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(EngineDeadError, match="the engine died while this request was running"):
        llm.generate(["a", "b", "c"], SamplingParams(max_tokens=2000, n=64, ignore_eos=True), use_tqdm=False)
    killer.join()
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    expected = texts(llm.generate(["a", "b", "c", "d"], params, use_tqdm=False))
    until(lambda: llm.engine._replicas.states == ["running"] * 2)  # type: ignore[attr-defined]
    assert texts(llm.generate(["a", "b", "c", "d"], params, use_tqdm=False)) == expected
    assert len({process.pid for process in engines()} & {process.pid for process in first}) == 1


def test_async(model: str) -> None:
    async def main() -> None:
        llm = AsyncLLM(model, data_parallel_size=2, **MEMORY)
        try:
            params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)

            async def answer(prompt: str) -> Any:
                async for output in llm.generate(prompt, params):
                    last = output
                return last.outputs[0].token_ids

            answers = await asyncio.gather(*(answer(f"{i % 3}") for i in range(9)))
            assert answers[:3] * 3 == answers
            reasons = set()
            async for output in llm.generate("x", SamplingParams(max_tokens=2000, ignore_eos=True), request_id="r"):
                await llm.abort("r")
                reasons |= {one.finish_reason for one in output.outputs}
            assert reasons == {None, "abort"}
        finally:
            llm.shutdown()
        with pytest.raises(EngineDeadError, match="shutdown"):
            await answer("late")

    asyncio.run(asyncio.wait_for(main(), 120))
    assert not engines()


def test_they_end_with_the_object(model: str) -> None:
    llm = LLM(model, data_parallel_size=2, **MEMORY)
    assert len(engines()) == 2
    del llm
    assert not engines()


PROGRAM = """
import sys
from octavo import LLM, SamplingParams
llm = LLM(sys.argv[1], data_parallel_size=2, kv_cache_memory="16MiB")
print("ready", flush=True)
how = sys.stdin.readline().strip()
if how == "raise":
    raise SystemExit(7)
if how == "work":
    print("working", flush=True)
    llm.generate(["x"] * 8, SamplingParams(max_tokens=2000, n=16, ignore_eos=True), use_tqdm=False)
"""


@pytest.mark.parametrize("how", ["end", "raise", "SIGKILL", "SIGINT"])
def test_they_end_with_the_process(model: str, tmp_path: Path, how: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    assert parent.stdout.readline() == "ready\n"
    started = engines(parent.pid)
    assert len(started) == 2
    parent.stdin.write("work\n" if how.startswith("SIG") else f"{how}\n")
    parent.stdin.flush()
    if how.startswith("SIG"):
        assert parent.stdout.readline() == "working\n"
        parent.send_signal(signal.Signals[how])
    status = parent.wait(WITHIN)
    assert {"end": status == 0, "raise": status == 7, "SIGKILL": status == -9, "SIGINT": status != 0}[how]
    until(lambda: not any(process.is_running() and process.status() != "zombie" for process in started))
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match="nothing"):
        LLM(str(tmp_path / "nothing"), data_parallel_size=2)
    assert not engines()
