"""Bytes behind an address: data: URLs, and, where options allow it, http(s) servers and files of one folder."""

import base64
import binascii
import ipaddress
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, unquote_to_bytes, urljoin, urlsplit

from octavo.config import EngineArgs
from octavo.errors import ConfigError, InvalidRequestError, shorten
from octavo.media.limits import DEFAULT_LIMITS, MediaLimits
from octavo.media.sources import check_bytes, check_length, read_media_file

if TYPE_CHECKING:
    import httpx

PIECE = 1 << 20
"""Characters of base64 that are decoded at a time."""
_REDIRECTS = (301, 302, 303, 307, 308)
_HINT = "Send a data: URL, or ask the server's operator for --allowed-media-domains."


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """Which addresses may be fetched. By default none but data: URLs."""

    domains: Sequence[str] = ()
    """Names as they stand in URLs; `*.name` allows what lies under a name, `*` everything. Private addresses (this
    machine, its network) are reached only by a name that is written out."""
    folder: str | Path | None = None
    """Whose files file: URLs may name."""
    timeout: float = 10.0
    """Seconds for a whole fetch, all redirects together."""
    max_redirects: int = 5
    limits: MediaLimits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        if self.folder is not None and not Path(self.folder).is_dir():
            raise ConfigError(f"allowed_local_media_path, {shorten(self.folder, 200)}, is no folder. Name one.")

    def allows(self, host: str) -> bool:
        """Whether a server of this name may be asked."""
        return any(d == "*" or d == host or (d[:2] == "*." and host.endswith(d[1:])) for d in self._names())

    def names(self, host: str) -> bool:
        """Whether this very name is written out."""
        return host in self._names()

    def _names(self) -> list[str]:
        return [d.lower().rstrip(".") for d in self.domains]


