"""What the engine's end of several ranks makes of their replies: by ranks that are played here, and by real ones."""

import gc
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo import LLM, SamplingParams
from octavo.config import EngineArgs
from octavo.errors import ConfigError, EngineDeadError, InvalidRequestError, RequestFailedError
from octavo.executor.process import Failed, Load, Loaded, Reply, decode_request, encode
from octavo.executor.rank_executor import RankExecutor
from octavo.executor.shape import CacheShape
from octavo.executor.step import SequenceResult, SequenceStart, SequenceStep, Step, StepResult
from octavo.loading.model_info import ModelInfo
from octavo.lora import AdapterRef
from octavo.params import PoolingParams, StructuredOutputsParams
from octavo.rank_place import RankLink, RankPlace
from tests.server.conftest import write_tiny

pytestmark = pytest.mark.alone

SHAPE = CacheShape(4, 16, (None,), None, False, 8)
INFO = ModelInfo(task="generate", vocab_size=10, max_model_len=64)
ADAPTER = AdapterRef("a", "/nowhere", b"digest")


class PlayedRanks:
    """A RankGroup whose replies are given by hand."""

    def __init__(self, size: int, tensor_size: int) -> None:
        self.size, self.tensor_size = size, tensor_size
        self.heard: list[list[Step]] = [[] for _ in range(size)]
        self.coming: list[tuple[int, bytes | None]] = []
        self.is_closed = False

    def loads(self, args: EngineArgs) -> list[Load]:
        return [Load.of(args, RankPlace(r, self.size, self.tensor_size), RankLink()) for r in range(self.size)]

    def send(self, rank: int, message: bytes) -> None:
        request = decode_request(message)
        if isinstance(request, Load):
            assert request.place == RankPlace(rank, self.size, self.tensor_size)
            self.reply(rank, Loaded(INFO, SHAPE, 10 + rank))
        else:
            self.heard[rank].append(request)

    def reply(self, rank: int, reply: Reply | None) -> None:
        self.coming.append((rank, None if reply is None else encode(reply)))

    def receive(self, timeout: float | None) -> list[tuple[int, bytes | None]]:
        assert self.coming or timeout is not None, "it would wait for ever"
        came, self.coming = self.coming, []
        return came

    def end_of(self, rank: int) -> str:
        return "has ended (exit status -9)"

    def close(self) -> None:
        self.is_closed = True


def played(tensor_size: int = 2, stages: int = 1) -> tuple[PlayedRanks, RankExecutor]:
    args = EngineArgs(tensor_parallel_size=tensor_size, pipeline_parallel_size=stages, distributed_timeout_seconds=9)
    ranks = PlayedRanks(args.num_ranks, tensor_size)
    return ranks, RankExecutor(ranks, args)


def result(*seq_ids: int, token: int | None = None) -> StepResult:
    return StepResult([SequenceResult(i, [] if token is None else [token]) for i in seq_ids])


def test_each_loads_its_part() -> None:
    _, executor = played(2, 2)
    assert executor.info == INFO
    assert executor.shape == SHAPE
    assert executor.rank_weight_bytes == [10, 11, 12, 13]


def test_the_output_rank_alone_knows_how_tokens_are_chosen() -> None:
    ranks, executor = played(2, 2)
    params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a+"))
    starts = [
        SequenceStart(1, [1, 2], sampling=params, stop_ids=[3], bad_words=[[4]], seed=5),
        SequenceStart(2, [1, 2], pooling=PoolingParams()),
    ]
    executor.submit(Step(starts, [SequenceStep(1, 0, [1, 2], 0, 2, [(0, [1])])], []))
    heard = [steps[0].starts for steps in ranks.heard]
    assert heard[2][0].sampling == params
    assert (heard[2][0].stop_ids, heard[2][0].bad_words) == ([3], [[4]])
    for rank in (0, 1, 3):
        assert heard[rank][0].sampling is None
        assert not heard[rank][0].waits
        assert heard[rank][0].prompt_token_ids == [1, 2]
    assert [starts[1].pooling is not None for starts in heard] == [False, False, True, True]
    assert all(steps[0].sequences == ranks.heard[0][0].sequences for steps in ranks.heard)


def test_tokens_are_the_output_ranks() -> None:
    ranks, executor = played(1, 2)
    executor.submit(Step([], [], []))
    ranks.reply(1, result(7, token=3))
    ranks.reply(0, result(7))
    assert executor.collect().sequences[0].token_ids == [3]


def test_replies_may_come_in_any_order_and_ahead() -> None:
    ranks, executor = played(1, 2)
    for _ in range(2):
        executor.submit(Step([], [], []))
        ranks.reply(0, result(7))
    ranks.reply(1, result(7, token=3))
    assert executor.collect().sequences[0].token_ids == [3]
    ranks.reply(1, result(7, token=4))
    assert executor.collect().sequences[0].token_ids == [4]


