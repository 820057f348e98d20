"""A replica: the engine and the HTTP application over it, in an actor of Ray Serve."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message

from octavo.config import EngineArgs
from octavo.executor.ray_cluster import import_ray
from octavo.logs import log_to_stderr
from octavo.server.app import create_app
from octavo.server.server_options import ServerOptions
from octavo.server.service import Service


@dataclass
class WholeRequest:
    """An HTTP request that has come in whole: ASGI's scope, as far as it is plain data, and the body."""

    scope: dict[str, Any]
    body: bytes = field(repr=False)


class Replica:
    """What Serve keeps as many of as are needed. Its engine is a process of its own, which ends with it.

    Args:
        args: the engine's options.
        options: the server's.
    """

    app: ASGIApp

    async def __init__(self, args: EngineArgs, options: ServerOptions) -> None:  # type: ignore[misc]
        log_to_stderr()
        log_to_stderr("octavo.requests", "%(message)s")
        if args.distributed_executor_backend == "ray":  # the engine's process looks for it there
            os.environ["RAY_ADDRESS"] = import_ray().get_runtime_context().gcs_address
        self.service = Service(args, options)
        self.service.client.launch()
        await self.service.start()
        self.app = create_app(self.service)

    async def answer(self, chain: list[int], request: WholeRequest) -> AsyncGenerator[list[Message], None]:
        """ASGI's messages of the answer as they come, several together where they come faster than they are taken.

        Closing the generator is what a client does that closes its connection.

        Args:
            chain: for the router.
            request: what is answered.
        """
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        gone, asked = asyncio.Event(), False

        async def receive() -> Message:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": request.body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            messages.put_nowait(message)

        task = asyncio.ensure_future(self.app(request.scope, receive, send))
        task.add_done_callback(lambda task: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                several = [message]
                while not messages.empty() and (message := messages.get_nowait()) is not None:
                    several.append(message)
                yield several
                if message is None:
                    break
            await task
        finally:
            gone.set()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def metrics(self) -> bytes:
        """This replica's numbers, for Prometheus."""
        assert self.service.metrics is not None
        self.service.metrics.take_states(self.service.client.states)
        return self.service.metrics.text()

    def check_health(self) -> None:
        """Serve puts another one in the place of a replica for which this raises: whose engine stays dead."""
        client = self.service.client
        if client.state == "dead":
            raise RuntimeError("the engine is dead") from client.failure

    async def __del__(self) -> None:  # Serve waits for it
        await self.service.stop()
