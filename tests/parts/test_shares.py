"""Which values and which heads each of several ranks has."""

import re

import pytest

from octavo.parts.split import HeadSplit, Split


@pytest.mark.parametrize(
    ("count", "size", "cuts"),
    [
        (5632, 2, [2816]),  # even between blocks of 256
        (11008, 2, [5376]),  # 43 blocks
        (768, 2, [384]),  # three blocks would be shares of one and two
        (151, 2, [72]),  # 19 blocks of 8, the last of 7
        (32000, 4, [7936, 15872, 23808]),
        (3, 3, [1, 2]),
    ],
)
def test_shares_are_cut_between_blocks(count: int, size: int, cuts: list[int]) -> None:
    shares = Split(0, size).shares(count)
    assert shares == tuple(zip([0, *cuts], [*cuts, count], strict=True))
    assert [Split(rank, size).share(count) for rank in range(size)] == list(shares)
    assert sum(Split(0, size).widths(count)) == count
    assert max(Split(0, size).widths(count)) < 1.07 * count / size + 1


def test_heads_are_divided_and_few_key_heads_repeated() -> None:
    ranks = [HeadSplit(Split(rank, 4), 8, 2, 16) for rank in range(4)]
    assert [own.heads for own in ranks] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert [own.kv_heads for own in ranks] == [(0, 1), (0, 1), (1, 2), (1, 2)]
    assert ranks[3].values == (96, 128)
    assert ranks[3].kv_values == (16, 32)
    assert [own.key_columns.given for own in ranks] == [16, 0, 16, 0]
    assert ranks[3].key_columns.widths == (16, 0, 16, 0)
    assert ranks[3].key_columns.first == 16
    assert ranks[1].query_columns.widths == (32,) * 4
    assert ranks[1].query_columns.first == 32


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "named"),
    [(9, 3, 2, "9 attention heads"), (12, 3, 2, "3 key heads"), (12, 4, 3, "4 key heads")],
)
def test_what_cannot_be_divided_is_named(heads: int, kv_heads: int, size: int, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{named} cannot be divided among {size} ranks")):
        HeadSplit(Split(0, size), heads, kv_heads, 8)
