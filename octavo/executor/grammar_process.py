"""The process of grammars: makes them ready and finds masks, so that none of them can hold or end the engine.

llguidance's own limits do not bound every grammar's time and memory, and a call of it cannot be stopped from outside.
So this process reads the vocabulary once, and forks itself for each request with a grammar: what overruns its limits
there is ended by the kernel, and nobody else notices. It imports nothing that would start threads.

The engine writes a COMMAND with a request's number (and, to start one, two descriptors: a socket and a file with the
grammar as JSON). A request's process answers on its socket in frames: a HEAD, then as many bytes as that says.
"""

import contextlib
import gc
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
from typing import Any

from octavo.executor.grammar_text import has_tags, special_tokens, to_llguidance

COMMAND = struct.Struct("<cQ")
START, SLOW, END = b"s", b"l", b"e"
"""Start a request's process; let it run only when nobody else wants to; end it."""

TOKEN = struct.Struct("<II")
"""A sequence's index and its next token."""

HEAD = struct.Struct("<IBI")
"""A sequence's index, what it gets, and the length of that."""
STARTED, MASK, FAILED, REFUSED = range(4)
"""Runs; the tokens that may come next, a bit each; an error while it ran; a grammar that cannot be used."""
ALL = 0xFFFFFFFF
"""The index of an answer for all of a request's sequences."""


def main(control: socket.socket) -> None:
    """Fork for each request until the engine is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the engine, which says when to stop
    tokenizer, problem = _tokenizer(json.load(sys.stdin))
    gc.freeze()
    running: dict[int, int] = {}
    try:
        while True:
            data, descriptors, _, _ = socket.recv_fds(control, COMMAND.size, 2)
            if not data:
                return
            command, number = COMMAND.unpack(data)
            _reap(running)
            if command == START:
                _start(control, running, number, descriptors, (tokenizer, problem))
            elif number in running and command == SLOW:
                os.setpriority(os.PRIO_PROCESS, running[number], 19)
            elif number in running and command == END:
                os.kill(running[number], signal.SIGKILL)
    finally:
        for pid in running.values():
            os.kill(pid, signal.SIGKILL)


def _start(
    control: socket.socket, running: dict[int, int], number: int, descriptors: list[int], tokenizer: tuple[Any, str]
) -> None:
    with contextlib.suppress(OSError):  # the socket is closed, which says it
        pid = os.fork()
        if pid == 0:
            control.close()
            try:
                serve(socket.socket(fileno=descriptors[0]), descriptors[1], *tokenizer)
            finally:
                os._exit(0)
        running[number] = pid
    for descriptor in descriptors:
        os.close(descriptor)


def _reap(running: dict[int, int]) -> None:
    """Forget processes that have ended, so that their ids are nobody else's."""
    ended = set()
    with contextlib.suppress(ChildProcessError):
        while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            ended.add(pid)
    for number in [n for n, pid in running.items() if pid in ended]:
        del running[number]


def _tokenizer(told: dict[str, Any]) -> tuple[Any, str]:
    """The vocabulary as llguidance wants it, or why there is none."""
    import llguidance

    try:
        try:
            return llguidance.LLTokenizer(told["tokenizer"], n_vocab=told["vocab_size"], eos_token=told["eos"]), ""
        except ValueError as error:
            if "vocab size too small" not in str(error):
                raise
            # Tokens beyond the model's vocabulary are cut from each mask.
            return llguidance.LLTokenizer(told["tokenizer"], eos_token=told["eos"]), ""
    except Exception as error:  # whatever a tokenizer's file makes it raise
        return None, f"this model's tokenizer cannot be used with structured_outputs: {first_line(error)}"


def first_line(error: object) -> str:
    """What a library says, without its further pages. Errors of expressions have their reason in a line of its own."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reasons = [f" {line.strip()[:200]}" for line in lines[1:] if line.strip().startswith("error:")]
    return lines[0][:300] + "".join(reasons[:1])


class _Channel:
    """The engine's end, seen from a request's process."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def send(self, index: int, kind: int, payload: bytes = b"") -> None:
        self.connection.sendall(HEAD.pack(index, kind, len(payload)) + payload)

    def receive(self) -> tuple[int, int] | None:
        data = self.connection.recv(TOKEN.size, socket.MSG_WAITALL)
        return TOKEN.unpack(data) if len(data) == TOKEN.size else None


def serve(connection: socket.socket, file: int, tokenizer: Any, problem: str) -> None:
    """One request: make its grammar ready, then answer each token of each of its sequences with a mask."""
    gc.disable()
    channel = _Channel(connection)
    channel.send(ALL, STARTED)
    with open(file, "rb") as stored:
        stored.seek(0)
        task = json.load(stored)
    if tokenizer is None:
        channel.send(ALL, REFUSED, problem.encode())
        return
    _limit_memory(task["memory"])
    seconds = _Seconds(task["mask_seconds"], task["total_seconds"])
    with _cpu_limit(task["compile_seconds"]):
        matcher, problem = _matcher(task["kind"], task["text"], tokenizer)
        mask = b"" if problem else matcher.compute_bitmask()
        problem = problem or (first_line(matcher.get_error()) if matcher.is_error() else "")
        if problem:
            channel.send(ALL, REFUSED, problem.encode())
            return
        matchers = [matcher, *(matcher.deep_copy() for _ in range(task["count"] - 1))]
    channel.send(ALL, MASK, mask)
    while (message := channel.receive()) is not None:
        index, token = message
        matcher = matchers[index]
        with seconds.limit():
            mask = matcher.compute_bitmask() if matcher.consume_token(token) else b""
        if matcher.is_error():
            channel.send(index, FAILED, first_line(matcher.get_error()).encode())
        else:
            channel.send(index, MASK, mask)


def _matcher(kind: str, text: str, tokenizer: Any) -> tuple[Any, str]:
    """A grammar at its beginning, or why it cannot be used."""
    import llguidance

    limits = llguidance.LLParserLimits(
        max_items_in_row=50_000, step_max_items=500_000, initial_lexer_fuel=10_000_000, verbose_errors=False
    )
    try:
        grammar = to_llguidance(kind, text, special_tokens(tokenizer) if has_tags(kind, text) else None)
        matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    except RecursionError:
        return None, "it is nested too deeply"
    except Exception as error:  # whatever a grammar makes a library raise
        return None, first_line(error)
    return matcher, first_line(matcher.get_error()) if matcher.is_error() else ""


class _Seconds:
    """Processor seconds that a request's masks may take: each, and beyond the usual all together."""

    def __init__(self, each: float, total: float) -> None:
        self.each, self.left = each, total

    @contextlib.contextmanager
    def limit(self) -> Any:
        start = time.process_time()
        with _cpu_limit(max(0.001, min(self.each, self.left))):
            yield
        self.left -= max(0.0, time.process_time() - start - USUAL_SECONDS)


USUAL_SECONDS = 0.01
"""A mask of so many is counted as none: there is no limit to how many a long answer needs."""


@contextlib.contextmanager
def _cpu_limit(seconds: float) -> Any:
    """The kernel ends this process if what is inside takes longer. Time that others use does not count."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory(more: int) -> None:
    """Let this process map so many bytes more than it has."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # where the system does not say or does not limit
        with open("/proc/self/statm") as statm:
            mapped = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + more, mapped + more))
