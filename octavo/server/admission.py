"""How much the server takes at a time. What is admitted is counted from its arrival to its HTTP request's end."""

from contextvars import ContextVar
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.errors import InvalidRequestError, OctavoError
from octavo.server.server_options import ServerOptions


class OverloadedError(OctavoError):
    """There are too many requests already."""


@dataclass
class Load:
    """Requests to the engine (one a prompt), the sequences that they are computed as, and the bytes of their media."""

    requests: int = 0
    sequences: int = 0
    media_bytes: int = 0


_of_this_request: ContextVar[Load | None] = ContextVar("load", default=None)


class Admission:
    """Counts, before anything is tokenized or waited for, what HTTP requests bring.

    Args:
        options: the limits.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.load = Load()
        """Of all HTTP requests that have not ended."""

    def admit(self, requests: int = 1, n: int = 1) -> None:
        """Count so many prompts with `n` answers each, until the HTTP request that this is called in ends.

        Raises InvalidRequestError for more than could ever be admitted, OverloadedError for more than now.
        """
        options, sequences = self.options, requests * n
        if requests > options.max_queued_requests:
            raise InvalidRequestError(
                f"there are {requests} prompts, and this server takes {options.max_queued_requests} at a time. "
                "Send them in parts, or start it with a larger --max-queued-requests."
            )
        if n > 1:
            self._bounded(requests, n)
        if self.load.requests + requests > options.max_queued_requests:
            raise OverloadedError(f"{self.load.requests} requests are running or waiting. Try again in a moment.")
        if self.load.sequences + sequences > options.max_queued_sequences:
            raise OverloadedError(f"{self.load.sequences} answers are running or waiting. Try again in a moment.")
        if (mine := _of_this_request.get()) is not None:
            for load in (self.load, mine):
                load.requests += requests
                load.sequences += sequences

    def admit_media(self, media_bytes: int) -> None:
        """Count what the media of a prompt take (or less, where it is negative) until this HTTP request ends.

        Raises as `admit`.
        """
        most = self.options.queued_media_bytes
        if media_bytes > most:
            raise InvalidRequestError(
                f"the prompt's media take {media_bytes:,} bytes, and this server takes {most:,}. Send fewer or smaller "
                "ones, or start it with a larger --max-queued-media."
            )
        if self.load.media_bytes + media_bytes > most:
            raise OverloadedError("requests that are running or waiting have too many media. Try again in a moment.")
        if (mine := _of_this_request.get()) is not None:
            self.load.media_bytes += media_bytes
            mine.media_bytes += media_bytes

    def _bounded(self, requests: int, n: int) -> None:
        limit = min(self.options.max_request_sequences, self.options.max_queued_sequences)
        if requests * n > limit:
            raise InvalidRequestError(
                f"{requests} prompts times n={n} are {requests * n} answers, and one request may ask for {limit}. "
                "Send it in parts, or start the server with a larger --max-request-sequences."
            )

    def hold(self) -> Load:
        """What this task admits from now on: counted until `release` is called with it, beyond its HTTP request."""
        load = Load()
        _of_this_request.set(load)
        return load

    def release(self, load: Load) -> None:
        """What was admitted has ended."""
        self.load.requests -= load.requests
        self.load.sequences -= load.sequences
        self.load.media_bytes -= load.media_bytes


class AdmissionScope:
    """ASGI middleware: what is admitted within an HTTP request is released at its end, however it ends."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self.app, self.admission = app, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        load = Load()
        token = _of_this_request.set(load)
        try:
            await self.app(scope, receive, send)
        finally:
            _of_this_request.reset(token)
            self.admission.release(load)
