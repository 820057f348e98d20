"""A connection between two processes: whole messages, in order, and sending never waits.

A pair of sockets, without threads of its own: what is sent is in the other's socket when `send` returns, unless that
one is full. So a message wakes the process that it is for, and no thread between them has to find a processor first.
"""

import contextlib
import selectors
import socket
import struct
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

_LENGTH = struct.Struct("<Q")
"""What stands before each message: its bytes."""
_AT_ONCE = 1 << 16
"""Most bytes that are read at a time, into memory that stays: taking it anew would cost more than a message."""


class Channel:
    """One end of a connection. Not safe to call from several threads at a time.

    Args:
        connection: a stream, which is the channel's from here on.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._room = memoryview(bytearray(_AT_ONCE))
        self._unread = bytearray()
        self._messages: deque[bytes] = deque()
        self._unsent: deque[memoryview] = deque()
        self.is_closed = False
        """Whether the other end is closed: nothing more comes than what is there."""

    @classmethod
    def pair(cls) -> "tuple[Channel, Channel]":
        """Both ends, in this process."""
        one, other = socket.socketpair()
        return cls(one), cls(other)

    @classmethod
    def to_process(cls, command: Sequence[str], **options: Any) -> "tuple[Channel, subprocess.Popen[str]]":
        """Start a process that gets the other end, as `inherited` of its last argument. Raises OSError as Popen does.

        Args:
            command: the process's, without that argument.
            options: Popen's.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            try:
                started = subprocess.Popen([*command, str(number)], text=True, pass_fds=(number,), **options)
                return cls(ours), started
            except BaseException:
                ours.close()
                raise

    @classmethod
    def inherited(cls, number: str) -> "Channel":
        """The end that this process was started with."""
        connection = socket.socket(fileno=int(number))
        connection.set_inheritable(False)  # what this process starts is no end of it
        return cls(connection)

    def fileno(self) -> int:
        """What can be waited for: there is something to `fill` when it can be read."""
        return self._socket.fileno()

    @property
    def has_unsent(self) -> bool:
        """Whether something waits for `flush`."""
        return bool(self._unsent)

    def send(self, message: bytes) -> None:
        """Send a message, now or, where the other end is slow to read, by later calls of `flush`.

        Raises ConnectionError where the other end is closed.
        """
        if self.is_closed:
            raise ConnectionError("the other end of the channel is closed.")
        data = _LENGTH.pack(len(message)) + message
        sent = 0
        if not self._unsent:
            with contextlib.suppress(BlockingIOError):
                sent = self._socket.send(data)
        if sent < len(data):
            self._unsent.append(memoryview(data)[sent:])

    def flush(self) -> None:
        """Send what waits, as far as the other end has room. Raises ConnectionError where that one is closed."""
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                sent = self._socket.send(self._unsent[0])
                if sent < len(self._unsent[0]):
                    self._unsent[0] = self._unsent[0][sent:]
                else:
                    self._unsent.popleft()

    def fill(self) -> bool:
        """Read some of what has come, without waiting; whether there was anything."""
        try:
            size = self._socket.recv_into(self._room)
        except BlockingIOError:
            return False
        except ConnectionError:
            size = 0
        self.is_closed = not size
        self._unread += self._room[:size]
        begin, end = 0, len(self._unread)
        while end - begin >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._unread, begin)
            if end - begin - _LENGTH.size < length:
                break
            begin += _LENGTH.size
            self._messages.append(bytes(self._unread[begin : begin + length]))
            begin += length
        del self._unread[:begin]
        return size > 0

    def take(self) -> bytes | None:
        """The next of the messages that were read; None where there is none."""
        return self._messages.popleft() if self._messages else None

    def receive(self) -> bytes | None:
        """The next message that has come; None where there is none.

        Raises ConnectionError where there is none and the other end is closed.
        """
        if not self._messages:
            self.fill()
            if self.is_closed and not self._messages:
                raise ConnectionError("the other end of the channel is closed.")
        return self.take()

    def poll(self, milliseconds: float) -> bool:
        """Wait until there is something to receive, or an end of it; whether there is. Meanwhile what waits is sent."""
        deadline = time.monotonic() + milliseconds / 1e3
        while not (self._messages or self.is_closed):
            left = max(0.0, deadline - time.monotonic())
            events = self._wait(selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0), left)
            if events & selectors.EVENT_READ:
                return True
            if not events:
                return False
            self.flush()
        return True

    def _wait(self, events: int, seconds: float) -> int:
        """Which of the events has come in that time."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, events)
            return sum(come for _, come in selector.select(seconds))

    def close(self, milliseconds: float = 0) -> None:
        """Send what waits, for so long at most, and close this end."""
        deadline = time.monotonic() + milliseconds / 1e3
        with contextlib.suppress(OSError):
            while self._unsent and (left := deadline - time.monotonic()) > 0:
                self._wait(selectors.EVENT_WRITE, left)
                self.flush()
        self._socket.close()
