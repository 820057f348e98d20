"""What requests ask of logits, and are told of tokens: every backend's against plain definitions, a row by itself."""

import math

import pytest
import torch
from torch import Tensor

from octavo.ops import Backend, DrawBy, Penalties, TokenChanges, rows_of
from tests.ops.conftest import REFERENCE
from tests.ops.test_sampling import WAYS, kept

VOCABS = [3, 250, 5001]


@pytest.fixture(params=["torch", "auto", "triton"])
def changing(request: pytest.FixtureRequest) -> Backend:
    """All that a processor has, and Triton's kernels."""
    if request.param == "triton":
        made: Backend = request.getfixturevalue("triton_backend")
        return made
    return REFERENCE if request.param == "torch" else request.getfixturevalue("core")


@pytest.fixture(scope="session")
def core() -> Backend:
    from octavo.ops import select_backend

    return select_backend("cpu", "auto")


def apart(rows: int, vocab: int, generator: torch.Generator) -> Tensor:
    """Logits whose rows do not lie side by side."""
    return (torch.randn(rows, vocab + 3, generator=generator) * 3)[:, :vocab]


@pytest.mark.parametrize("vocab", VOCABS)
def test_masks(changing: Backend, vocab: int, generator: torch.Generator) -> None:
    logits = apart(4, vocab, generator)
    before = logits.clone()
    allowed = torch.rand(2, vocab, generator=generator) < 0.5
    padded = torch.nn.functional.pad(allowed, (0, -vocab % 8)).view(2, -1, 8)
    masks = (padded * torch.tensor([1 << bit for bit in range(8)])).sum(-1).to(torch.uint8)
    changing.mask_tokens(logits, [3, 1], masks)
    assert torch.equal(logits[[0, 2]], before[[0, 2]])
    assert torch.equal(logits[[3, 1]], before[[3, 1]].masked_fill(~allowed, -torch.inf))


