"""Conversations with a server that speaks OpenAI's chat completions."""

import base64
import contextlib
import json
import mimetypes
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from octavo.cli.chat.chat_model import AnswerEnd, Message, Pieces
from octavo.cli.media_files import media_part
from octavo.config import MEDIA_KINDS
from octavo.errors import ConfigError, InvalidRequestError, ModelNotFoundError, OctavoError, did_you_mean, shorten
from octavo.server.answer_events import CallArguments, CallBegin, CallEnd, Event, Thought
from octavo.server.model_formats import AnswerReader
from octavo.server.reasoning import SWITCHES, ReasoningParser
from octavo.server.reasoning_formats import THINK

KEYS = ("OCTAVO_API_KEY", "VLLM_API_KEY", "OPENAI_API_KEY")
"""Variables with the server's key: the first that is set."""
CONNECT_SECONDS = 10.0
ERROR_BYTES = 1 << 16


def base_url(url: str) -> str:
    """The URL that ends in /v1. Raises ConfigError for what is no address of a server."""
    text = url.strip() if "://" in url else f"http://{url.strip()}"
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise ConfigError(f"--url {shorten(url)} is no server's address. Give one such as http://127.0.0.1:8000.")
    path = parts.path.rstrip("/")
    for tail in ("/chat/completions", "/models"):
        path = path.removesuffix(tail)
    return f"{parts.scheme}://{parts.netloc}{path}" + ("" if path.endswith("/v1") else "/v1")


