"""Requests that wait while the engine is to compute nothing."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from octavo.client.async_requests import AsyncRequests
from octavo.client.engine_client import EngineClient
from octavo.client.output_processor import Processor


class PausingRequests(AsyncRequests):
    """AsyncRequests that can be held back before they reach the engine, and be kept from what it remembers."""

    def __init__(self) -> None:
        super().__init__()
        self._num_resets = 0
        self._may_run = asyncio.Event()
        self._may_run.set()

    @property
    def is_paused(self) -> bool:
        """Whether new requests wait."""
        return not self._may_run.is_set()

    def pause(self) -> None:
        """Have new requests wait until `resume`."""
        self._may_run.clear()

    def forget_prompts(self) -> None:
        """Have later requests find nothing of earlier ones in the prefix cache, whose blocks others then take.

        They have another salt, so that this needs nothing of an engine, whether it runs or not.
        """
        self._num_resets += 1

    def resume(self) -> None:
        """Let them run."""
        self._may_run.set()

    async def generate(
        self,
        client: EngineClient,
        processor: Processor,
        priority: int = 0,
        on_tokens: Callable[[int], None] = lambda count: None,
    ) -> AsyncGenerator[Any, None]:
        """As AsyncRequests.generate, once requests may run."""
        await self._may_run.wait()
        if self._num_resets:  # no client can send a salt that is such a one: each has it before its own
            processor.prompt.cache_salt = f"{self._num_resets}\0{processor.prompt.cache_salt}"
        outputs = super().generate(client, processor, priority, on_tokens)
        try:
            async for output in outputs:
                yield output
        finally:
            await outputs.aclose()

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