@pytest.mark.parametrize("vocab", VOCABS)
def test_single_tokens(changing: Backend, vocab: int, generator: torch.Generator) -> None:
    """Forbidden, then banned by lists that may be empty and share tokens, then added to: what is banned stays so."""
    logits = apart(5, vocab, generator)
    want = logits.clone()
    forbidden = torch.rand(vocab, generator=generator) < 0.5
    banned = torch.tensor([vocab - 1, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([0])
    many = torch.randperm(vocab, generator=generator)[: vocab // 2 + 1]
    bias = many, torch.randn(len(many), generator=generator)
    changes = [
        TokenChanges(4, forbidden),
        TokenChanges(1, banned=banned),
        TokenChanges(2, bias=bias),
        TokenChanges(0, forbidden, (many,), bias),
    ]
    changing.change_tokens(logits, changes)
    want[4, forbidden] = want[0, forbidden] = -torch.inf
    want[1, [0, vocab - 1]] = -torch.inf
    want[0, many] = -torch.inf
    want[2, many] += bias[1]
    assert torch.equal(logits, want)


@pytest.mark.parametrize("vocab", VOCABS)
def test_penalties(changing: Backend, vocab: int, generator: torch.Generator) -> None:
    """To the bit, whatever else is in the batch; what is new is counted, each time that it comes."""
    rows = 3
    factors = [(1.3, 0.4, -0.7), (1.0, 0.0, 0.3), (0.8, -0.1, 0.0)]
    counts = torch.randint(0, 3, (rows, vocab), generator=generator).float()
    in_prompt = torch.rand(rows, vocab, generator=generator) < 0.3
    new = [[0, vocab - 1, 0], [], [1]]

    def penalties(places: list[int]) -> list[Penalties]:
        return [
            Penalties(row, counts[i].clone(), in_prompt[i], new[i], *factors[i])
            for row, i in enumerate(places)
        ]  # fmt: skip

    logits = apart(rows, vocab, generator)
    logits[0, 0] = -torch.inf
    together, asked = logits.clone(), penalties([0, 1, 2])
    changing.penalize(together, asked)
    for i, (repetition, frequency, presence) in enumerate(factors):
        own = counts[i].clone()
        for token in new[i]:
            own[token] += 1
        assert torch.equal(asked[i].counts, own)
        came = (own > 0) | in_prompt[i]
        value = torch.where(logits[i] > 0, logits[i] / repetition, logits[i] * repetition)
        value = torch.where(came, value, logits[i]) - frequency * own - presence * (own > 0)
        torch.testing.assert_close(together[i], value)
        alone = logits[i : i + 1].clone()
        changing.penalize(alone, penalties([i]))
        assert torch.equal(alone[0], together[i])
        reference = logits[i : i + 1].clone()
        REFERENCE.penalize(reference, penalties([i]))
        assert torch.equal(reference, alone)


@pytest.mark.parametrize("vocab", VOCABS)
def test_log_probabilities(changing: Backend, vocab: int, generator: torch.Generator) -> None:
    logits = apart(9, vocab, generator)
    logits[2, 1:] = -torch.inf
    logits[3, 1] = torch.nan
    logits[4] = 1000.0
    got = changing.log_softmax(logits)
    want = torch.log_softmax(logits.double(), -1)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6, equal_nan=True)
    for row in (0, 2, 4, 8):
        assert torch.equal(changing.log_softmax(logits[row : row + 1])[0], got[row])
    assert changing.log_softmax(logits[:0]).shape == (0, vocab)


@pytest.mark.parametrize("most", [0, 5, 40])
@pytest.mark.parametrize("vocab", VOCABS)
def test_the_likeliest(changing: Backend, vocab: int, most: int, generator: torch.Generator) -> None:
    most, scores = min(most, vocab), apart(9, vocab, generator)
    scores[1, 1:] = -torch.inf
    chosen = torch.randint(0, vocab, (9,), generator=generator)
    chosen[5] = vocab + 7  # a picture's placeholder, which could not come
    found = changing.likeliest(scores, chosen, most)
    own = torch.where(chosen < vocab, scores.gather(1, chosen.clamp(max=vocab - 1)[:, None])[:, 0], -torch.inf)
    assert torch.equal(found.own, own)
    assert torch.equal(found.ranks, (scores > own[:, None]).sum(1) + 1)
    assert torch.equal(found.values, scores.sort(descending=True).values[:, :most])
    assert torch.equal(scores.gather(1, found.ids), found.values)
    assert all(len(set(ids)) == most for ids in found.ids.tolist())
    alone = changing.likeliest(scores[6:7], chosen[6:7], most)
    assert torch.equal(alone.ids[0], found.ids[6])
    assert changing.likeliest(scores[:0], chosen[:0], most).own.shape == (0,)


def test_of_equals_the_first_come_first(triton_backend: Backend) -> None:
    scores = torch.zeros(1, 9000)
    scores[0, 7000], scores[0, 40] = 1.0, -0.0
    assert triton_backend.likeliest(scores, torch.tensor([3]), 3).ids.tolist() == [[7000, 0, 1]]
    assert triton_backend.likeliest(scores, torch.tensor([3]), 35).ids[0, :3].tolist() == [7000, 0, 1]


@pytest.mark.parametrize("vocab", VOCABS)
def test_what_is_left_to_draw(changing: Backend, vocab: int, generator: torch.Generator) -> None:
    ways = [{"temperature": 1.0, **way} for way in WAYS.values()]
    logits = apart(len(ways), vocab, generator)
    by = [DrawBy(**way) for way in ways]
    likely = logits.argmax(-1)
    got = changing.left_to_draw(logits, by, likely)
    for row, one in enumerate(by):
        if not one.temperature:
            assert torch.equal(got[row], logits[row])
            continue
        assert set((got[row] > -math.inf).nonzero().flatten().tolist()) == kept(logits[row], one) | {int(likely[row])}
        stays = got[row] > -math.inf
        assert torch.equal(got[row][stays], (logits[row] / torch.tensor(one.temperature))[stays])
        alone = changing.left_to_draw(logits[row : row + 1], [one], likely[row : row + 1])
        assert torch.equal(alone[0], got[row])
    assert torch.equal(changing.left_to_draw(logits, by, likely), REFERENCE.left_to_draw(logits, by, likely))
    least = logits.argmin(-1)
    assert bool((changing.left_to_draw(logits, by, least).gather(1, least[:, None]) > -math.inf).all())


def test_rows_are_picked() -> None:
    x = torch.arange(6).view(3, 2)
    assert rows_of(x, [0, 1, 2]) is x
    assert rows_of(x, [2, 0]).tolist() == [[4, 5], [0, 1]]
    assert rows_of(x, []).shape == (0, 2)
