"""One table of behaviours for every way to an engine: computed by the caller, in a thread, in another process."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from octavo.client.async_requests import AsyncRequests
from octavo.client.engine_client import EngineClient
from octavo.client.local_client import LocalRequests, ThreadClient
from octavo.client.output_processor import processor_of
from octavo.client.process_client import ProcessClient
from octavo.client.replica_engine import ReplicaEngine
from octavo.client.replicas import Replicas
from octavo.config import EngineArgs
from octavo.engine.messages import Failed
from octavo.errors import EngineDeadError, InvalidRequestError, OctavoError
from octavo.launch import launch_engine
from octavo.params import PoolingParams, RequestOutputKind, SamplingParams, StructuredOutputsParams
from octavo.text.checked_prompt import CheckedPrompt
from octavo.text.tokenizer import Tokenizer
from tests.server.conftest import write_tiny

PROMPT = CheckedPrompt("This is a prompt. ", list(range(40, 60)))
DELTA, FINAL = RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY


def params(**values: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 12, "ignore_eos": True, "seed": 5, **values})


TABLE: dict[str, SamplingParams | PoolingParams] = {
    "plain": params(),
    "delta": params(output_kind=DELTA),
    "final": params(output_kind=FINAL),
    "several": params(n=3, output_kind=DELTA),
    "best of": params(n=2, best_of=4),
    "logprobs": params(logprobs=2, output_kind=DELTA),
    "prompt logprobs": params(prompt_logprobs=1, logprobs=0),
    "no text": params(detokenize=False),
    "grammar": params(structured_outputs=StructuredOutputsParams(regex="[0-9]{6}")),
    "refused grammar": params(structured_outputs=StructuredOutputsParams(regex="[0-9")),
    "out of vocabulary": params(logit_bias={9999: 1.0}),
    "priority": params(max_tokens=1),
}
PRIORITIES = {"priority": 3}
LONG = params(max_tokens=1900, n=64, output_kind=DELTA)
"""Not done before somebody ends it."""


def stopping(text: str) -> dict[str, SamplingParams]:
    """Requests with stop strings of this text, which one without any gave."""
    stop = text[3:5]
    return {
        "stop": params(stop=stop),
        "included stop": params(stop=stop, include_stop_str_in_output=True, output_kind=DELTA),
        "stop of one of several": params(n=3, stop=stop, output_kind=FINAL),
    }


def ended(outputs: list[Any], request: SamplingParams | PoolingParams) -> Any:
    """What a request's outputs say, put together, however they were cut."""
    assert isinstance(request, SamplingParams)
    answers: dict[int, Any] = {}
    for output in outputs if request.output_kind is DELTA else outputs[-1:]:
        for c in output.outputs:
            answer = answers.setdefault(c.index, {"text": "", "token_ids": [], "logprobs": []})
            answer["text"] += c.text
            answer["token_ids"] += c.token_ids
            answer["logprobs"] += c.logprobs or []
            answer["end"] = (c.finish_reason, c.stop_reason)
    prompt_logprobs = next((o.prompt_logprobs for o in outputs if o.prompt_logprobs is not None), None)
    return sorted(answers.items()), prompt_logprobs, outputs[-1].finished


Run = Callable[[str, SamplingParams | PoolingParams], Awaitable[Any]]


async def results(run: Run) -> dict[str, Any]:
    """What every request of the table ends with: all at a time, and then those with stop strings."""

    async def one(name: str, request: SamplingParams | PoolingParams) -> Any:
        try:
            return ended(await run(name, request), request)
        except OctavoError as error:
            return type(error), str(error)

    async def several(requests: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(requests, await asyncio.gather(*(one(*item) for item in requests.items())), strict=True))

    ends = await several(TABLE)
    return {**ends, **await several(stopping(ends["plain"][0][0][1]["text"]))}


def through(requests: AsyncRequests, client: EngineClient, tokenizer: Tokenizer | None) -> Run:
    async def run(name: str, request: SamplingParams | PoolingParams) -> list[Any]:
        processor = processor_of(name, PROMPT, request, tokenizer)
        return [o async for o in requests.generate(client, processor, PRIORITIES.get(name, 0))]

    return run


