"""Which features' rows the executor holds. Digests and integers only: the rows themselves are the executor's."""

from collections import OrderedDict
from dataclasses import dataclass

from octavo.features import Feature


@dataclass(slots=True)
class _Rows:
    count: int
    holders: int = 0
    is_computed: bool = False


class FeatureCache:
    """Decides whose rows are computed and kept. What nobody holds stays as long as there is room, the longest unused
    going first.

    Args:
        max_rows: most rows that are kept. A single feature may have more.
        max_step_rows: most rows that a step computes. A single feature may have more.
    """

    def __init__(self, max_rows: int, max_step_rows: int) -> None:
        self.max_rows, self.max_step_rows = max_rows, max_step_rows
        self._entries: OrderedDict[bytes, _Rows] = OrderedDict()
        """By digest, the longest unused first."""
        self._num_rows = self._held_rows = self._step_rows = 0
        self._dropped: list[bytes] = []
        self.num_hits = self.num_computed = 0
        """Features whose rows were there when a sequence came to them, and features whose rows were computed."""

    def begin_step(self) -> None:
        self._step_rows = 0

    def hold(self, feature: Feature) -> bool:
        """Keep a feature's rows for a sequence, computed in this step if they are not there; False without room."""
        entry = self._entries.get(feature.digest)
        new_rows = 0 if entry is not None else feature.length
        held_rows = 0 if entry is not None and entry.holders else feature.length
        if entry is None and self._step_rows and self._step_rows + new_rows > self.max_step_rows:
            return False
        if held_rows and self._held_rows and self._held_rows + held_rows > self.max_rows:
            return False
        if entry is None:
            entry = self._entries[feature.digest] = _Rows(feature.length)
            self._num_rows += new_rows
            self._step_rows += new_rows
        elif entry.is_computed:
            self.num_hits += 1
        entry.holders += 1
        self._held_rows += held_rows
        self._entries.move_to_end(feature.digest)
        self._make_room()
        return True

    def release(self, feature: Feature) -> None:
        """A sequence that held a feature's rows needs them no longer."""
        entry = self._entries[feature.digest]
        entry.holders -= 1
        if entry.holders:
            return
        self._held_rows -= entry.count
        if entry.is_computed:
            self._make_room()
        else:
            self._remove(feature.digest)

    def compute(self, feature: Feature) -> bool:
        """Whether the rows of a feature that is held are still to be computed, as they are from now on."""
        entry = self._entries[feature.digest]
        if entry.is_computed:
            return False
        entry.is_computed = True
        self.num_computed += 1
        return True

    def distrust(self, feature: Feature) -> None:
        """A feature's rows could not be computed after all."""
        if (entry := self._entries.get(feature.digest)) is not None:
            entry.is_computed = False
            if not entry.holders:
                self._remove(feature.digest)

    def reset(self) -> None:
        """Nothing that the executor holds is of use."""
        for digest, entry in list(self._entries.items()):
            entry.is_computed = False
            self._dropped.append(digest)
            if not entry.holders:
                self._remove(digest)

    def take_dropped(self) -> list[bytes]:
        """Digests whose rows the executor is to forget, before it computes any."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def _make_room(self) -> None:
        if self._num_rows <= self.max_rows:
            return
        for digest in [d for d, e in self._entries.items() if not e.holders]:
            self._remove(digest)
            if self._num_rows <= self.max_rows:
                return

    def _remove(self, digest: bytes) -> None:
        entry = self._entries.pop(digest)
        self._num_rows -= entry.count
        if entry.is_computed:
            self._dropped.append(digest)
