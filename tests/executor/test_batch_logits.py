"""Processors of whole batches: what they are told of the batch, and what they change."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo import LLM, SamplingParams
from octavo.errors import ConfigError, InvalidRequestError
from octavo.executor.batch_logits import (
    AdapterLogitsProcessor,
    BatchLogits,
    BatchUpdate,
    LogitsProcessor,
    MoveDirectionality,
    process_dict_updates,
)
from octavo.executor.sampling_state import SamplingState
from octavo.loading.engine_config import VllmConfig
from tests.server.conftest import write_tiny

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


def params(target: int | None = None, **values: Any) -> SamplingParams:
    extra = {} if target is None else {"extra_args": {"target_token": target}}
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 6, "ignore_eos": True, **extra, **values})


class Target(LogitsProcessor):
    """Leaves of a request's tokens the one that its extra_args name."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        target = (sampling_params.extra_args or {}).get("target_token")
        if target is not None and not isinstance(target, int):
            raise ValueError(f"target_token {target} is not int")

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        assert vllm_config.model_config.get_vocab_size() == 320
        assert (device.type, is_pin_memory) == ("cpu", False)
        self.targets: dict[int, int] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.targets, batch_update, lambda p, _, __: (p.extra_args or {}).get("target_token"))

    def apply(self, logits: Tensor) -> Tensor:
        for place, target in self.targets.items():
            kept = logits[place, target].clone()
            logits[place] = -torch.inf
            logits[place, target] = kept
        return logits


