"""Triton's sampler: token for token the reference's."""

import pytest
import torch

from octavo.ops import NOT_FINITE, Backend, DrawBy
from tests.ops.conftest import REFERENCE
from tests.ops.test_sampling import WAYS, kept

pytest.importorskip("triton")


@pytest.mark.parametrize("vocab", [3, 250, 5001, pytest.param(49152, marks=pytest.mark.interpreted)])
def test_tokens_are_the_reference_s(triton_backend: Backend, vocab: int, generator: torch.Generator) -> None:
    """Of all ways in one batch, rows lying apart; and alone."""
    rows = 4 * len(WAYS)
    logits = (torch.randn(rows, vocab + 3, generator=generator) * 3)[:, :vocab]
    draws = torch.rand(rows, generator=generator, dtype=torch.float64).tolist()
    ways = [{"temperature": 1.0, **way} for way in WAYS.values()] * 4
    by = [DrawBy(**way, draw=draw) for way, draw in zip(ways, draws, strict=True)]
    got = triton_backend.sample(logits, by)
    assert torch.equal(got, REFERENCE.sample(logits, by))
    for row in range(0, rows, 5):
        assert triton_backend.sample(logits[row : row + 1], by[row : row + 1]).tolist() == [int(got[row])]
        if by[row].temperature and vocab < 49152:
            assert int(got[row]) in kept(logits[row], by[row])
    assert triton_backend.sample(logits[:0], []).shape == (0,)


@pytest.mark.parametrize("way", [{"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.3}, {"top_k": 7, "top_p": 0.6}, {}])
def test_every_draw_is_the_reference_s(
    triton_backend: Backend, way: dict[str, float], generator: torch.Generator
) -> None:
    logits = torch.randn(1, 60, generator=generator).repeat(100, 1)
    by = [DrawBy(**{"temperature": 1.3, **way}, draw=d / 100) for d in range(100)]
    assert torch.equal(triton_backend.sample(logits, by), REFERENCE.sample(logits, by))


def test_equals_are_taken_in_order(triton_backend: Backend) -> None:
    """Also where those that stay end inside of a block of columns, or in a later one."""
    logits = torch.zeros(1, 9000)
    logits[0, 3] = -0.0
    assert triton_backend.sample(logits, [DrawBy()]).tolist() == [0]
    for by, want in (
        (DrawBy(1.0, top_k=10, draw=0.0), 0),
        (DrawBy(1.0, top_k=10, draw=0.999), 9),
        (DrawBy(1.0, top_k=5000, draw=0.9999), 4999),
        (DrawBy(1.0, top_p=0.001, draw=0.99), 8),
        (DrawBy(1.0, top_p=0.5, draw=0.99999), 4499),
        (DrawBy(1.0, top_k=5000, top_p=0.9, draw=0.99999), 4499),
    ):
        assert triton_backend.sample(logits, [by]).tolist() == [want], by
        assert REFERENCE.sample(logits, [by]).tolist() == [want], by


@pytest.mark.parametrize("by", [DrawBy(), DrawBy(1.0, draw=0.3), DrawBy(0.7, top_k=3, top_p=0.9, draw=0.8)], ids=str)
def test_what_is_not_finite(triton_backend: Backend, by: DrawBy, generator: torch.Generator) -> None:
    logits = torch.randn(7, 5000, generator=generator)
    sound = triton_backend.sample(logits, [by] * 7)
    logits[1, 500] = torch.nan
    logits[2, 4999] = torch.inf
    logits[3, :] = -torch.inf
    logits[4, 1:] = -torch.inf
    logits[5, :4500] = -torch.inf
    got = triton_backend.sample(logits, [by] * 7)
    assert got[1:5].tolist() == [NOT_FINITE, NOT_FINITE, 0, 0]
    assert torch.equal(got[[0, 6]], sound[[0, 6]])
    assert torch.equal(got, REFERENCE.sample(logits, [by] * 7))
