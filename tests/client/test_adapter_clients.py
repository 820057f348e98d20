"""Adapters that are loaded without a prompt, through every way to an engine."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, AsyncLLM, LoRARequest, RequestOutputKind, SamplingParams
from octavo.client.output_processor import processor_of
from octavo.config import EngineArgs
from octavo.errors import InvalidRequestError
from octavo.launch import launch_engine
from octavo.lora import refer
from octavo.text.checked_prompt import CheckedPrompt
from tests.adapter_folders import write_adapter
from tests.client.test_engine_clients import CLIENTS
from tests.server.conftest import write_tiny

PROMPT = [*range(40, 60)]
PARAMS = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("adapted") / "tiny")


@pytest.fixture(scope="module")
def adapters(model: Path) -> list[LoRARequest]:
    return [LoRARequest(f"a{i}", i + 1, str(write_adapter(model.parent / f"a{i}", model, i))) for i in range(3)]


def options(model: Path, **more: Any) -> dict[str, Any]:
    return {"model": str(model), "dtype": "float32", "kv_cache_memory": "16MiB", "enable_lora": True, **more}


@pytest.fixture(scope="module")
def answers(model: Path, adapters: list[LoRARequest]) -> list[list[int]]:
    """The tokens of each adapter, and at last of the model alone."""
    llm = LLM(**options(model, max_loras=2))
    prompts = [PROMPT] * 4
    outputs = llm.generate(prompts, PARAMS, lora_request=[*adapters, None], use_tqdm=False)
    tokens = [list(o.outputs[0].token_ids) for o in outputs]
    assert len({*map(tuple, tokens)}) == 4
    return tokens


@pytest.mark.parametrize("name", CLIENTS)
def test_loaded_without_a_prompt(
    name: str, model: Path, adapters: list[LoRARequest], answers: list[list[int]], tmp_path: Path
) -> None:
    async def main() -> None:
        async with CLIENTS[name](EngineArgs(**options(model, max_cpu_loras=2))) as (requests, client):

            async def answer(i: int) -> list[int]:
                checked = CheckedPrompt(None, PROMPT, adapter=refer(adapters[i]))
                processor = processor_of(f"r{i}", checked, PARAMS, None)
                (only,) = [o.outputs[0] async for o in requests.generate(client, processor) if o.finished]
                return list(only.token_ids)

            for i in (0, 1, 2, 0):  # more than there is room for
                await requests.load_adapter(client, refer(adapters[i]))
            assert await asyncio.gather(*map(answer, range(3))) == answers[:3]
            for adapter in adapters:
                client.drop_adapter(refer(adapter))
            client.drop_adapter(refer(adapters[0]))  # which is gone already
            assert await answer(1) == answers[1]

            bad = write_adapter(tmp_path / "bad", model, peft_type="VERA")
            with pytest.raises(InvalidRequestError, match="VERA"):
                await requests.load_adapter(client, refer(LoRARequest("bad", 9, str(bad))))
            large = write_adapter(tmp_path / "large", model, rank=32)
            with pytest.raises(InvalidRequestError, match="max_lora_rank=16"):
                await requests.load_adapter(client, refer(LoRARequest("large", 9, str(large))))
            write_adapter(large, model, 2)  # and now it is another
            await requests.load_adapter(client, refer(LoRARequest("large", 9, str(large))))
            assert len(requests) == 0
            assert await answer(0) == answers[0]

    asyncio.run(asyncio.wait_for(main(), 120))


@pytest.mark.parametrize("name", CLIENTS)
def test_waiting_for_room_can_be_ended(name: str, model: Path, adapters: list[LoRARequest]) -> None:
    """With room for one adapter, which is in use, another waits; who waits no more leaves nothing."""

    async def main() -> None:
        async with CLIENTS[name](EngineArgs(**options(model))) as (requests, client):
            long = SamplingParams(max_tokens=1900, n=8, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
            checked = CheckedPrompt(None, PROMPT, adapter=refer(adapters[0]))
            running = requests.generate(client, processor_of("long", checked, long, None))
            await anext(running)
            loading = asyncio.create_task(requests.load_adapter(client, refer(adapters[1])))
            await anext(running)
            assert not loading.done()
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            assert len(requests) == 1
            await requests.load_adapter(client, refer(adapters[0]))  # which is there
            await running.aclose()
            await requests.load_adapter(client, refer(adapters[2]))

    asyncio.run(asyncio.wait_for(main(), 120))


def test_llm(model: Path, adapters: list[LoRARequest], answers: list[list[int]]) -> None:
    llm = LLM(**options(model, max_cpu_loras=8))
    assert llm.list_loras() == set()
    assert all(llm.add_lora(adapter) for adapter in adapters)
    assert llm.list_loras() == {1, 2, 3}
    assert llm.remove_lora(2)
    assert not llm.remove_lora(2)
    assert not llm.engine.has_work
    for i, adapter in enumerate(adapters):
        (output,) = llm.generate(PROMPT, PARAMS, lora_request=adapter, use_tqdm=False)
        assert list(output.outputs[0].token_ids) == answers[i]
    with pytest.raises(InvalidRequestError, match="nowhere"):
        llm.add_lora(LoRARequest("b", 4, "/nowhere"))
    assert llm.list_loras() == {1, 3}
    plain = LLM(**options(model, enable_lora=False))
    with pytest.raises(InvalidRequestError, match="enable_lora=True"):
        plain.add_lora(adapters[0])


def test_async_llm(model: Path, adapters: list[LoRARequest], answers: list[list[int]]) -> None:
    async def main() -> None:
        llm = AsyncLLM(**options(model))
        try:
            assert await llm.add_lora(adapters[1])
            assert await llm.list_loras() == {2}
            (last,) = [
                output async for output in llm.generate(PROMPT, PARAMS, lora_request=adapters[1]) if output.finished
            ]
            assert list(last.outputs[0].token_ids) == answers[1]
            assert await llm.remove_lora(2)
            assert not await llm.remove_lora(2)
            with pytest.raises(InvalidRequestError, match="nowhere"):
                await llm.add_lora(LoRARequest("b", 4, "/nowhere"))
        finally:
            llm.shutdown()

    asyncio.run(asyncio.wait_for(main(), 120))


def test_what_the_engine_says_of_adapters(model: Path, adapters: list[LoRARequest]) -> None:
    """Names of those that run and those that wait, and an engine that has nothing to do once all are there."""
    engine = launch_engine(EngineArgs(**options(model)))
    for i, adapter in enumerate(adapters[:2]):
        engine.add_request(f"r{i}", CheckedPrompt(None, PROMPT, adapter=refer(adapter)), PARAMS)
    engine.load_adapter("load", refer(adapters[0]))
    assert engine.adapter_names() == ([], ["a0", "a1"])
    seen = set()
    while engine.has_work:
        engine.step()
        seen.add(tuple(map(tuple, engine.adapter_names())))
    assert (("a0",), ("a1",)) in seen
    assert engine.adapter_names() == ([], [])
