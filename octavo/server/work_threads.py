"""Where texts are read: threads beside the event loop, with short work apart from long, which it need not wait for."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

LONG = 1 << 15
"""Characters (or tokens) of a text that is long."""


class TextThreads:
    """Threads for tokenizers and chat templates, which may take their time; the event loop goes on meanwhile."""

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(2, "octavo-short-texts")
        self._long = ThreadPoolExecutor(2, "octavo-long-texts")
        self._short_chats = ThreadPoolExecutor(2, "octavo-short-chats")
        self._long_chats = ThreadPoolExecutor(2, "octavo-long-chats")
        self._media = ThreadPoolExecutor(2, "octavo-media")

    async def run(self, size: int, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """What `work` returns, for texts of `size` characters or tokens."""
        return await self._in(self._long if size > LONG else self._short, work, *args, **options)

    async def template(self, size: int, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """What `work` returns, which renders a chat template with conversations of `size` characters."""
        return await self._in(self._long_chats if size > LONG else self._short_chats, work, *args, **options)

    async def media(self, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """What `work` returns, which decodes pictures, films and sounds: few at a time, since each may need memory."""
        return await self._in(self._media, work, *args, **options)

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, lambda: work(*args, **options))

    def stop(self) -> None:
        """Begin nothing more."""
        for pool in (self._short, self._long, self._short_chats, self._long_chats, self._media):
            pool.shutdown(wait=False, cancel_futures=True)


def size_of(value: object) -> int:
    """Roughly how much text or how many tokens a prompt, messages or a list of them have; counted up to LONG."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if not isinstance(value, (list, tuple, dict)):
        return 0
    size = len(value)
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], int):
        return size  # token ids: counting a million of them would hold the event loop
    for item in value.values() if isinstance(value, dict) else value:
        if size > LONG:
            break
        size += size_of(item)
    return size
