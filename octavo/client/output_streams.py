"""What an asynchronous engine's calls give: outputs to iterate over, and answers to await, each saying which it is."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


class OutputStream(AsyncGenerator[T, None]):
    """Outputs as they come, for `async for`. Who awaits it is told so.

    Args:
        outputs: gives them.
        name: of the call that they are of.
    """

    def __init__(self, outputs: AsyncGenerator[T, None], name: str) -> None:
        self._outputs, self._name = outputs, name

    def __repr__(self) -> str:
        return f"<outputs of {self._name}, to be read by `async for`>"

    def __await__(self) -> NoReturn:
        """Raises TypeError, which says how they are read."""
        raise TypeError(
            f"{self._name} gives outputs as they come and cannot be awaited: read them by `async for output in "
            f"{self._name}(...)`. The last one is the whole answer."
        )

    def __aiter__(self) -> "OutputStream[T]":
        return self

    def __anext__(self) -> Coroutine[Any, Any, T]:
        return self._outputs.__anext__()

    def asend(self, value: None) -> Coroutine[Any, Any, T]:
        return self._outputs.asend(value)

    def athrow(self, *error: Any) -> Coroutine[Any, Any, T]:
        return self._outputs.athrow(*error)

    def aclose(self) -> Coroutine[Any, Any, None]:
        """End the request, if it has not ended."""
        return self._outputs.aclose()


class OneAnswer(Coroutine[Any, Any, T]):
    """The one answer of a call, which may be awaited, or, as with vLLM, iterated over by `async for`.

    Args:
        ask: begins with it, once somebody waits.
    """

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._ask = ask
        self._asked: Coroutine[Any, Any, T] | None = None

    def _coroutine(self) -> Coroutine[Any, Any, T]:
        self._asked = self._asked or self._ask()
        return self._asked

    def __await__(self) -> Generator[Any, Any, T]:
        return self._coroutine().__await__()

    async def __aiter__(self) -> AsyncIterator[T]:
        yield await self

    def send(self, value: Any) -> Any:
        return self._coroutine().send(value)

    def throw(self, *error: Any) -> Any:
        return self._coroutine().throw(*error)

    def close(self) -> None:
        if self._asked is not None:
            self._asked.close()
