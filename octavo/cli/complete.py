"""`octavo complete`: text that a running server continues."""

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from octavo.cli.chat.remote_chat import RemoteChat
from octavo.cli.flags import SAMPLING_FLAGS, check_sampling_flags
from octavo.cli.model_argument import text_after_model
from octavo.errors import InvalidRequestError, OctavoError, shorten


class Completion:
    """A text that comes, and what it took.

    Args:
        server: what continues it.
        prompt: what it continues.
        values: sampling values, by their names over HTTP.
    """

    def __init__(self, server: RemoteChat, prompt: str, values: Mapping[str, Any]) -> None:
        self._server, self._start = server, time.perf_counter()
        self._body = {"model": server.name, "prompt": prompt, "stream": True, **values}
        self._body["stream_options"] = {"include_usage": True}
        self.first: float | None = None
        self.num_tokens = 0

    def pieces(self) -> Iterator[str]:
        """The text as it comes."""
        for event in self._server.events("/completions", self._body):
            if error := event.get("error"):
                raise OctavoError(shorten(error.get("message") if isinstance(error, dict) else error, 1000))
            if usage := event.get("usage"):
                self.num_tokens = usage.get("completion_tokens", 0)
            for choice in event.get("choices") or []:
                if text := choice.get("text"):
                    self.first = self.first or time.perf_counter()
                    yield text

    def stats(self) -> str:
        """Milliseconds to the first token, and tokens a second."""
        seconds = max(1e-9, time.perf_counter() - self._start)
        first = "none" if self.first is None else f"{(self.first - self._start) * 1e3:.2f} ms"
        return f"TTFT: {first}, TPS: {self.num_tokens / seconds:.2f} tokens/s ({self.num_tokens} in {seconds:.2f} s)"


def _prompts(given: str | None) -> Iterator[str]:
    if given is not None:
        yield given
        return
    if sys.stdin.isatty():
        print("octavo: a text on each line; Ctrl-D ends.", file=sys.stderr)
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\n")


def run(namespace: argparse.Namespace) -> int:
    check_sampling_flags(namespace)
    word = text_after_model(namespace, namespace.words, "model_name")
    if word is not None and namespace.quick is not None:
        raise InvalidRequestError("give the text once: as an argument, or with --quick.")
    values = {k: v for k, v in vars(namespace).items() if k in SAMPLING_FLAGS}
    with contextlib.closing(RemoteChat(namespace.url, namespace.model_name, namespace.api_key)) as server:
        for prompt in _prompts(namespace.quick if word is None else word):
            completion = Completion(server, prompt, values)
            for text in completion.pieces():
                print(text, end="", flush=True)
            print()
            if namespace.stats:
                print(f"octavo: {completion.stats()}", file=sys.stderr)
    return 0