class Alternating(AdapterLogitsProcessor):
    """Of requests with `first`: that token and the next one, in turn, which needs the answer so far."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        first = (params.extra_args or {}).get("first")

        def process(prompt: list[int], answer: list[int], logits: Tensor) -> Tensor:
            assert len(prompt) == 5
            return torch.full_like(logits, -torch.inf).index_fill(0, torch.tensor(first + len(answer) % 2), 1.0)

        return None if first is None else process


class TopOne(LogitsProcessor):
    """Leaves the likeliest token."""

    def __init__(self, *_: Any) -> None:
        self.calls = 0

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None: ...

    def apply(self, logits: Tensor) -> Tensor:
        return logits.where(logits == logits.max(-1, keepdim=True).values, -torch.inf)


class Broken(TopOne):
    def is_argmax_invariant(self) -> bool:
        return False

    def apply(self, logits: Tensor) -> Tensor:
        raise RuntimeError("out of ideas")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("logits") / "tiny")


def engine(folder: Path, *classes: Any) -> LLM:
    return LLM(str(folder), kv_cache_memory="16MiB", logits_processors=list(classes))


def answers(llm: LLM, *each: SamplingParams, prompt: str = "Hello") -> list[list[int]]:
    return [o.outputs[0].token_ids for o in llm.generate([prompt] * len(each), list(each), use_tqdm=False)]


def test_only_who_asks_is_changed(folder: Path) -> None:
    plain = answers(engine(folder), GREEDY)[0]
    llm = engine(folder, Target)
    assert answers(llm, params(7), params(), params(9), params()) == [[7] * 6, plain, [9] * 6, plain]
    assert answers(llm, params(), params(11, max_tokens=2)) == [plain, [11] * 2]
    with pytest.raises(InvalidRequestError, match="Target: target_token x is not int"):
        answers(llm, params("x"))  # type: ignore[arg-type]


def test_of_functions_for_one_request(folder: Path) -> None:
    llm = engine(folder, Alternating)
    assert answers(llm, params(extra_args={"first": 7}), params(extra_args={"first": 20})) == [
        [7, 8, 7, 8, 7, 8],
        [20, 21, 20, 21, 20, 21],
    ]


def test_who_keeps_the_likeliest_comes_after_the_temperature(folder: Path) -> None:
    hot = params(temperature=9.0, seed=4)
    plain, greedy = answers(engine(folder), hot, GREEDY)
    assert plain != greedy
    assert answers(engine(folder, TopOne), hot, GREEDY) == [greedy, greedy]


def test_bits_of_others_stay(folder: Path) -> None:
    values = [params(temperature=0.9, seed=i, logprobs=3, max_tokens=12) for i in range(4)]
    assert answers(engine(folder, Target), *values, params(7)) == [*answers(engine(folder), *values), [7] * 6]


def test_a_failure_is_of_the_requests(folder: Path) -> None:
    llm = engine(folder, Broken)
    (output,) = llm.generate("Hello", GREEDY, use_tqdm=False)
    assert output.outputs[0].finish_reason == "error"
    assert output.outputs[0].stop_reason == "logits processor Broken failed: RuntimeError: out of ideas"


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("octavo.executor", "must be of the form module:Class"),
        ("octavo.nothing:Target", "could not be imported"),
        ("octavo.executor.batch_logits:BatchUpdate", "is no class with apply"),
        (len, "is no class with apply"),
    ],
)
def test_what_is_no_processor(folder: Path, named: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine(folder, named)


def test_models_that_choose_no_tokens(folder: Path) -> None:
    with pytest.raises(ConfigError, match="chooses no tokens"):
        LLM(str(folder), task="embedding", logits_processors=[Target])


def test_other_processes_need_a_name(folder: Path) -> None:
    class Own(TopOne): ...

    with pytest.raises(ConfigError, match="give module:Class"):
        LLM(str(folder), tensor_parallel_size=2, logits_processors=[Own])


class Watch(TopOne):
    """Follows the batch by the protocol, and sees to it that each place has the sequence whose values it was given."""

    def __init__(self, *_: Any) -> None:
        self.at: dict[int, int] = {}
        self.size = 0

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for place in batch_update.removed:
            del self.at[place]
        for place, values, _, _ in batch_update.added:
            self.at[place] = int(values.seed or 0)
        for source, target, direction in batch_update.moved:
            assert direction is MoveDirectionality.UNIDIRECTIONAL
            self.at[target] = self.at.pop(source)
        self.size = batch_update.batch_size
        assert sorted(self.at) == list(range(self.size))

    def apply(self, logits: Tensor) -> Tensor:
        assert len(logits) == self.size
        for place, number in self.at.items():
            assert logits[place, 0] in (0, number)  # 0: no row of this step
            logits[place, 1] = -number
        return logits


def test_places_follow_their_sequences() -> None:
    """Random batches: sequences begin, end, and are left out of steps."""
    rng = random.Random(5)
    batch = BatchLogits([Watch], None, torch.device("cpu"))  # type: ignore[arg-type]
    alive, number = list[SamplingState](), 0
    for _ in range(300):
        for state in [s for s in alive if rng.random() < 0.25]:
            state.ended = True
            alive.remove(state)
        for _ in range(rng.randrange(4)):
            number += 1
            alive.append(SamplingState(SamplingParams(seed=number), number, [1], frozenset()))
        states = rng.sample(alive, rng.randrange(len(alive) + 1))
        if not states:
            continue
        numbers = torch.tensor([float(s.params.seed or 0) for s in states])
        logits = torch.stack([numbers, torch.zeros(len(states))], 1)
        assert batch.apply(logits, states) is None
        assert torch.equal(logits[:, 1], -numbers)


def test_updates_of_what_is_kept_by_place() -> None:
    kept = {0: "a", 1: "b", 2: "c", 3: "d"}
    one = SamplingParams(seed=1)
    update = BatchUpdate(
        3,
        removed=[3],
        added=[(1, one, [], []), (2, SamplingParams(), [], [])],
        moved=[(0, 1, MoveDirectionality.SWAP), (1, 2, MoveDirectionality.UNIDIRECTIONAL)],
    )
    assert process_dict_updates(kept, update, lambda p, _, __: "new" if p.seed == 1 else None)
    assert kept == {0: "new", 2: "a"}
    assert not process_dict_updates(kept, None, lambda *_: "x")


SERVED = """
import torch
from vllm.v1.sample.logits_processor import LogitsProcessor

class Seven(LogitsProcessor):
    def __init__(self, vllm_config, device, is_pin_memory): ...
    def is_argmax_invariant(self): return False
    def update_state(self, batch_update): ...
    def apply(self, logits):
        return torch.full_like(logits, -torch.inf).index_fill(1, torch.tensor(7), 0.0)
"""


def test_by_name_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    """In ranks, too, whose output rank imports the module itself."""
    (tmp_path / "mine.py").write_text(SERVED)
    flags = ["--logits-processors", "mine:Seven", "--max-tokens", "3", "--kv-cache-memory", "16MiB", "-tp", "2"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "octavo.compat.vllm",
            "-m",
            "octavo",
            "generate",
            "Hello",
            "--model",
            str(folder),
            *flags,
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seven = LLM(str(folder), kv_cache_memory="16MiB").get_tokenizer().decode([7])
    assert done.stdout.strip() == seven * 3
