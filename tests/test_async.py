"""AsyncLLM: many requests at a time, each a stream, and an end that frees everything."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator

import pytest
import torch

from octavo import LLM, AsyncLLM, PoolingParams, RequestOutputKind, SamplingParams
from octavo.errors import EngineDeadError, InvalidRequestError
from octavo.outputs import PoolingOutput, PoolingRequestOutput


@pytest.fixture
def llm(tiny_folder: str) -> Iterator[AsyncLLM]:
    llm = AsyncLLM(str(tiny_folder), dtype="float32", skip_tokenizer_init=True, kv_cache_memory="8MiB")
    yield llm
    llm.shutdown()


def params(tokens: int, **values: object) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, **values)


async def collect(llm: AsyncLLM, prompt: list[int], tokens: int) -> list[int]:
    out: list[int] = []
    async for output in llm.generate(prompt, params(tokens, output_kind=RequestOutputKind.DELTA)):
        out += output.outputs[0].token_ids
    return out


async def idle(llm: AsyncLLM) -> None:
    """Until the engine has taken note of what was posted."""
    for _ in range(500):
        if not llm.engine.has_work and not llm.client._inbox:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the engine stays busy")


def test_many_streams_at_a_time(llm: AsyncLLM, tiny: LLM) -> None:
    prompts = [[i, i + 1, i + 2] for i in range(20)]

    async def main() -> list[list[int]]:
        return await asyncio.gather(*(collect(llm, p, 3 + i) for i, p in enumerate(prompts)))

    for i, got in enumerate(asyncio.run(main())):
        want = tiny.generate(prompts[i], params(3 + i), use_tqdm=False)[0].outputs[0].token_ids
        assert got == want


def test_cumulative_stream_ends_with_everything(llm: AsyncLLM) -> None:
    async def main() -> list[int]:
        async for output in llm.generate([1, 2, 3], params(30)):
            await asyncio.sleep(0.005)  # slower than the model: outputs are merged, none is lost
            last = output
        assert last.finished
        return last.outputs[0].token_ids

    assert len(asyncio.run(main())) == 30


def test_closing_the_iterator_cancels(llm: AsyncLLM) -> None:
    async def main() -> None:
        stream = llm.generate([1, 2, 3], params(200))
        async with contextlib.aclosing(stream):
            async for _ in stream:
                break
        await idle(llm)

    free = llm.engine.cache.pool.num_free
    asyncio.run(main())
    assert llm.engine.cache.pool.num_free == free


def test_cancelling_the_task_cancels(llm: AsyncLLM) -> None:
    async def main() -> None:
        started = asyncio.Event()

        async def read() -> None:
            async for _ in llm.generate([1, 2, 3], params(250), "r"):
                started.set()

        task = asyncio.create_task(read())
        await started.wait()  # and not for a time: 250 tokens take a few hundredths of a second
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await idle(llm)

    asyncio.run(main())


def test_abort_by_id(llm: AsyncLLM) -> None:
    async def main() -> str | None:
        reason = None
        async for output in llm.generate([1, 2, 3], params(250), "mine"):
            await llm.abort("mine")
            reason = output.outputs[0].finish_reason
        return reason

    assert asyncio.run(main()) == "abort"


def test_bad_request_raises_and_harms_nobody(llm: AsyncLLM) -> None:
    async def main() -> list[int]:
        good = asyncio.create_task(collect(llm, [1, 2, 3], 20))
        with pytest.raises(InvalidRequestError, match="vocabulary"):
            await collect(llm, [9999], 5)
        with pytest.raises(InvalidRequestError, match="logit_bias"):
            async for _ in llm.generate([1], params(2, logit_bias={999: 1.0})):
                pass
        return await good

    assert len(asyncio.run(main())) == 20


def test_dead_engine_says_so(llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*step: object) -> None:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(llm.engine.executor.runner, "begin", explode)

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(EngineDeadError, match="no memory left"):
                await collect(llm, [1, 2], 3)

    asyncio.run(main())


def test_shutdown_ends_streams(tiny_folder: str) -> None:
    llm = AsyncLLM(str(tiny_folder), skip_tokenizer_init=True, kv_cache_memory="8MiB")

    async def main() -> None:
        stream = llm.generate([1, 2], params(250))
        await anext(stream)
        await asyncio.to_thread(llm.shutdown)
        with pytest.raises(EngineDeadError):
            async for _ in stream:
                pass

    asyncio.run(main())


def test_embedding(tiny_folder: str) -> None:
    llm = AsyncLLM(str(tiny_folder), skip_tokenizer_init=True, kv_cache_memory="8MiB", task="embedding")
    output = asyncio.run(llm.encode([1, 2, 3]))

    async def by_vllms_way() -> list[PoolingRequestOutput[PoolingOutput]]:
        return [one async for one in llm.encode([1, 2, 3], PoolingParams(), "mine")]

    (other,) = asyncio.run(by_vllms_way())
    assert other.request_id == "mine"
    assert torch.equal(other.outputs.data, output.outputs.data)
    llm.encode([1, 2, 3]).close()  # nobody has asked for anything
    assert output.outputs.data.norm() == pytest.approx(1.0, abs=1e-3)
    llm.shutdown()


def test_who_awaits_outputs_is_told_how_they_are_read(llm: AsyncLLM) -> None:
    async def main() -> None:
        await llm.generate([1, 2, 3], params(2))  # type: ignore[misc]

    with pytest.raises(TypeError, match=r"cannot be awaited: read them by `async for output in AsyncLLM.generate"):
        asyncio.run(main())
    for run in (asyncio.run, lambda outputs: asyncio.new_event_loop().create_task(outputs)):
        with pytest.raises((TypeError, ValueError), match=r"outputs of AsyncLLM.generate, to be read by `async for`"):
            run(llm.generate([1, 2, 3], params(2)))
    assert asyncio.run(collect(llm, [1, 2, 3], 2))


def test_outputs_are_an_async_generator(llm: AsyncLLM) -> None:
    async def main() -> None:
        outputs = llm.generate([1, 2, 3], params(200, output_kind=RequestOutputKind.DELTA))
        assert isinstance(outputs, AsyncGenerator)
        assert (await anext(outputs)).outputs[0].token_ids
        await outputs.aclose()
        assert [one async for one in outputs] == []
        await idle(llm)
        thrown = llm.generate([1, 2, 3], params(200))
        await anext(thrown)
        with pytest.raises(KeyError):
            await thrown.athrow(KeyError("x"))
        await idle(llm)

    asyncio.run(main())