class MediaFetcher:
    """Fetches what a policy allows. Any of its methods may be called from several threads."""

    def __init__(self, policy: FetchPolicy = FetchPolicy(), threads: int = 8) -> None:
        self.policy = policy
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="octavo-fetch")
        self._is_closed = False

    def close(self) -> None:
        """Begin nothing more, and leave what comes slowly: this process is to end."""
        self._is_closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    @classmethod
    def of_options(cls, args: EngineArgs, limits: MediaLimits = DEFAULT_LIMITS) -> "MediaFetcher":
        """One that follows allowed_media_domains, allowed_local_media_path and media_fetch_timeout.

        Raises ConfigError for a folder that is none.
        """
        domains = tuple(args.allowed_media_domains or ())
        return cls(FetchPolicy(domains, args.allowed_local_media_path, args.media_fetch_timeout, limits=limits))

    async def fetch_async(self, url: str, name: str = "the URL") -> bytes:
        """Like `fetch`, on a thread, so that the event loop goes on."""
        import asyncio

        pool = self._pool if is_remote(url) else None  # who waits for other machines holds nobody else up
        work = asyncio.get_running_loop().run_in_executor(pool, self.fetch, url, name)
        try:
            return await asyncio.wait_for(work, 2 * self.policy.timeout + 1)  # looking up names has no limit of its own
        except TimeoutError as error:
            raise self._too_slow(name) from error

    def fetch(self, url: str, name: str = "the URL") -> bytes:
        """The bytes behind a URL.

        Raises InvalidRequestError for what is not allowed, not there, too large or too slow.
        """
        scheme = url[:8].split(":", 1)[0].lower()
        if scheme == "data":
            return decode_data_url(url, self.policy.limits, name)
        if len(url) > 8192:
            raise InvalidRequestError(f"{name} has {len(url):,} characters. Send a shorter one, or a data: URL.")
        if scheme == "file":
            return self._read_file(url, name)
        if scheme in ("http", "https"):
            return self._follow(url, name)
        raise InvalidRequestError(f"{name} begins with {shorten(scheme, 20)!r}. Send http:, https:, file: or data:.")

    def _read_file(self, url: str, name: str) -> bytes:
        if self.policy.folder is None:
            hint = "Ask the server's operator for --allowed-local-media-path, or send a data: URL."
            raise InvalidRequestError(f"{name} is a file, and none may be read here. {hint}")
        root = Path(self.policy.folder).resolve()
        refusal = InvalidRequestError(f"{name} is no file in the folder that may be read. Name one that is.")
        try:
            parts = urlsplit(url)
            path = (root / unquote(parts.path)).resolve(strict=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise refusal from error
        if parts.netloc not in ("", "localhost") or not path.is_relative_to(root) or not path.is_file():
            raise refusal
        return read_media_file(path, self.policy.limits, name)

    def _follow(self, url: str, name: str) -> bytes:
        import httpx

        deadline = time.monotonic() + self.policy.timeout
        for _ in range(self.policy.max_redirects + 1):
            try:
                answer = self._ask(url, deadline, name)
            except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
                if isinstance(error, httpx.TimeoutException):
                    raise self._too_slow(name) from error
                raise InvalidRequestError(f"{name} cannot be fetched ({type(error).__name__}). Check it.") from error
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise InvalidRequestError(
            f"{name} is redirected more than {self.policy.max_redirects} times. Send the last URL."
        )

    def _ask(self, url: str, deadline: float, name: str) -> bytes | str:
        """What a server answers: the bytes, or where else they are."""
        import httpx

        parts = _split(url, name)
        address = self._address(parts, name)
        host, port = parts.hostname or "", f":{parts.port}" if parts.port else ""
        there = f"[{address}]" if ":" in address else address
        path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        named = f"[{host}]" if ":" in host else host
        headers = {"Host": f"{named}{port}", "Accept-Encoding": "identity", "User-Agent": "octavo"}
        left = self._left(deadline, name)
        with (
            httpx.Client(trust_env=False, follow_redirects=False, timeout=left) as client,
            client.stream(
                "GET",
                f"{parts.scheme}://{there}{port}{path}",
                headers=headers,
                extensions={"sni_hostname": host},
            ) as response,
        ):
            if response.status_code in _REDIRECTS and "location" in response.headers:
                return urljoin(url, response.headers["location"])
            if response.status_code != 200:
                raise InvalidRequestError(f"{name} is answered with status {response.status_code}. Check it.")
            return self._body(response, deadline, name)

    def _body(self, response: "httpx.Response", deadline: float, name: str) -> bytes:
        limits = self.policy.limits
        pieces, size = [], 0
        for piece in response.iter_raw():
            self._left(deadline, name)
            size += len(piece)
            pieces.append(piece)
            if size > limits.max_bytes:
                break
        return check_bytes(b"".join(pieces), limits, f"what lies behind {name}")

    def _address(self, parts: SplitResult, name: str) -> str:
        """A server's address, checked: what is connected to is this, and not what its name means a moment later."""
        host = (parts.hostname or "").lower().rstrip(".")
        if parts.scheme not in ("http", "https") or not host or not self.policy.allows(host):
            raise InvalidRequestError(
                f"{name} leads to {shorten(host or parts.scheme, 80)!r}, not allowed here. {_HINT}"
            )
        port = parts.port or (443 if parts.scheme == "https" else 80)
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        if not self.policy.names(host):
            found = [address for address in found if _is_public(address)]
        if not found:
            raise InvalidRequestError(f"{name} leads to {shorten(host, 80)!r}, a private address. {_HINT}")
        return found[0]

    def _left(self, deadline: float, name: str) -> float:
        left = deadline - time.monotonic()
        if self._is_closed:
            raise InvalidRequestError(f"{name} is not fetched: the server is stopped.")
        if left <= 0:
            raise self._too_slow(name)
        return left

    def _too_slow(self, name: str) -> InvalidRequestError:
        return InvalidRequestError(f"{name} was not there within {self.policy.timeout:g} seconds. Try again later.")


def is_remote(url: object) -> bool:
    """Whether this is a URL of another machine."""
    return isinstance(url, str) and url[:6].lower().startswith(("http:", "https:"))


def _split(url: str, name: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        assert parts.port is None or parts.port >= 0  # reading it is what checks it
    except ValueError as error:
        raise InvalidRequestError(f"{name} is no URL: {shorten(error, 80)}. Check it.") from error
    if parts.username is not None or parts.password is not None:
        raise InvalidRequestError(f"{name} has a user name in it, which is not sent. Take it out.")
    return parts


def _is_public(address: str) -> bool:
    """Whether an address is of the world: none of this machine, its network, or a way through to them."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return ip.is_global and not ip.is_multicast


def decode_data_url(url: str, limits: MediaLimits = DEFAULT_LIMITS, name: str = "the URL") -> bytes:
    """The bytes that a data: URL is. Raises InvalidRequestError where it is none, or too large."""
    head, comma, body = url.partition(",")
    if not comma or not head.lower().startswith("data:"):
        raise InvalidRequestError(f"{name} is no data: URL. It is data:image/png;base64, and the file's bytes so.")
    if len(body) > 4 * limits.max_bytes:
        check_length(len(body), limits, name)
    if not head.lower().endswith(";base64"):
        return check_bytes(unquote_to_bytes(body), limits, name)
    return decode_base64(unquote(body) if "%" in body else body, limits, name)


def decode_base64(text: str, limits: MediaLimits = DEFAULT_LIMITS, name: str = "the data") -> bytes:
    """The bytes that base64 stands for. Raises InvalidRequestError where it is none, or too large."""
    text = "".join(text.split())
    padding = text.find("=")
    try:
        if 0 <= padding < len(text) - 2:
            raise ValueError("padding in the middle")
        # In pieces, so that other threads go on meanwhile.
        data = b"".join(base64.b64decode(text[i : i + PIECE], validate=True) for i in range(0, len(text), PIECE))
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(f"{name} is no base64 ({shorten(error, 80)}). Encode the file's bytes so.") from error
    return check_bytes(data, limits, name)
