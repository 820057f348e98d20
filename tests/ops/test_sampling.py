"""Choosing tokens: the compiled core against the reference, and both against a plain definition."""

import pytest
import torch
from torch import Tensor

from octavo.ops import NOT_FINITE, Backend, DrawBy
from octavo.ops.native import NativeBackend
from tests.ops.conftest import REFERENCE

WAYS = {
    "greedy": {"temperature": 0.0},
    "all": {},
    "hot": {"temperature": 3.0},
    "min_p": {"min_p": 0.1},
    "one": {"top_k": 1},
    "top_k": {"top_k": 40},
    "most": {"top_k": 2000},
    "top_p": {"top_p": 0.9},
    "narrow": {"top_p": 1e-6},
    "wide": {"top_p": 0.9999, "temperature": 5.0},
    "both": {"top_k": 100, "top_p": 0.5, "min_p": 0.001, "temperature": 1.5},
}


def kept(logits: Tensor, by: DrawBy) -> set[int]:
    """What may be drawn, from a sorted vocabulary in float64."""
    weights = (logits.double() / by.temperature).softmax(-1)
    weights[weights < by.min_p * weights.max()] = 0
    order = weights.argsort(descending=True, stable=True)
    if by.top_k:
        order = order[: by.top_k]
    shares = weights[order] / weights[order].sum()
    return set(order[(shares.cumsum(0) - shares < by.top_p) & (shares > 0)].tolist())


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("vocab", [3, 250, 3001, 49152])
def test_alike(native: NativeBackend, way: dict[str, float], vocab: int, generator: torch.Generator) -> None:
    """The same tokens, but for draws that fall within a rounding of a border: none here."""
    rows = 40
    logits = torch.randn(rows, vocab, generator=generator) * 3
    draws = torch.rand(rows, generator=generator, dtype=torch.float64).tolist()
    by = [DrawBy(**{"temperature": 1.0, **way}, draw=d) for d in draws]
    got = native.sample(logits, by)
    assert (got == REFERENCE.sample(logits, by)).float().mean() > 0.97
    for i in range(0, rows, 7):
        assert native.sample(logits[i : i + 1], by[i : i + 1]).tolist() == [int(got[i])]
        if by[i].temperature and vocab < 49152:
            assert int(got[i]) in kept(logits[i], by[i])


@pytest.mark.parametrize("way", [{"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.3}, {"top_k": 7, "top_p": 0.6}])
def test_all_that_is_kept_is_drawn(backend: Backend, way: dict[str, float], generator: torch.Generator) -> None:
    logits = torch.randn(60, generator=generator) * 1.5
    by = [DrawBy(**{"temperature": 1.0, **way}, draw=d / 4000) for d in range(4000)]
    drawn = backend.sample(logits.repeat(4000, 1), by)
    seen = set(drawn.tolist())
    assert seen <= kept(logits, by[0])
    assert len(seen) >= len(kept(logits, by[0])) - 1  # one may be too unlikely
    shares = torch.bincount(drawn, minlength=60) / 4000
    want = torch.zeros(60)
    index = torch.tensor(sorted(seen))
    want[index] = logits[index].softmax(-1)
    torch.testing.assert_close(shares, want, atol=2e-3, rtol=0)


def test_equals_are_taken_in_order(backend: Backend) -> None:
    logits = torch.zeros(1, 5000)
    assert backend.sample(logits, [DrawBy()]).tolist() == [0]
    for draw, want in ((0.0, 0), (0.5, 5), (0.999, 9)):
        assert backend.sample(logits, [DrawBy(1.0, top_k=10, draw=draw)]).tolist() == [want]
    assert backend.sample(logits, [DrawBy(1.0, top_p=0.001, draw=0.99)]).tolist() == [4]


def test_what_is_not_finite(backend: Backend, generator: torch.Generator) -> None:
    logits = torch.randn(6, 1000, generator=generator)
    sound = backend.sample(logits, [DrawBy()] * 6)
    logits[1, 500] = torch.nan
    logits[2, 999] = torch.inf
    logits[3, :] = -torch.inf
    logits[4, 1:] = -torch.inf
    for by in (DrawBy(), DrawBy(1.0, draw=0.3), DrawBy(0.7, top_k=3, top_p=0.9, draw=0.8)):
        got = backend.sample(logits, [by] * 6).tolist()
        assert got[1:5] == [NOT_FINITE, NOT_FINITE, 0, 0]
    assert backend.sample(logits, [DrawBy()] * 6)[[0, 5]].tolist() == sound[[0, 5]].tolist()
