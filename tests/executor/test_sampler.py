"""The sampler: each value does what it says, and a row never depends on the rows beside it."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.executor.sampler import Choice
from octavo.executor.sampler import sample as sample_with
from octavo.executor.sampling_state import SamplingState, mix
from octavo.ops import Backend, select_backend
from octavo.params import SamplingParams

VOCAB = 3000
BACKEND: list[Backend] = []


@pytest.fixture(autouse=True, params=["torch", "auto"])
def backend(request: pytest.FixtureRequest) -> None:
    """The reference's choice, and the compiled core's where there is one."""
    BACKEND[:] = [select_backend("cpu", request.param)]


def sample(logits: Tensor, states: list[SamplingState]) -> list[Choice]:
    return sample_with(logits, states, BACKEND[0])


def state(
    seed: int = 0, prompt: list[int] | None = None, output: list[int] | None = None, **values: Any
) -> SamplingState:
    return SamplingState(
        SamplingParams(**values), mix(seed, 0), prompt or [], frozenset({2}), output_token_ids=list(output or [])
    )


def draw(logits: Tensor, count: int, **values: Any) -> list[int]:
    """`count` draws from the same logits."""
    states = [state(seed=i, **values) for i in range(count)]
    return [c.token_id for c in sample(logits.repeat(count, 1), states)]


@pytest.fixture
def logits(generator: torch.Generator) -> Tensor:
    return torch.randn(VOCAB, generator=generator) * 3


def test_greedy_takes_the_likeliest(logits: Tensor) -> None:
    assert draw(logits, 3, temperature=0) == [int(logits.argmax())] * 3


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    tokens = torch.tensor(draw(probabilities.log(), 4000))
    shares = torch.bincount(tokens, minlength=4) / 4000
    torch.testing.assert_close(shares, probabilities, atol=0.03, rtol=0)


def test_temperature_sharpens() -> None:
    logits = torch.tensor([1.0, 0.0])
    cold = draw(logits, 2000, temperature=0.5).count(0) / 2000
    assert cold == pytest.approx(1 / (1 + math.exp(-2)), abs=0.04)


@pytest.mark.parametrize("k", [1, 5, 1500])
def test_top_k(logits: Tensor, k: int) -> None:
    allowed = set(logits.topk(k).indices.tolist())
    assert set(draw(logits, 300, top_k=k, temperature=2.0)) <= allowed


@pytest.mark.parametrize("scale", [1.0, 0.01], ids=["peaked", "flat"])
def test_top_p(logits: Tensor, scale: float) -> None:
    """Flat logits need more tokens than the first look finds, and are sorted whole."""
    scaled = logits * scale
    order = scaled.argsort(descending=True)
    share = scaled.softmax(-1)[order].cumsum(0)
    needed = int((share < 0.7).sum()) + 1
    drawn = draw(scaled, 400, top_p=0.7)
    assert set(drawn) <= set(order[:needed].tolist())
    assert len(set(drawn)) > 3


def test_min_p(logits: Tensor) -> None:
    p = logits.softmax(-1)
    allowed = set(torch.nonzero(p >= 0.2 * p.max()).flatten().tolist())
    assert set(draw(logits, 300, min_p=0.2, temperature=1.0)) <= allowed


def test_rows_do_not_see_each_other(logits: Tensor, generator: torch.Generator) -> None:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"top_k": 7},
        {"top_p": 0.5},
        {"top_p": 0.99, "temperature": 3.0},
        {"min_p": 0.1},
        {"presence_penalty": 1.0, "output": [1, 2, 2]},
        {"logprobs": 3},
        {},
    ]
    rows = torch.randn(len(kinds), VOCAB, generator=generator) * 2

    def states() -> list[SamplingState]:
        return [state(seed=i, **kind) for i, kind in enumerate(kinds)]

    together = sample(rows.clone(), states())
    for i, alone in enumerate(states()):
        assert sample(rows[i : i + 1].clone(), [alone])[0] == together[i]
    assert sample(rows.flip(0), states()[::-1])[::-1] == together


def test_seed_decides(logits: Tensor) -> None:
    first = [sample(logits[None].clone(), [state(seed=5, output=[0] * t)])[0].token_id for t in range(20)]
    again = [sample(logits[None].clone(), [state(seed=5, output=[0] * t)])[0].token_id for t in range(20)]
    other = [sample(logits[None].clone(), [state(seed=6, output=[0] * t)])[0].token_id for t in range(20)]
    assert first == again
    assert first != other


def test_penalties_are_vllms() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5]])
    s = state(
        prompt=[1], output=[0, 0], repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5, temperature=0
    )
    work = logits.clone()
    sample(work, [s])
    # Token 0 came twice, token 1 was in the prompt: repetition for both, the others only for what was generated.
    torch.testing.assert_close(work, torch.tensor([[2.0 / 2 - 2 * 0.5 - 0.25, -4.0, 1.0, 0.5]]))


def test_placeholders_of_pictures_pay_nothing() -> None:
    """They are in the prompt, and in no vocabulary."""
    s = state(prompt=[1, 99], repetition_penalty=2.0, temperature=0)
    assert sample(torch.tensor([[1.0, 1.5]]), [s])[0].token_id == 0


def test_tokens_beyond_the_vocabulary_are_one_row_s_error() -> None:
    asked: list[dict[str, Any]] = [{"logit_bias": {5: 1.0}}, {"allowed_token_ids": [0, 7]}, {}]
    *wrong, good = sample(torch.zeros(3, 2), [state(temperature=0, **values) for values in asked])
    assert good.token_id == 0
    for choice, token in zip(wrong, (5, 7), strict=True):
        assert choice.token_id is None
        assert f"token {token} is none of the vocabulary's 2" in choice.error


def test_counts_follow_the_output() -> None:
    s = state(output=[3], presence_penalty=1.0)

    def counts() -> list[float]:
        penalties = s.penalties(0, 5, torch.device("cpu"))
        BACKEND[0].penalize(torch.zeros(1, 5), [penalties])
        return penalties.counts.tolist()

    assert counts() == [0, 0, 0, 1, 0]
    s.output_token_ids += [3, 4]
    assert counts() == [0, 0, 0, 2, 1]
    s.output_token_ids = [1]
    assert counts() == [0, 1, 0, 0, 0]


def test_restrictions() -> None:
    logits = torch.tensor([5.0, 4.0, 9.0, 3.0])
    assert draw(logits, 1, temperature=0, allowed_token_ids=[1, 3]) == [1]
    assert draw(logits, 1, temperature=0, logit_bias={3: 50}) == [3]
    assert draw(logits, 1, temperature=0, min_tokens=1) == [0]  # 2 is the stop token
    assert draw(logits, 1, temperature=0, min_tokens=1, output=[0]) == [2]
    banned = SamplingState(SamplingParams(temperature=0), 0, [], frozenset(), bad_words=[[2], [7, 0]])
    assert sample(logits[None].clone(), [banned])[0].token_id == 0
    banned.output_token_ids = [7]
    assert sample(logits[None].clone(), [banned])[0].token_id == 1


def test_logprobs_are_the_models_own() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0])
    choice = sample(logits[None].clone(), [state(temperature=0, logprobs=2, logit_bias={0: 9})])[0]
    want = logits.log_softmax(-1)
    assert choice.token_id == 0
    assert choice.logprobs is not None
    assert [(token, rank) for token, _, rank in choice.logprobs] == [(0, 3), (1, 1), (2, 2)]
    assert choice.logprobs[0][1] == pytest.approx(float(want[0]))
    whole = sample(logits[None].clone(), [state(temperature=0, logprobs=-1)])[0]
    assert whole.logprobs is not None
    assert {token for token, _, _ in whole.logprobs} == {0, 1, 2}


def test_logits_processors() -> None:
    logits = torch.tensor([5.0, 4.0, 3.0])

    def forbid_first(output: list[int], row: Tensor) -> Tensor:
        row[0] = -torch.inf
        return row

    def with_prompt(prompt: list[int], output: list[int], row: Tensor) -> Tensor:
        return row.index_fill(0, torch.tensor(prompt), 99.0)

    assert draw(logits, 1, temperature=0, logits_processors=[forbid_first]) == [1]
    assert draw(logits, 1, temperature=0, prompt=[2], logits_processors=[with_prompt]) == [2]


def test_failing_processor_ends_its_row_alone() -> None:
    def broken(output: list[int], row: Tensor) -> Tensor:
        raise RuntimeError("oops")

    rows = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    good, bad = sample(rows, [state(temperature=0), state(temperature=0, logits_processors=[broken])])
    assert good.token_id == 1
    assert bad.token_id is None
    assert "oops" in bad.error


def test_values_that_are_not_numbers_are_an_error() -> None:
    rows = torch.tensor([[1.0, torch.nan], [2.0, 1.0]])
    bad, good = sample(rows, [state(temperature=0), state(temperature=0)])
    assert bad.error
    assert good.token_id == 0
