"""What several ranks say of their parts of blocks, as one answer."""

from collections.abc import Sequence

from octavo.executor.store_messages import StoreNews


class StoreReplies:
    """Joins ranks' news: a block is there where all of them have it, and an answer once all have given theirs.

    Args:
        size: how many ranks there are.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._partial: dict[int, list[bytes]] = {}

    def join(self, news: Sequence[StoreNews | None]) -> StoreNews | None:
        """The news of one step from each rank."""
        joined = StoreNews()
        for each in news:
            if each is None:
                continue
            joined.unsaved += each.unsaved
            joined.stored_bytes += each.stored_bytes
            joined.loaded_bytes += each.loaded_bytes
            for ticket, flags in each.answers:
                given = self._partial.setdefault(ticket, [])
                given.append(flags)
                if len(given) == self._size:
                    joined.answers.append((ticket, bytes(map(min, zip(*self._partial.pop(ticket), strict=True)))))
        return None if all(each is None for each in news) else joined
