"""Renders chat templates: the program of the process that has bounds, which template_process starts."""

import contextlib
import json
import resource
import signal
import sys
from typing import Any

from octavo.errors import OctavoError
from octavo.text.template import compiled
from octavo.text.template_process import CHARACTERS, LIMITS, MEMORY, SECONDS, receive, send


def prompt(
    source: str,
    special_tokens: dict[str, str],
    variables: dict[str, Any],
    content_format: str = "auto",
    **conversation: Any,
) -> str:
    """The prompt of a conversation. Raises what the template does, and OctavoError for one that is too long."""
    template = compiled(source, tuple(special_tokens.items()), content_format)
    text = template.prompt(**conversation, **variables)
    if len(text) > CHARACTERS:
        raise OctavoError(f"the prompt has {len(text)} characters; {LIMITS}")
    return text


def main() -> None:
    """Answer what comes on standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    while (question := receive(sys.stdin.buffer)) is not None:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # whose signal ends the process
        try:
            answer = b"=" + prompt(**json.loads(question)).encode("utf-8", "surrogatepass")
        except MemoryError:
            return  # another process begins with an empty memory
        except Exception as error:
            answer = f"!{str(error) or type(error).__name__:.500}".encode("utf-8", "surrogatepass")
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(sys.stdout.buffer, answer)
