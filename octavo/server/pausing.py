"""Requests that wait while the engine is to compute nothing."""

import asyncio
from collections.abc import Sequence

from octavo.client.async_requests import AsyncRequests
from octavo.client.engine_client import EngineClient
from octavo.client.output_processor import Processor
from octavo.errors import OctavoError


class PausingRequests(AsyncRequests):
    """AsyncRequests that can be held back before they reach the engine, and be kept from what it remembers."""

    def __init__(self) -> None:
        super().__init__()
        self._num_resets = 0
        self._held: dict[str, asyncio.Future[None]] | None = None
        """While requests wait: what each waits for, by its id."""

    @property
    def is_paused(self) -> bool:
        """Whether new requests wait."""
        return self._held is not None

    def pause(self) -> None:
        """Have new requests wait until `resume`."""
        self._held = {} if self._held is None else self._held

    def forget_prompts(self) -> None:
        """Have later requests find nothing of earlier ones in the prefix cache, whose blocks others then take.

        They have another salt, so that this needs nothing of an engine, whether it runs or not.
        """
        self._num_resets += 1

    def resume(self) -> None:
        """Let them run."""
        held, self._held = self._held or {}, None
        for future in held.values():
            if not future.done():
                future.set_result(None)

    def fail(self, request_id: str, error: OctavoError) -> None:
        future = None if self._held is None else self._held.get(request_id)
        if future is None:
            super().fail(request_id, error)
        elif not future.done():
            future.set_exception(error)

    async def _begin(self, processor: Processor) -> None:
        """Wait until requests may run."""
        while (held := self._held) is not None:
            request_id = processor.request_id
            future = held[request_id] = asyncio.get_running_loop().create_future()
            try:
                await future
            finally:
                if held.get(request_id) is future:
                    del held[request_id]
        if self._num_resets:  # no client can send a salt that is such a one: each has it before its own
            processor.prompt.cache_salt = f"{self._num_resets}\0{processor.prompt.cache_salt}"

    def abort_those(self, client: EngineClient, ids: Sequence[str] | None) -> int:
        """End requests by what answers call them, or all of them; how many there were."""
        found = [name for name in self._names if ids is None or any(_is_of(name, id) for id in ids)]
        for name in found:
            self.abort(client, name)
        return len(found)

    async def idle(self) -> None:
        """Wait until none runs."""
        while len(self):
            await asyncio.sleep(0.02)


def _is_of(name: str, id: str) -> bool:
    """Whether a request is of an answer: several prompts are `ID-0`, `ID-1` ..."""
    return name == id or (name.startswith(f"{id}-") and name[len(id) + 1 :].isdecimal())