def test_adapters_are_ready_when_all_ranks_have_them() -> None:
    ranks, executor = played()
    executor.submit(Step([SequenceStart(1, [1], adapter=ADAPTER), SequenceStart(2, [1])], [], []))
    ranks.reply(0, StepResult([], ready=[1, 2]))
    ranks.reply(1, StepResult([]))
    assert executor.collect().ready == [2]
    executor.submit(Step([], [], []))
    ranks.reply(1, StepResult([], ready=[1]))
    ranks.reply(0, StepResult([]))
    assert executor.collect().ready == [1]


def test_what_one_rank_refuses_is_refused_once() -> None:
    ranks, executor = played()
    executor.submit(Step([SequenceStart(1, [1], adapter=ADAPTER)], [], []))
    refusal = SequenceResult(1, error="no such file", is_invalid=True)
    for rank in range(2):
        ranks.reply(rank, StepResult([], refused=[refusal]))
    done = executor.collect()
    assert [r.error for r in done.refused] == ["no such file"]
    assert done.ready == []


def test_what_fails_everywhere_fails_a_step() -> None:
    ranks, executor = played()
    executor.submit(Step([], [], []))
    for rank in range(2):
        ranks.reply(rank, Failed("RuntimeError", "RuntimeError: no"))
    with pytest.raises(RequestFailedError, match="RuntimeError: no"):
        executor.collect()
    executor.submit(Step([], [], []))
    for rank in range(2):
        ranks.reply(rank, result(1, token=1))
    assert executor.collect().sequences[0].token_ids == [1]
    assert not ranks.is_closed


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ([(0, None)], r"rank 0 has ended \(exit status -9\)"),
        ([(0, result(1)), (1, None)], r"rank 1 has ended"),
        ([(0, result(1))], "rank 1 did not answer within 9 seconds"),
        ([(1, Failed("MemoryError", "MemoryError: "))], "MemoryError"),
        ([(0, Failed("MemoryError", "MemoryError: ")), (1, result(1))], "MemoryError"),
        ([(0, Failed("RankError", "rank 1 did not come", True)), (1, Failed("ValueError", "why"))], "why"),
        ([(r, Failed("RankError", "out of step", True)) for r in range(2)], "out of step"),
    ],
)
def test_what_ends_all_of_them(replies: list[tuple[int, Reply | None]], reason: str) -> None:
    ranks, executor = played()
    executor.submit(Step([], [], []))
    for rank, reply in replies:
        ranks.reply(rank, reply)
    with pytest.raises(EngineDeadError, match=reason):
        executor.collect()
    assert ranks.is_closed
    executor.submit(Step([], [], []))
    with pytest.raises(EngineDeadError, match=reason):
        executor.collect()
    with pytest.raises(EngineDeadError, match=reason):
        executor.check()


def test_an_end_is_seen_between_steps() -> None:
    ranks, executor = played()
    executor.check()
    ranks.reply(1, None)
    with pytest.raises(EngineDeadError, match="rank 1 has ended"):
        executor.check()


def test_logits_processors_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="logits_processors are Python objects of this process"):
        played()[1].keep_processors(1, [])


# --- real ranks


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("ranks") / "tiny")


@pytest.fixture
def two_ranks(tiny_model: Path) -> Iterator[LLM]:
    llm = LLM(
        str(tiny_model),
        dtype="float32",
        kv_cache_memory="16MiB",
        tensor_parallel_size=2,
        distributed_timeout_seconds=3,
    )
    yield llm
    llm.engine.executor.close()


def pids(llm: LLM) -> list[int]:
    executor = llm.engine.executor
    assert isinstance(executor, RankExecutor)
    return [process.process.pid for process in executor._ranks._processes]  # type: ignore[attr-defined]


def run_until_error(llm: LLM) -> str:
    """The error with which long requests end."""
    params = SamplingParams(max_tokens=200, ignore_eos=True)
    for _ in range(1000):
        try:
            llm.generate(["Hello"] * 2, params, use_tqdm=False)
        except EngineDeadError as error:
            return str(error)
    raise AssertionError("it went on as if nothing had happened")


def assert_gone(pids: list[int]) -> None:
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/exe").exists() for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs(two_ranks: LLM, victim: int, how: signal.Signals) -> None:
    all_pids = pids(two_ranks)
    two_ranks.generate("Hello", SamplingParams(max_tokens=3), use_tqdm=False)
    two_ranks.requests.add("r", "Hello", SamplingParams(max_tokens=200, ignore_eos=True))
    two_ranks.requests.step()
    os.kill(all_pids[victim], how)
    assert "the engine has stopped" in run_until_error(two_ranks)
    assert_gone(all_pids)


@pytest.mark.slow
def test_who_forgets_an_engine_ends_its_ranks(tiny_model: Path) -> None:
    llm = LLM(str(tiny_model), dtype="float32", kv_cache_memory="16MiB", tensor_parallel_size=2)
    all_pids = pids(llm)
    del llm
    gc.collect()
    assert_gone(all_pids)


@pytest.mark.slow
def test_what_a_rank_cannot_load(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="kv_cache_memory"):
        LLM(str(tiny_model), dtype="float32", kv_cache_memory="1KiB", tensor_parallel_size=2)
