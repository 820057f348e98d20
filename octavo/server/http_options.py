"""Options of how the server is reached: its address, keys, TLS, and pages of other origins."""

import json
import os
import ssl
from dataclasses import dataclass
from typing import Any

from octavo.config import option
from octavo.errors import ConfigError

KEY_VARIABLES = ("OCTAVO_API_KEY", "VLLM_API_KEY")
"""Variables of the environment that hold keys: of the first several, with commas between."""


def texts_of(given: Any, name: str) -> list[str]:
    """A list of texts, of which each may be a JSON list of texts, as vLLM's flags take it. Raises ConfigError."""
    texts = list[str]()
    for one in [given] if isinstance(given, str) else given or []:
        inner = one
        if isinstance(one, str) and one.lstrip().startswith("["):
            try:
                inner = json.loads(one)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{name}={one!r:.100} is not a JSON list: {error}") from error
        texts += inner if isinstance(inner, list) else [inner]
    if wrong := [one for one in texts if not isinstance(one, str) or not one.strip()]:
        raise ConfigError(f"{name} holds {wrong[0]!r:.60}, which is no text (is a variable unset?).")
    return texts


def keys_of(given: list[str]) -> list[str]:
    """All keys of which a client needs one: those of the option and of the environment. Raises ConfigError.

    A variable that is set to blanks or commas would leave the server open, and is an error; an empty one is unset.
    """
    keys = texts_of(given, "api_key")
    for name in KEY_VARIABLES:
        text = os.environ.get(name, "")
        held = [key.strip() for key in (text.split(",") if name == KEY_VARIABLES[0] else [text])]
        if text and not all(held):
            raise ConfigError(f"{name} is set, and holds an empty key. Unset it, or set it to a key.")
        keys += held if text else []
    return keys


@dataclass
class HTTPOptions:
    """How the server is reached."""

    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 for every network")
    port: int = option(8000, "port to listen at; 0 for any that is free, which is then printed")
    uds: str | None = option(None, "path of a Unix domain socket to listen at, instead of --host and --port")
    api_key: list[str] = option(
        [],
        "a key that clients must send as a bearer token (several, or may repeat; also OCTAVO_API_KEY and VLLM_API_KEY)",
        several=True,
    )
    ssl_certfile: str | None = option(None, "certificate for TLS")
    ssl_keyfile: str | None = option(None, "its private key")
    ssl_ca_certs: str | None = option(None, "certificates of who may vouch for clients")
    ssl_cert_reqs: int = option(
        0, "whether clients need a certificate: 0 no, 1 they may have one, 2 yes (by --ssl-ca-certs)"
    )
    ssl_ciphers: str | None = option(None, "cipher suites of TLS 1.2 and below, as OpenSSL names them")
    enable_ssl_refresh: bool = option(False, "read the certificate again when its files change")
    root_path: str = option("", "prefix of a proxy in front; paths are served with it and without")
    allowed_origins: list[str] = option(
        [], "origins whose pages may call the server (CORS; may repeat or be a JSON list, * for all)", several=True
    )
    allowed_methods: list[str] = option(["*"], "methods of such calls (may repeat or be a JSON list)", several=True)
    allowed_headers: list[str] = option(["*"], "headers of such calls (may repeat or be a JSON list)", several=True)
    allow_credentials: bool = option(False, "let such calls have cookies and the like")
    middleware: list[str] = option(
        [],
        "package.module.name of ASGI middleware, a class, or a function (request, call_next), for all requests that "
        "have a key (may repeat)",
    )
    disable_fastapi_docs: bool = option(False, "leave out /openapi.json")
    sse_keep_alive_interval: float = option(
        0.0, "seconds after which a stream that has nothing to say sends a comment, for proxies; 0 for never"
    )

    def check_http(self) -> None:
        """Raises ConfigError for values that cannot be."""
        keys_of(self.api_key)
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port={self.port} must be from 0 to 65535.")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ConfigError("ssl_certfile and ssl_keyfile belong together; give both or neither.")
        tls = ("ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers", "enable_ssl_refresh")
        if self.ssl_certfile is None and (alone := next((name for name in tls if getattr(self, name)), None)):
            raise ConfigError(f"{alone} needs ssl_certfile and ssl_keyfile.")
        if self.ssl_cert_reqs not in (ssl.CERT_NONE, ssl.CERT_OPTIONAL, ssl.CERT_REQUIRED):
            raise ConfigError(f"ssl_cert_reqs={self.ssl_cert_reqs} must be 0, 1 or 2.")
        if self.ssl_cert_reqs == ssl.CERT_REQUIRED and self.ssl_ca_certs is None:
            raise ConfigError("ssl_cert_reqs=2 needs ssl_ca_certs, the certificates by which clients' are known.")
        if self.sse_keep_alive_interval < 0:
            raise ConfigError(f"sse_keep_alive_interval={self.sse_keep_alive_interval} must be 0 or more.")
