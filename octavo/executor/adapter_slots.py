"""Adapters in the executor: loaded beside the steps, kept while there is room, in a slot while a step needs them."""

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from octavo.config import EngineArgs
from octavo.errors import OctavoError, failure
from octavo.executor.step import SequenceStart
from octavo.loading.adapter_loader import LoadedAdapter, load_adapter
from octavo.loading.model import LoadedModel
from octavo.lora import AdapterRef


@dataclass(eq=False)
class _Entry:
    """An adapter that sequences need, or that is kept."""

    ref: AdapterRef
    uses: int = 0
    """Sequences that need it."""
    loading: "Future[LoadedAdapter] | None" = None
    """None while there is no room."""
    slot: int | None = None
    is_dropped: bool = False
    """Whether it goes as soon as no sequence needs it."""

    @property
    def has_failed(self) -> bool:
        return self.loading is not None and self.loading.done() and self.loading.exception() is not None


class Adapters:
    """The adapters of all sequences.

    Those that no sequence needs stay, the most recently used ones, as long as there is room for them.

    Args:
        loaded: the model, whose parts have adapters from now on.
        args: the engine's options.
    """

    def __init__(self, loaded: LoadedModel, args: EngineArgs) -> None:
        self._loaded, self._args = loaded, args
        self._room = args.max_cpu_loras or args.max_loras
        loaded.model.enable_adapters(args.max_loras)
        self._parts = loaded.model.adapted_parts()
        self._entries: dict[bytes, _Entry] = {}
        """By digest; the least recently used first."""
        self._queue: deque[_Entry] = deque()
        """Those that wait for room, in the order in which they were asked for."""
        self._slots: list[_Entry | None] = [None] * args.max_loras
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="octavo-adapters")

    def begin(self, ref: AdapterRef) -> None:
        """A sequence needs an adapter, until `end`."""
        entry = self._entries.pop(ref.digest, None) or _Entry(ref)
        self._entries[ref.digest] = entry
        entry.uses += 1
        entry.is_dropped = False
        if entry.uses == 1 and entry.has_failed:  # while nobody waited for it
            entry.loading = None
        if entry.loading is None and entry.uses == 1:
            self._queue.append(entry)
            self._load_queued()

    def end(self, ref: AdapterRef) -> None:
        """A sequence needs it no more."""
        entry = self._entries[ref.digest]
        entry.uses -= 1
        if entry.uses == 0 and (entry.loading is None or entry.has_failed or entry.is_dropped):
            self._drop(entry)  # what could not be loaded is tried anew next time
        self._load_queued()

    def drop(self, digests: Iterable[bytes]) -> None:
        """Adapters that go as soon as no sequence needs them; unknown ones are ignored."""
        for digest in digests:
            if (entry := self._entries.get(digest)) is not None:
                entry.is_dropped = True
                if entry.uses == 0:
                    self._drop(entry)

    def _load_queued(self) -> None:
        """Begin to load what has waited longest, as far as there is room."""
        while self._queue:
            if self._queue[0].uses == 0:
                self._queue.popleft()
                continue
            held = [e for e in self._entries.values() if e.loading is not None]
            if len(held) >= self._room:
                if (idle := next((e for e in held if e.uses == 0), None)) is None:
                    return
                self._drop(idle)
            entry = self._queue.popleft()
            entry.loading = self._thread.submit(load_adapter, entry.ref, self._loaded, self._args)

    def _drop(self, entry: _Entry) -> None:
        if entry.slot is not None:
            self._put(entry.slot, None)
        self._entries.pop(entry.ref.digest, None)

    def wait(self, refs: Iterable[AdapterRef], seconds: float) -> None:
        """Wait until one of them is there."""
        loading = [e.loading for ref in refs if (e := self._entries[ref.digest]).loading is not None]
        wait([future for future in loading if future is not None], seconds, return_when="FIRST_COMPLETED")

    def is_ready(self, start: SequenceStart) -> bool:
        """Whether a sequence's adapter is there. Raises OctavoError where it cannot be had, or does not fit it."""
        assert start.adapter is not None
        loading = self._entries[start.adapter.digest].loading
        if loading is None or not loading.done():
            return False
        try:
            loading.result().check_prompt(start.prompt_token_ids)
        except OctavoError:
            raise
        except BaseException as error:
            raise OctavoError(f"the adapter {start.adapter.name!r} could not be loaded: {failure(error)}") from error
        return True

    def of(self, ref: AdapterRef) -> LoadedAdapter:
        """An adapter that is ready."""
        loading = self._entries[ref.digest].loading
        assert loading is not None
        return loading.result()

    def slots(self, refs: Sequence[AdapterRef | None]) -> list[int]:
        """The slots of a step's adapters, which are put there; -1 for None. At most max_loras differ."""
        needed = {ref.digest: self._entries[ref.digest] for ref in refs if ref is not None}
        free = [i for i, e in enumerate(self._slots) if e is None or e.ref.digest not in needed]
        free.sort(key=lambda i: self._slots[i] is not None)
        for entry in needed.values():
            if entry.slot is None:
                self._put(free.pop(0), entry)
        found = [-1 if ref is None else self._entries[ref.digest].slot for ref in refs]
        return [slot for slot in found if slot is not None]

    def _put(self, slot: int, entry: _Entry | None) -> None:
        """Have a slot's rows computed with an adapter; None to empty it."""
        if (before := self._slots[slot]) is not None:
            before.slot = None
        self._slots[slot] = entry
        changes = {} if entry is None else self.of(entry.ref).changes
        for path, part in self._parts.items():
            part.put_adapter(slot, changes.get(path))
        if entry is not None:
            entry.slot = slot

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
