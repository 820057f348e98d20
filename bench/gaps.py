"""The largest gap of a running stream while each hostile input is served: `python bench/serving.py 4 [--tree PATH]`."""

import contextlib
import json
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.server.running import Running, server

GIVE_UP = 60.0
"""Seconds after which an input's client goes."""
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
CHOICES = [f"choice number {i:05d}" for i in range(50_000)]


def chat(**values: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, **values}


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def call(arguments: str) -> list[dict[str, Any]]:
    """A conversation with an earlier tool call."""
    function = {"name": "f", "arguments": arguments}
    return [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": "1"},
    ]


def inputs() -> dict[str, tuple[str, dict[str, Any]]]:
    """What section B of the issue names: a name, where it is sent, and its body."""
    short: dict[str, Any] = {"prompt": "Hello", "max_tokens": 8}
    many = {"temperature": 1, "max_tokens": 4, "ignore_eos": True}
    schema = {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 999_983}}, "required": ["a"]}
    bomb: dict[str, Any] = {"type": "string"}
    for _ in range(6):
        bomb = {
            "anyOf": [{"type": "object", "properties": dict.fromkeys("abc", bomb)}, {"type": "array", "items": bomb}]
        }
    template = "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}"
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    return {
        "nothing": (COMPLETIONS, short),
        "a regex of many states": (COMPLETIONS, {**short, "guided_regex": "(.*a){20}.{200}b"}),
        "a regex of counted repeats": (COMPLETIONS, {**short, "guided_regex": "((a{1,100}){1,100}b?){1,100}"}),
        "multipleOf 999983": (COMPLETIONS, {**short, "guided_json": schema}),
        "50,000 choices": (COMPLETIONS, {**short, "guided_choice": CHOICES}),
        "a schema that doubles": (COMPLETIONS, {**short, "guided_json": bomb}),
        "8,000 bad_words": (COMPLETIONS, {**short, "bad_words": [f"word{i}" for i in range(8000)]}),
        "100,000 stop strings": (
            COMPLETIONS,
            {**short, "max_tokens": 64, "stop": [f"<{i:06d}>" for i in range(100_000)]},
        ),
        "a text of 3.5 MB": (COMPLETIONS, {**short, "prompt": "many words of text " * 184_000}),
        "a chat of 3.5 MB": (CHAT, {**chat(), "messages": [{"role": "user", "content": "many words " * 318_000}]}),
        "a text of 3.5 MB to tokenize": ("/tokenize", {"prompt": "many words of text " * 184_000}),
        "160 prompts times 128": (COMPLETIONS, {**many, "prompt": ["Hello"] * 160, "n": 128}),
        "8 prompts times 128": (COMPLETIONS, {**many, "prompt": ["Hello"] * 8, "n": 128}),
        "1,000 prompts": (COMPLETIONS, {**many, "prompt": ["Hello"] * 1000}),
        "a template without end": (CHAT, chat(chat_template=template)),
        "a template of a giant text": (CHAT, chat(chat_template="{{ 'x' * 2000000000 }}")),
        "3,000 nested objects in a tool call": (CHAT, chat(messages=call(nested(3000)), tools=[tool])),
        "100,000 nested arrays in a tool call": (CHAT, chat(messages=call("[" * 100_000), tools=[tool])),
        "a tool's schema of 200 levels": (
            CHAT,
            chat(
                tools=[{**tool, "function": {"name": "f", "parameters": json.loads(nested(200))}}],
                tool_choice="required",
            ),
        ),
    }


@dataclass
class Stream:
    """One running stream, and when its tokens came. Begun anew when it ends."""

    url: str
    stamps: list[float] = field(default_factory=list)
    errors: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        body = {"prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": True, "stream": True, "temperature": 0}
        while not self.stop.is_set():
            try:
                with httpx.stream("POST", self.url + COMPLETIONS, json=body, timeout=300) as stream:
                    for line in stream.iter_lines():
                        if line.startswith("data: {"):
                            self.stamps.append(time.perf_counter())
                        if self.stop.is_set():
                            return
                    self.errors += stream.status_code != 200
            except httpx.HTTPError:
                self.errors += 1
                time.sleep(0.05)

    def largest_gap(self, begin: float, end: float) -> float:
        """Between two tokens, of which one may have come before or after that time; seconds."""
        stamps = [*self.stamps, time.perf_counter()]
        near = [i for i, s in enumerate(stamps) if begin <= s <= end]
        first, last = (max(0, near[0] - 1), min(len(stamps) - 1, near[-1] + 1)) if near else (0, len(stamps) - 1)
        if not near:  # nothing came at all in that time
            earlier = [s for s in stamps if s < begin]
            later = [s for s in stamps if s > end]
            return later[0] - (earlier[-1] if earlier else begin)
        return max(b - a for a, b in zip(stamps[first:last], stamps[first + 1 : last + 1], strict=True))


@contextmanager
def streaming(running: Running) -> Iterator[Stream]:
    stream = Stream(running.url)
    thread = threading.Thread(target=stream.run, daemon=True)
    thread.start()
    try:
        running.until(lambda: len(stream.stamps) > 20, 60)
        yield stream
    finally:
        stream.stop.set()
        thread.join(10)


def ask(running: Running, path: str, body: dict[str, Any]) -> str:
    """What becomes of one input."""
    try:
        answer = httpx.post(running.url + path, json=body, timeout=GIVE_UP)
    except httpx.TimeoutException:
        return f"no answer in {GIVE_UP:.0f} s"
    except httpx.HTTPError as error:
        return type(error).__name__
    return "served" if answer.status_code == 200 else f"refused ({answer.status_code})"


def gaps(model: tuple[str, ...], tree: str | None) -> None:
    """The table, in Markdown. Each input gets a server of its own, as some leave theirs unusable.

    Args:
        model: what to serve, and with which flags.
        tree: another checkout of Octavo, whose server is measured instead of this one's.
    """
    environment = {} if tree is None else {"PYTHONPATH": tree}
    here = contextlib.nullcontext() if tree is None else contextlib.chdir(tree)  # where `python -m` looks first
    print("| input | largest gap | outcome |\n| --- | --- | --- |", flush=True)
    for name, (path, body) in inputs().items():
        with here, server(*model, "--trust-remote-code", **environment) as running, streaming(running) as stream:
            quiet = statistics.median(b - a for a, b in zip(stream.stamps, stream.stamps[1:], strict=False))
            begin = time.perf_counter()
            with ThreadPoolExecutor(1) as pool:
                outcome = pool.submit(ask, running, path, body).result()
            end = time.perf_counter()
            if name == "nothing":
                time.sleep(2)
                end = time.perf_counter()
            time.sleep(max(0.3, 5 * quiet))
            gap = stream.largest_gap(begin, end)
            broken = f", {stream.errors} streams broken" if stream.errors else ""
            print(f"| {name} | {1e3 * gap:.0f} ms | {outcome} in {end - begin:.1f} s{broken} |", flush=True)
