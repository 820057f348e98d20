"""Rows in the place of tokens: whatever the chunks, the batch, the caches and preemptions, they stand right.

A tower here gives the token table's own rows for ids that a picture holds: so a prompt with pictures must answer to the
last bit as the prompt that has these tokens in their places.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from octavo import LLM, SamplingParams
from octavo.features import Feature, Positions
from octavo.media.feature import pack
from octavo.parts import CausalLM, MediaData, MediaTower
from octavo.text.checked_prompt import CheckedPrompt
from tests.golden import case_named
from tests.preemption import preempt_all
from tests.test_golden import load

PARAMS = SamplingParams(temperature=0, max_tokens=6, logprobs=2, ignore_eos=True)
LENGTH = 12
PLACEHOLDER = 1 << 20
"""Beyond every token table."""


class TableTower(MediaTower):
    """Rows of the model's own token table."""

    def __init__(self, model: CausalLM) -> None:
        super().__init__()
        self.model = [model]
        self.calls: list[int] = []

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        self.calls.append(len(items))
        if any((item["ids"] < 0).any() for item in items):
            raise ValueError("no such token")
        return [self.model[0].tokens(SimpleNamespace(tokens=item["ids"])) for item in items]


def picture(ids: Sequence[int], offset: int, takes: bytes | None = None) -> Feature:
    data = pack({"ids": np.array(ids, np.int64)})
    digest = np.array([*ids, 0] * 32, np.uint8).tobytes()[:31] + bytes([len(ids)])
    return Feature("image", data, len(takes or ids), digest, offset, takes)


def bits(output: Any) -> list[Any]:
    """Tokens and log-probabilities, exactly. Those of a prompt's placeholders are no tokens'."""
    answer = output.outputs[0]
    return [answer.token_ids, [{t: e.logprob for t, e in step.items()} for step in answer.logprobs]]


