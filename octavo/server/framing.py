"""How a request's bytes are cut from its connection: what two readers could cut differently is refused.

A proxy and this server that disagree about where a request ends let one client's bytes pass as another's request. The
parser (llhttp) refuses most of what does that; here are the rest of RFC 9112's rules, and bounds that it lacks.
"""

from typing import Any

from httptools import HttpParserError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from octavo.server.http_errors import error_response

HEADERS_MAX = 64 << 10
"""Bytes of a request's first line and headers; also of a chunk's extensions and of the trailers."""

Headers = list[tuple[bytes, bytes]]


class FramingError(HttpParserError):  # type: ignore[misc,unused-ignore]
    """A request whose end is not certain."""


def check_framing(version: str, headers: Headers, upgrade: bool) -> None:
    """Raises FramingError unless the headers (names in lower case) say in one way only where the request ends.

    Args:
        version: HTTP's, such as "1.1".
        upgrade: whether the parser takes what follows for another protocol.
    """

    def values(name: bytes) -> list[bytes]:
        return [value.strip(b" \t").lower() for key, value in headers if key == name]

    encodings, lengths = values(b"transfer-encoding"), values(b"content-length")
    if encodings and encodings != [b"chunked"]:
        raise FramingError("Transfer-Encoding may only be chunked, and only once.")
    if encodings and lengths:
        raise FramingError("Content-Length and Transfer-Encoding exclude each other.")
    if encodings and version == "1.0":
        raise FramingError("HTTP/1.0 has no Transfer-Encoding.")
    if len(lengths) > 1 or not all(length.isdigit() for length in lengths):
        raise FramingError("Content-Length must be one number.")
    if version not in ("1.0", "1.1"):
        raise FramingError("the version must be HTTP/1.0 or HTTP/1.1.")
    if len(values(b"host")) > 1 or (version == "1.1" and not values(b"host")):
        raise FramingError("there must be one Host.")
    if upgrade and (encodings or lengths not in ([], [b"0"])):
        raise FramingError("a request that asks for an Upgrade may have no body.")


class StrictProtocol(HttpToolsProtocol):
    """uvicorn's protocol with these rules. A request that breaks them is answered with 400, and nothing after it is
    read."""

    _unread = 0
    """Bytes since the parser last had something whole: headers, a part of a body, a request's end."""
    _size = 0
    """Bytes of the headers so far."""

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(data)
        if self._unread > HEADERS_MAX and not self.transport.is_closing():
            self.send_400_response(f"the headers are longer than {HEADERS_MAX} bytes.")

    def on_message_begin(self) -> None:
        self._size = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > HEADERS_MAX:
            raise FramingError(f"the headers are longer than {HEADERS_MAX} bytes.")

    def on_headers_complete(self) -> None:
        self._unread = 0
        check_framing(self.parser.get_http_version(), self.headers, self.parser.should_upgrade())
        super().on_headers_complete()
        self.headers = []  # trailers, which come later, are not this request's headers

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing is said: the request is answered as any other (RFC 9110, 7.8)."""

    def send_400_response(self, msg: str) -> None:
        """Answer with an error and close. In the midst of another answer only close: nothing may come between."""
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            response = error_response(400, f"the HTTP request is malformed: {msg}")
            head = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers)
            body = bytes(response.body)
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + head + b"connection: close\r\n\r\n" + body)
        self.transport.close()