class RemoteChat:
    """A ChatModel behind a URL.

    Args:
        url: where the server is, with or without /v1.
        model: its name there; the first that the server lists if None.
        key: sent as a bearer token; what the environment says if None.
        client: for tests.

    Raises the errors of octavo.errors for a server that cannot be reached, or does not have that model.
    """

    is_polled = False
    adapter: str | None = None
    adapters: Mapping[str, str] = {}
    defaults: Mapping[str, Any] = {}
    media_kinds: Sequence[str] = MEDIA_KINDS

    def __init__(
        self, url: str, model: str | None = None, key: str | None = None, client: httpx.Client | None = None
    ) -> None:
        self._url = base_url(url)
        key = key or next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
        self._client = client or httpx.Client(timeout=httpx.Timeout(None, connect=CONNECT_SECONDS))
        if key:
            self._client.headers["Authorization"] = f"Bearer {key}"
        self.name, self.context_length = self._find(model)

    def _find(self, name: str | None) -> tuple[str, int | None]:
        """A model's name and the length of its context, of those that the server has."""
        try:
            with contextlib.closing(self._ask("GET", "/models")) as response:
                listed = {str(m["id"]): m for m in json.loads(response.read())["data"]}
        except httpx.HTTPError as error:
            raise OctavoError(f"{self._url}/models broke off ({_reason(error)}).") from error
        except InvalidRequestError:
            raise
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise OctavoError(f"{self._url}/models lists no models: this is not a server of OpenAI's API.") from error
        if not listed:
            raise ModelNotFoundError(f"the server at {self._url} has no model.")
        name = next(iter(listed)) if name is None else name
        if name not in listed:
            some = ", ".join(shorten(known, 80) for known in list(listed)[:10])
            raise ModelNotFoundError(
                f"the server at {self._url} has no model {name!r}.{did_you_mean(name, listed)} It has {some}."
            )
        length = listed[name].get("max_model_len")
        return name, length if isinstance(length, int) else None

    def _ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """An answer whose status is good. Raises OctavoError that says what to do."""
        try:
            request = self._client.build_request(method, self._url + path, json=body)
            response = self._client.send(request, stream=True)
            if response.status_code < 400:
                return response
            with contextlib.closing(response):
                text = _error_text(response)
        except httpx.HTTPError as error:
            raise OctavoError(
                f"no server answers at {self._url} ({_reason(error)}). Start one with `octavo serve`, or check --url."
            ) from error
        except (ValueError, TypeError) as error:
            raise InvalidRequestError(f"this cannot be sent: {error}") from error
        status = response.status_code
        hint = " Give the server's key with --api-key." if status in (401, 403) else ""
        kind = InvalidRequestError if status in (400, 404, 413, 422) else OctavoError
        raise kind(f"the server answers {status}: {text}{hint}")

    def choose_adapter(self, name: str | None) -> None:
        """There is none to choose: a server lists its adapters as models."""

    def facts(self) -> dict[str, str]:
        return {"server": self._url, "adapters": "are models of the server; /load NAME changes to one"}

    def check_media(self, paths: Mapping[str, Sequence[str]]) -> None:
        for kind, of_kind in paths.items():
            media_part(kind, of_kind[-1])  # the server says what it takes

    def answer(self, messages: Sequence[Message], values: Mapping[str, Any], thinks: bool | None) -> Pieces:
        begun = time.perf_counter()
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [_sent(message) for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **values,
        }
        if thinks is not None:
            body["chat_template_kwargs"] = dict.fromkeys(SWITCHES, thinks)
        # A server that does not tell thoughts apart leaves them in the text.
        reader, deltas = AnswerReader([ReasoningParser(THINK, "")]), _Deltas()
        for event in self.events("/chat/completions", body):
            yield from deltas.read(event, reader)
        yield from reader.feed("", finished=True)
        yield from deltas.end()
        if deltas.reason is None:
            raise OctavoError("the server broke the answer off. /retry asks again.")
        yield AnswerEnd(deltas.reason, deltas.num_tokens, time.perf_counter() - begun, deltas.prompt_tokens)

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a stream as they come. Raises OctavoError that says what to do."""
        with contextlib.closing(self._ask("POST", path, body)) as response:
            yield from _events(response)

    def load(self, name: str) -> None:
        self.name, self.context_length = self._find(name)

    def close(self) -> None:
        self._client.close()


class _Deltas:
    """Reads a stream's chunks."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.prompt_tokens: int | None = None
        self.num_tokens = 0
        """As the server counts them, or else the chunks that had something."""
        self._call: int | None = None
        """The call that has begun, by its number."""

    def read(self, event: Mapping[str, Any], reader: AnswerReader) -> Iterator[Event]:
        """What a chunk tells. Raises OctavoError for one that is an error, or no chunk."""
        if event.get("error"):
            error = event["error"]
            raise OctavoError(shorten(error.get("message") if isinstance(error, dict) else error, 1000))
        try:
            usage = event.get("usage") or {}
            for choice in event.get("choices") or ():
                delta = choice.get("delta") or {}
                thought = delta.get("reasoning") or delta.get("reasoning_content")
                text, calls = delta.get("content"), delta.get("tool_calls") or ()
                self.num_tokens += bool(thought or text or calls)
                if thought:
                    yield Thought(str(thought))
                if text:
                    yield from reader.feed(str(text), finished=False)
                for call in calls:
                    yield from self._read_call(call)
                self.reason = choice.get("finish_reason") or self.reason
            if "prompt_tokens" in usage:
                self.prompt_tokens, self.num_tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise OctavoError(f"the server sends what is no chunk of an answer: {shorten(event, 200)}") from error

    def _read_call(self, call: Mapping[str, Any]) -> Iterator[Event]:
        function = call.get("function") or {}
        if call.get("index", 0) != self._call:
            yield from self.end()
            self._call = call.get("index", 0)
            yield CallBegin(str(function.get("name") or ""))
        if function.get("arguments"):
            yield CallArguments(str(function["arguments"]))

    def end(self) -> Iterator[Event]:
        """The call that has begun is complete."""
        if self._call is not None:
            self._call = None
            yield CallEnd()


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The JSON objects of server-sent events, to [DONE]."""
    try:
        for line in response.iter_lines():
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                return
            event = json.loads(data)
            if isinstance(event, dict):
                yield event
    except httpx.HTTPError as error:
        raise OctavoError(f"the server broke the answer off ({_reason(error)}). /retry asks again.") from error
    except (ValueError, RecursionError) as error:
        raise OctavoError(f"the server sends what is no JSON: {shorten(error, 200)}") from error


def _error_text(response: httpx.Response) -> str:
    """What an error's body says."""
    data = b""
    for part in response.iter_bytes():
        data += part
        if len(data) > ERROR_BYTES:
            break
    try:
        body = json.loads(data)
        error = body.get("error", body)
        said = (error.get("message") or error.get("detail") or body.get("detail")) if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        said = data.decode("utf-8", "replace")
    return shorten(said or response.reason_phrase, 1000)


def _reason(error: Exception) -> str:
    return shorten(str(error) or type(error).__name__, 200)


def _sent(message: Message) -> Message:
    """A message in OpenAI's words, with its files as data."""
    if isinstance(message["content"], str):
        return message
    return {**message, "content": [_sent_part(p) if p["type"] in MEDIA_KINDS else p for p in message["content"]]}


def _sent_part(part: Mapping[str, str]) -> dict[str, Any]:
    kind, path = part["type"], part["path"]
    data = base64.b64encode(media_part(kind, path)[kind]).decode()
    if kind == "audio":
        ending = Path(path).suffix.removeprefix(".").lower() or "wav"
        return {"type": "input_audio", "input_audio": {"data": data, "format": ending}}
    mime = mimetypes.guess_type(path)[0] or {"image": "image/png", "video": "video/mp4"}[kind]
    return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{mime};base64,{data}"}}
