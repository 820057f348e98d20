"""Structured output: which tokens may come next, so that an answer follows a schema, an expression or a grammar.

llguidance does the grammars. It was chosen over xgrammar for its start: it makes a grammar ready in about a
millisecond, with no automaton built ahead, and finds a step's mask in about one more. It runs in processes beside the
engine (`grammar_process`), since some grammars take it minutes or gigabytes: here is the engine's end of them.
"""

import itertools
import json
import select
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.errors import InvalidRequestError
from octavo.executor.grammar_process import ALL, COMMAND, END, FAILED, HEAD, MASK, REFUSED, SLOW, START, STARTED, TOKEN
from octavo.ops import Backend
from octavo.params import StructuredOutputsParams
from octavo.text.tokenizer import FastTokenizer, Tokenizer, TransformersTokenizer

PATIENCE = 0.005
"""Seconds that a step waits for masks; the usual one takes a tenth of them, and was begun before the step."""
LONG = 0.25
"""Seconds after which a grammar's process lets everybody else go first, from then on."""
LONGEST = 30.0
"""Seconds after which nobody waits for a grammar or a mask any more, however busy the machine is."""
COMPILE_SECONDS = 5.0
"""Processor seconds to make a grammar ready, after which its request is refused."""
MASK_SECONDS = 2.0
"""Processor seconds for one mask, after which its request ends."""
TOTAL_SECONDS = 20.0
"""Processor seconds for all masks of a request that took longer than usual."""
MEMORY = 512 << 20
"""Bytes that a request's grammar may take."""


class Grammar:
    """One sequence's place in its grammar.

    `mask` has a bit for each token, set if it may come next; None while it is being found, or after an error.
    """

    def __init__(self, session: "GrammarSession", index: int, end_ids: Sequence[int]) -> None:
        self.session, self._index = session, index
        self.end_ids = end_ids
        """Tokens that may come where the grammar may end."""
        self.ended = False
        self.mask: bytes | None = None
        self.error: str | None = None
        """Why the sequence cannot go on."""

    @property
    def ready(self) -> bool:
        """Whether the next token can be chosen, or never can."""
        return self.mask is not None or self.error is not None

    def accept(self, token_id: int) -> None:
        """The token was chosen: have the next mask found, unless it ends the answer."""
        if self.error is not None or self.ended:
            return
        if token_id in self.end_ids:
            self.ended = True
        else:
            self.mask = None
            self.session.send(self._index, token_id)


