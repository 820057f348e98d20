"""What every HTTP request passes: keys, sizes, and the request log."""

import hmac
import re
import time
import uuid

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.http_errors import CLIENT_GONE, error_response
from octavo.server.http_options import keys_of
from octavo.server.request_log import Fields, begin_request_log, write_request_log
from octavo.server.root_path import sent_path
from octavo.server.server_options import ServerOptions

OPEN = frozenset(["/health", "/ping", "/version", "/metrics", "/", "/stats", "/openapi.json"])
"""Paths that need no key: none of them runs the model or shows prompts."""
PAGE_FILES = "/static/"
"""What the pages are made of needs none either."""
REQUEST_ID = re.compile(r"[!-~]{1,128}")
"""Clients' request ids that are taken over; others could rewrite what a terminal shows of the log."""
FILES = "/v1/files"
QUIET = frozenset(["/health", "/ping", "/metrics"])
"""Paths that are asked all the time, and get no line in the log."""


class AccessMiddleware:
    """ASGI middleware around the whole app.

    Args:
        app: what is behind it.
        options: keys and sizes.
        has_media: whether requests may carry pictures, films or sounds.
    """

    def __init__(self, app: ASGIApp, options: ServerOptions, has_media: bool = False) -> None:
        self.app, self.limit = app, options.body_bytes(has_media)
        self.upload_limit = options.upload_bytes()
