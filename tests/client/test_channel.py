"""Messages between two processes: whole, in order, and never waited for by who sends them."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from octavo.client.channel import Channel

ECHO = """
import sys
from octavo.client.channel import Channel
channel = Channel.inherited(sys.argv[1])
while True:
    channel.poll(1000)
    try:
        while (message := channel.receive()) is not None:
            channel.send(message)
    except ConnectionError:
        break
"""
LARGE = bytes(range(256)) * 40_000
"""More than a socket holds."""


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = Channel.pair()
    yield one, other
    one.close()
    other.close()


def received(channel: Channel, count: int) -> list[bytes]:
    found = list[bytes]()
    while len(found) < count:
        if (message := channel.receive()) is not None:
            found.append(message)
        else:
            assert channel.poll(20_000), f"{len(found)} messages of {count} have come"
    return found


def test_messages_come_whole_and_in_order(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    said = [b"", b"a", b"\0" * 8, bytes(1000), b"last"]
    for message in said:
        one.send(message)
    assert received(other, 5) == said
    assert other.receive() is None
    assert not other.poll(0)


def test_who_sends_never_waits(ends: tuple[Channel, Channel]) -> None:
    """Nobody reads while so much is sent; it goes as soon as somebody does, from within a wait for answers too."""
    one, other = ends
    said = [LARGE, b"between", LARGE, b"", b"after"]
    for message in said:
        one.send(message)
    assert one.has_unsent
    reader = list[bytes]()

    def read() -> None:
        reader.extend(received(other, len(said)))
        other.send(b"read")

    thread = threading.Thread(target=read)
    thread.start()
    assert received(one, 1) == [b"read"]
    thread.join()
    assert reader == said
    assert not one.has_unsent


def test_what_came_before_the_end_is_not_lost(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    one.send(b"last words")
    one.close()
    assert received(other, 1) == [b"last words"]
    assert other.poll(20_000)
    with pytest.raises(ConnectionError, match="closed"):
        other.receive()
    with pytest.raises(ConnectionError):
        other.send(b"anybody?")


def test_closing_waits_for_the_last_words_to_be_read(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    one.send(LARGE)
    thread = threading.Thread(target=one.close, args=(60_000,))
    thread.start()
    assert received(other, 1) == [LARGE]
    thread.join()


def test_another_process_has_the_other_end() -> None:
    channel, process = Channel.to_process([sys.executable, "-c", ECHO])
    try:
        said = [b"one", LARGE, b"three"]
        for message in said:
            channel.send(message)
        assert received(channel, 3) == said
    finally:
        channel.close()
    assert process.wait(60) == 0  # it has seen that this end is closed


def test_a_process_that_cannot_be_started_leaves_nothing() -> None:
    with pytest.raises(OSError, match="nowhere"):
        Channel.to_process(["/nowhere/at/all"])


def test_a_process_that_ends_is_noticed() -> None:
    channel, process = Channel.to_process([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    assert process.wait(60) == 0
    assert channel.poll(20_000)
    with pytest.raises(ConnectionError):
        channel.receive()
    channel.close()