class GrammarSession:
    """The process with one request's grammar.

    Args:
        compiler: whose it is.
        task: what the process is told.
        kind: of grammar, for messages.
        count: sequences of the request.
    """

    def __init__(self, compiler: "GrammarCompiler", task: bytes, kind: str, count: int) -> None:
        self._compiler, self._kind = compiler, kind
        self._task: bytes | None = task
        """To tell another process, if the first is ended before it begins."""
        self._number, self._connection = compiler.begin(task)
        self._received = bytearray()
        self._started: float | None = None
        self._since: float | None = None
        self._is_slow = False
        self.was_late = False
        """Whether a step went on without its last mask."""
        self.is_ready = False
        """Whether the grammar can be used."""
        self.refused: str | None = None
        """Why it cannot be."""
        self.grammars = [Grammar(self, index, compiler.end_ids) for index in range(count)]

    def fileno(self) -> int:
        return self._connection.fileno()

    @property
    def waits(self) -> bool:
        """Whether an answer is still to come."""
        return self.refused is None and not all(g.ready or g.ended for g in self.grammars)

    def send(self, index: int, token_id: int) -> None:
        self._since = time.monotonic()
        try:
            self._connection.sendall(TOKEN.pack(index, token_id))
        except OSError:
            self._died()

    def receive(self) -> None:
        """Take what has come; it does not wait."""
        try:
            data = self._connection.recv(1 << 20, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._died()
            return
        self._received += data
        while len(self._received) >= HEAD.size:
            index, what, length = HEAD.unpack_from(self._received)
            end = HEAD.size + length
            if len(self._received) < end:
                return
            self._take(index, what, bytes(self._received[HEAD.size : end]))
            del self._received[:end]

    def _take(self, index: int, what: int, payload: bytes) -> None:
        if what == STARTED:
            self._started = self._since = time.monotonic()
            self._task = None
        elif what == REFUSED:
            self.refused = f"structured_outputs: this {self._kind} cannot be used: {payload.decode(errors='replace')}"
        elif what == FAILED:
            self.grammars[index].error = f"structured_outputs: {payload.decode(errors='replace')}"
        elif what == MASK:
            self.is_ready = True
            for grammar in self.grammars if index == ALL else [self.grammars[index]]:
                grammar.mask = payload

    def _died(self) -> None:
        """Its process has ended: what it was working on was too much. One that had not begun is told to another."""
        if self._task is not None:
            self._connection.close()
            task, self._task = self._task, None
            self._number, self._connection = self._compiler.begin(task)
            return
        simpler = "make it simpler (shorter repetitions, fewer alternatives, smaller numbers)."
        busy = f"{LONGEST:g} s of a busy machine"
        if self.is_ready:
            limits = f"{MASK_SECONDS:g} s for a token, {TOTAL_SECONDS:g} s in all, {busy} or {MEMORY >> 20} MiB"
        else:
            limits = f"{COMPILE_SECONDS:g} s, {busy} or {MEMORY >> 20} MiB to be prepared"
        problem = f"structured_outputs: this {self._kind} takes more than {limits}; {simpler}"
        if self._started is None:
            problem = "structured_outputs: the process for grammars could not be started; is there enough memory?"
        if not self.is_ready:
            self.refused = problem
        for grammar in self.grammars:
            if not grammar.ready:
                grammar.error = problem

    def slow_down(self) -> None:
        """If it has been computing for long, let it compute only when nobody else wants to; then not at all."""
        seconds = 0.0 if self._since is None else time.monotonic() - self._since
        if not self._is_slow and seconds > LONG:
            self._is_slow = True
            self._compiler.tell(SLOW, self._number)
        if self.waits and seconds > LONGEST:
            self.close()
            self._died()

    def close(self) -> None:
        """The request is done."""
        if self._connection.fileno() >= 0:
            self._compiler.tell(END, self._number)
            self._connection.close()


class GrammarCompiler:
    """Makes Grammars for one tokenizer. Its process is started with the first.

    Args:
        tokenizer: the model's; None with skip_tokenizer_init.
        vocab_size: of the model, whose logits are masked.
        eos_token_ids: tokens that may come where a grammar may end.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        own = getattr(tokenizer, "eos_token_id", None)
        self.end_ids = sorted(i for i in eos_token_ids or ({own} if own is not None else ()) if i < vocab_size)
        self._control: socket.socket | None = None
        self._stop: weakref.finalize[[subprocess.Popen[bytes], socket.socket], GrammarCompiler] | None = None
        self._numbers = itertools.count()

    def compile(self, structured: StructuredOutputsParams, count: int) -> GrammarSession:
        """Begin to make the grammar of a request with `count` sequences ready; `wait` says when it is.

        Raises InvalidRequestError where there can be none, without having waited for it.
        """
        kind, text = structured.as_grammar()
        told = {
            "kind": kind,
            "text": text,
            "count": count,
            "compile_seconds": COMPILE_SECONDS,
            "mask_seconds": MASK_SECONDS,
            "total_seconds": TOTAL_SECONDS,
            "memory": MEMORY,
        }
        return GrammarSession(self, json.dumps(told).encode(), kind.replace("_", " "), count)

    def begin(self, task: bytes) -> tuple[int, socket.socket]:
        """Have a process begin with a task: its number, and our end of its socket."""
        ours, theirs = socket.socketpair()
        number = next(self._numbers)
        with theirs, tempfile.TemporaryFile() as file:
            file.write(task)
            file.flush()
            for _ in range(2):
                control = self._control or self._start()
                try:
                    socket.send_fds(control, [COMMAND.pack(START, number)], [theirs.fileno(), file.fileno()])
                    break
                except OSError:  # its process was ended from outside; the session says so if it happens again
                    self._control = None
        return number, ours

    def _start(self) -> socket.socket:
        if self._stop is not None:
            self._stop()  # a process that was ended from outside
        vocabulary = {
            "tokenizer": _as_json(self._tokenizer),
            "vocab_size": self._vocab_size,
            "eos": self.end_ids or None,
        }
        ours, theirs = socket.socketpair()
        code = (
            f"import socket, sys; sys.path[:] = {sys.path!r}; from octavo.executor.grammar_process import main; "
            f"main(socket.socket(fileno={theirs.fileno()}))"
        )
        with theirs, tempfile.TemporaryFile() as file:
            file.write(json.dumps(vocabulary).encode())
            file.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=file,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._control = ours
        self._stop = weakref.finalize(self, _stop, process, ours)
        return ours

    def tell(self, command: bytes, number: int) -> None:
        """Have something done with a session's process, if there is one."""
        if self._control is not None:
            try:
                self._control.sendall(COMMAND.pack(command, number))
            except OSError:
                self._control = None

    @staticmethod
    def wait(sessions: Iterable[GrammarSession], seconds: float, until_first: bool = False) -> None:
        """Take what has come for `sessions`, and wait up to `seconds` until none (or `until_first`, one less) waits."""
        waiting = {s.fileno(): s for s in sessions if s.waits}
        poll = select.poll()
        for descriptor in waiting:
            poll.register(descriptor, select.POLLIN)
        end = time.monotonic() + seconds
        while waiting:
            left = max(0.0, end - time.monotonic())
            came = poll.poll(left * 1000)
            for descriptor, _ in came:
                session = waiting[descriptor]
                session.receive()
                if not session.waits or session.fileno() != descriptor:
                    poll.unregister(descriptor)
                    del waiting[descriptor]
            if not came or left == 0 or until_first:
                return


def _stop(process: "subprocess.Popen[bytes]", control: socket.socket) -> None:
    """End the process of grammars; it ends those of requests."""
    control.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _as_json(tokenizer: Tokenizer | None) -> str:
    if isinstance(tokenizer, FastTokenizer):
        return str(tokenizer.inner.to_str())
    if isinstance(tokenizer, TransformersTokenizer) and getattr(tokenizer.inner, "is_fast", False):
        return str(tokenizer.inner.backend_tokenizer.to_str())
    if tokenizer is None:
        raise InvalidRequestError("structured_outputs needs a tokenizer, and skip_tokenizer_init=True loads none.")
    raise InvalidRequestError("structured_outputs needs a tokenizer.json; this model's tokenizer is code of its own.")


def late_grammars(grammars: Sequence[Grammar | None]) -> set[int]:
    """Places of grammars whose mask is not there yet, after a short wait for those that are usually in time.

    Masks are found while the model computes, so that there is seldom anything to wait for.
    """
    sessions = {g.session for g in grammars if g is not None and not g.ready}
    if not sessions:
        return set()
    GrammarCompiler.wait(sessions, 0)
    GrammarCompiler.wait((s for s in sessions if not s.was_late), PATIENCE)
    for session in sessions:
        session.was_late = session.waits
    return {i for i, g in enumerate(grammars) if g is not None and not g.ready}


def apply_grammars(
    logits: Tensor, rows: Sequence[int], grammars: Sequence[Grammar], backend: Backend
) -> dict[int, str]:
    """Set the logits `[rows, vocab]` of tokens that may not come next to -inf, for the given rows, in place.

    Tokens that only the tokenizer knows are cut from the masks; tokens that it does not know may never come. Returns
    why a row cannot go on, for those that cannot.
    """
    vocab = logits.shape[1]
    problems = {row: g.error for row, g in zip(rows, grammars, strict=True) if g.error is not None}
    masks = {row: g.mask for row, g in zip(rows, grammars, strict=True) if g.mask is not None and row not in problems}
    if not masks:
        return problems
    size, last = -(-vocab // 8), (1 << (vocab - 1) % 8 + 1) - 1
    packed = np.frombuffer(bytearray().join(m[:size].ljust(size, b"\0") for m in masks.values()), dtype=np.uint8)
    packed = packed.reshape(len(masks), size)
    packed[:, -1] &= last  # of whose bits some are of no token
    backend.mask_tokens(logits, list(masks), torch.from_numpy(packed))
    for row, own in zip(masks, map(bool, packed.max(1)), strict=True):
        if not own:
            problems[row] = "structured_outputs: no token of this model's vocabulary can follow"
    return problems