@asynccontextmanager
async def thread(args: EngineArgs) -> AsyncIterator[tuple[AsyncRequests, ThreadClient]]:
    requests = AsyncRequests()
    client = ThreadClient(launch_engine(args), requests.on_outputs, requests.fail_all)
    try:
        yield requests, client
    finally:
        client.close()


@asynccontextmanager
async def process(args: EngineArgs) -> AsyncIterator[tuple[AsyncRequests, ProcessClient]]:
    requests = AsyncRequests()
    client = ProcessClient(args, requests.on_outputs, requests.fail_all)
    try:
        await client.start()
        yield requests, client
    finally:
        await client.stop()


@asynccontextmanager
async def replicas(args: EngineArgs) -> AsyncIterator[tuple[AsyncRequests, Replicas]]:
    requests = AsyncRequests()
    client = Replicas(dataclasses.replace(args, data_parallel_size=2), requests.on_outputs)
    try:
        await client.start()
        yield requests, client
        async with asyncio.timeout(60):
            while client.has_work:  # what was aborted last may still be said to have ended
                await asyncio.sleep(0.01)
        assert not any(replica.work for replica in client._router.replicas)
    finally:
        await client.stop()


@asynccontextmanager
async def replica_thread(args: EngineArgs) -> AsyncIterator[tuple[AsyncRequests, ReplicaEngine]]:
    requests = AsyncRequests()
    client = ReplicaEngine(dataclasses.replace(args, data_parallel_size=2), requests.on_outputs)
    try:
        yield requests, client
    finally:
        client.close()


CLIENTS: dict[str, Any] = {
    "thread": thread,
    "process": process,
    "replicas": replicas,
    "replicas in a thread": replica_thread,
}


@pytest.fixture(scope="module")
def args(tmp_path_factory: pytest.TempPathFactory) -> EngineArgs:
    folder = write_tiny(tmp_path_factory.mktemp("clients") / "tiny")
    return EngineArgs(str(folder), dtype="float32", kv_cache_memory="16MiB")


@pytest.fixture(scope="module")
def tokenizer(args: EngineArgs) -> Tokenizer | None:
    return launch_engine(args).tokenizer


@pytest.fixture(scope="module")
def local(args: EngineArgs) -> dict[str, Any]:
    """What the caller's own steps give: each request by itself, so that those beside it are seen to change nothing."""
    requests = LocalRequests(launch_engine(args))

    async def run(name: str, request: SamplingParams | PoolingParams) -> list[Any]:
        requests.add(name, PROMPT, request, PRIORITIES.get(name, 0))
        outputs = list[Any]()
        while requests.has_work:
            outputs += requests.step()
        if isinstance(outputs[-1], Failed):
            raise outputs[-1].exception()
        assert not requests.engine.has_work
        return outputs

    return asyncio.run(results(run))


def test_the_table_is_what_it_says(local: dict[str, Any]) -> None:
    ((_, plain),) = local["plain"][0]
    text = plain["text"]
    assert len(plain["token_ids"]) == 12
    for name in ("delta", "final"):
        assert local[name] == local["plain"]
    assert [index for index, _ in local["several"][0]] == [0, 1, 2]
    assert [index for index, _ in local["best of"][0]] == [0, 1]
    assert len(local["logprobs"][0][0][1]["logprobs"]) == 12
    assert len(local["prompt logprobs"][1]) == len(PROMPT.token_ids)
    assert local["no text"][0][0][1]["text"] == ""
    assert local["grammar"][0][0][1]["text"].isdigit()
    assert {local[n][0] for n in ("refused grammar", "out of vocabulary", "priority")} == {InvalidRequestError}
    stop = text[3:5]
    assert local["stop"][0][0][1]["text"] == text[: text.index(stop)]
    assert local["included stop"][0][0][1]["text"] == text[: text.index(stop) + 2]
    assert local["stop"][0][0][1]["end"] == ("stop", stop)
    assert len(local["stop of one of several"][0]) == 3