class Prompts:
    """Pairs of prompts that must answer alike: with pictures, and with the tokens themselves."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.pictures = [[self.rng.randrange(3, 90) for _ in range(LENGTH)] for _ in range(3)]

    def text(self, most: int = 9) -> list[int]:
        return [self.rng.randrange(3, 90) for _ in range(self.rng.randrange(most))]

    def pair(self) -> tuple[CheckedPrompt, CheckedPrompt]:
        ids, features = self.text(), []
        plain = list(ids)
        for _ in range(self.rng.randint(1, 2)):
            shown = self.rng.choice(self.pictures)
            places = list(shown)
            takes = None
            if self.rng.random() < 0.5:  # one of the tokens between keeps its own embedding
                at = self.rng.randint(1, LENGTH - 1)
                takes = b"\1" * at + b"\0" + b"\1" * (LENGTH - at)
                places.insert(at, 5)
            features.append(picture(shown, len(ids), takes))
            ids += [PLACEHOLDER if taken else 5 for taken in takes or b"\1" * LENGTH]
            more = [*self.text(), 7]
            ids += more
            plain += places + more
        return CheckedPrompt(None, ids, features=features), CheckedPrompt(None, plain)


def with_tower(folder: Path, **options: Any) -> tuple[LLM, TableTower]:
    llm = load(case_named("LlamaForCausalLM--gqa-tied"), folder, **options)
    model = llm.engine.executor.runner.model
    tower = model.media = TableTower(model)
    llm.engine.checker.prompt = lambda prompt, params: prompt  # type: ignore[method-assign]
    return llm, tower


def run(llm: LLM, prompts: Sequence[CheckedPrompt], preempt_at: int = -1) -> list[Any]:
    done: dict[str, Any] = {}
    for i, prompt in enumerate(prompts):
        llm.requests.add(str(i), prompt, PARAMS)
    for step in range(1000):
        for output in llm.requests.step():
            if output.finished:
                done[output.request_id] = bits(output)
        if step == preempt_at:
            preempt_all(llm.engine)
        if len(done) == len(prompts):
            return [done[str(i)] for i in range(len(prompts))]
    raise AssertionError("it does not end")


WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "chunks": {"max_num_batched_tokens": 7, "block_size": 4},
    "no prefix cache": {"max_num_batched_tokens": 16, "enable_prefix_caching": False},
    "few rows kept": {"max_num_batched_tokens": 16, "feature_cache_memory": 1},
    "bfloat16": {"dtype": "bfloat16", "max_num_batched_tokens": 9, "block_size": 2},
    "reference": {"ops": "torch", "max_num_batched_tokens": 10},
    "few blocks": {"kv_cache_memory": "256KiB", "block_size": 4, "max_num_batched_tokens": 20},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_rows_stand_where_they_should(options: dict[str, Any], tmp_path: Path) -> None:
    llm, _ = with_tower(tmp_path, **options)
    prompts = Prompts(1)
    pairs = [prompts.pair() for _ in range(12)]
    expected = run(llm, [plain for _, plain in pairs])
    assert [run(llm, [shown])[0] for shown, _ in pairs[:4]] == expected[:4]
    assert run(llm, [shown for shown, _ in pairs]) == expected
    assert run(llm, [shown for shown, _ in pairs], preempt_at=2) == expected


def test_a_tower_reads_each_picture_once(tmp_path: Path) -> None:
    llm, tower = with_tower(tmp_path, enable_prefix_caching=False, max_num_batched_tokens=2 * LENGTH)
    prompts = Prompts(2)
    run(llm, [prompts.pair()[0] for _ in range(12)])
    assert sum(tower.calls) == 3
    features = llm.engine.scheduler.features
    assert features.num_computed == 3
    assert features.num_hits > 6


def test_the_second_question_computes_neither_rows_nor_blocks(tmp_path: Path) -> None:
    llm, tower = with_tower(tmp_path, block_size=4)
    shown = Prompts(3).pictures[0]
    prompts = [
        CheckedPrompt(None, [9] * 4 + [PLACEHOLDER] * LENGTH + [i, i], features=[picture(shown, 4)]) for i in (5, 6)
    ]
    llm.requests.add("one", prompts[0], PARAMS)
    while not any(o.finished for o in llm.requests.step()):
        pass
    llm.requests.add("two", prompts[1], PARAMS)
    (done,) = [o for _ in range(20) for o in (llm.requests.step() if llm.requests.has_work else []) if o.finished]
    assert done.num_cached_tokens == 4 + LENGTH
    assert tower.calls == [1]


def test_a_picture_that_cannot_be_read_fails_its_request_alone(tmp_path: Path) -> None:
    llm, _ = with_tower(tmp_path)
    prompts = Prompts(4)
    good, plain = prompts.pair()
    bad = CheckedPrompt(None, [3, PLACEHOLDER, 4], features=[picture([3], 1)])
    bad.features[0] = Feature("image", pack({"ids": np.array([-1])}), 1, b"x" * 32, 1)
    [expected] = run(llm, [plain])
    for _ in range(2):  # the second time, it is tried again
        llm.requests.add("bad", bad, PARAMS)
        llm.requests.add("good", good, PARAMS)
        outputs: dict[str, Any] = {}
        while llm.requests.has_work:
            outputs |= {o.request_id: o for o in llm.requests.step() if o.finished}
        assert outputs["bad"].outputs[0].finish_reason == "error"
        assert "the image could not be computed: ValueError: no such token" in str(
            outputs["bad"].outputs[0].stop_reason
        )
        assert bits(outputs["good"]) == expected


def test_positions_are_the_prompts_own(tmp_path: Path) -> None:
    """Rope is relative: positions that are all later by as much answer alike, and other ones do not."""
    llm, _ = with_tower(tmp_path)
    ids = [4, 8, 15, 16, 23, 42]

    def at(positions: Sequence[int], axes: int = 1) -> CheckedPrompt:
        data = np.array([positions] * axes, np.int64)
        return CheckedPrompt(None, ids, f"{positions}", positions=Positions(axes, data.tobytes()))

    plain, later, other = run(llm, [CheckedPrompt(None, ids), at([7, 8, 9, 10, 11, 12]), at([0, 1, 1, 1, 2, 3])])
    assert plain[0] == later[0]
    for step, shifted in zip(plain[1], later[1], strict=True):
        assert list(shifted.values()) == pytest.approx(list(step.values()), abs=1e-4)
    assert plain[1] != other[1]
    assert run(llm, [at([0, 1, 2, 3, 4, 5])]) == [plain]


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_spans_see_both_ways(options: dict[str, Any], tmp_path: Path) -> None:
    """A token in a span knows what comes after it there; alone, together, cached and preempted, to the same bits."""
    llm, _ = with_tower(tmp_path, **options)
    ids = [[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, last, 17, 18, 19, 20] for last in (16, 61)]

    def logprobs(last: int, both_ways: list[tuple[int, int]]) -> list[Any]:
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
        llm.requests.add("x", CheckedPrompt(None, ids[last], both_ways=both_ways), params)
        outputs = [o for _ in range(30) if llm.requests.has_work for o in llm.requests.step()]
        return [next(iter(step.values())).logprob for step in outputs[-1].prompt_logprobs[1:]]

    spans = [(2, 7), (9, 15)]
    causal, seeing = [[logprobs(i, spans) for i in (0, 1)] for spans in ([], spans)]
    assert causal[0][:12] == causal[1][:12]
    assert seeing[0][:8] == seeing[1][:8]  # before the span that has another token
    assert all(a != b for a, b in zip(seeing[0][9:12], seeing[1][9:12], strict=True))
    assert all(a != b for a, b in zip(seeing[0][2:8], causal[0][2:8], strict=True))

    prompts = [CheckedPrompt(None, [*i, 5, n], both_ways=spans) for i in ids for n in range(3)]
    expected = [run(llm, [prompt])[0] for prompt in prompts]
    assert run(llm, prompts) == expected
    assert run(llm, prompts * 2, preempt_at=1) == expected * 2