@pytest.mark.parametrize("name", CLIENTS)
def test_every_client_gives_the_same(
    name: str, args: EngineArgs, tokenizer: Tokenizer | None, local: dict[str, Any]
) -> None:
    async def main() -> dict[str, Any]:
        async with CLIENTS[name](args) as (requests, client):
            ends = await results(through(requests, client, tokenizer))
            assert len(requests) == 0
            return ends

    assert asyncio.run(main()) == local


@pytest.mark.parametrize("name", CLIENTS)
def test_abort_and_closing(name: str, args: EngineArgs, tokenizer: Tokenizer | None) -> None:
    """An abort is told to its reader; who closes a generator has ended the request, and the id may be used again."""

    async def main() -> None:
        async with CLIENTS[name](args) as (requests, client):
            for _ in range(2):
                processor = processor_of("r", PROMPT, LONG, tokenizer)
                outputs = requests.generate(client, processor)
                first = asyncio.ensure_future(anext(outputs))
                await asyncio.sleep(0)
                with pytest.raises(InvalidRequestError, match="already in use"):
                    await anext(requests.generate(client, processor))
                await first
                await outputs.aclose()
                assert len(requests) == 0
            reasons = set()
            async for output in requests.generate(client, processor_of("r", PROMPT, LONG, tokenizer)):
                requests.abort(client, "r")
                reasons |= {answer.finish_reason for answer in output.outputs}
            assert reasons == {None, "abort"}

    asyncio.run(asyncio.wait_for(main(), 120))


@pytest.mark.parametrize("name", CLIENTS)
def test_an_id_that_is_used_again_at_once(name: str, args: EngineArgs, tokenizer: Tokenizer | None) -> None:
    """Nothing that the engine still says of a closed request reaches the next one of its id."""
    short = params(max_tokens=20)

    async def main() -> None:
        async with CLIENTS[name](args) as (requests, client):

            async def answer(request_id: str) -> tuple[list[int], str | None]:
                outputs = requests.generate(client, processor_of(request_id, PROMPT, short, tokenizer))
                (only,) = [output.outputs[0] async for output in outputs if output.finished]
                return only.token_ids, only.finish_reason

            expected = await answer("alone")
            for _ in range(10):
                closed = requests.generate(client, processor_of("r", PROMPT, LONG, tokenizer))
                await anext(closed)
                await closed.aclose()
                assert await answer("r") == expected

    asyncio.run(asyncio.wait_for(main(), 120))


@pytest.mark.parametrize("name", CLIENTS)
def test_a_dead_engine(name: str, args: EngineArgs, tokenizer: Tokenizer | None) -> None:
    """All who wait are told, and so is who comes afterwards."""

    async def main() -> None:
        async with CLIENTS[name](args) as (requests, client):

            async def read(request_id: str) -> None:
                async for _ in requests.generate(client, processor_of(request_id, PROMPT, LONG, tokenizer)):
                    started.set()

            started = asyncio.Event()
            reading = asyncio.create_task(read("first"))
            await started.wait()
            if isinstance(client, ThreadClient | ReplicaEngine):
                await asyncio.to_thread(client.close)
            else:
                await client.stop()
            for waiting in (reading, read("later")):
                with pytest.raises(EngineDeadError):
                    await waiting

    asyncio.run(asyncio.wait_for(main(), 120))


@pytest.mark.parametrize("name", CLIENTS)
def test_pooling(name: str, args: EngineArgs) -> None:
    small = {"dtype": "float32", "kv_cache_memory": "16MiB"}
    embedding = EngineArgs(args.model, task="embedding", hf_overrides={"is_matryoshka": True}, **small)
    requests = LocalRequests(launch_engine(embedding))
    requests.add("p", PROMPT, PoolingParams(dimensions=8))
    (expected,) = requests.step()

    async def main() -> Any:
        async with CLIENTS[name](embedding) as (several, client):
            with pytest.raises(InvalidRequestError, match="generates no text"):
                await through(several, client, None)("text", params())
            return await through(several, client, None)("p", PoolingParams(dimensions=8))

    (output,) = asyncio.run(main())
    assert output.outputs.data.tolist() == expected.outputs.data.tolist()  # type: ignore[union-attr]
