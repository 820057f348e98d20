"""Memory that the ranks of one machine share: who starts them makes it, and may end their waiting.

octavo/ops/native/src/rank_memory.h lays it out; what both must know of that is here. It has no name in any folder, and
is gone with the last process that has it open.
"""

import os
import struct
import tempfile
from enum import IntEnum
from typing import NamedTuple

RANK_BUFFER = 512 << 10
"""Bytes that a rank shows the others at a time. There are two such buffers, for one is read when the next is filled."""
RANK_RING = 16 << 20
"""Bytes on their way to the next stage."""
RANK_HEAD = 4096
"""Bytes before a rank's buffers, and before the first rank."""
RANK_BYTES = RANK_HEAD + 2 * RANK_BUFFER + RANK_RING
LOADING_PATIENCE = 10
"""Times that ranks wait for longer outside steps, where one may have more to load than another."""
ABORT_AT = 64
"""Where all ranks see that they shall stop: 0, or 1 more than the rank that is missing, or -1."""
WAITING_AT = 256
"""Where a rank says that it sleeps, from its head on: its operation, and 1 more than the rank that it waits for."""


class RankOperation(IntEnum):
    """What ranks do together."""

    JOIN = 0
    ALL_REDUCE = 1
    ALL_GATHER = 2
    SEND = 3
    RECEIVE = 4
    LEAST = 5


class RankFailure(IntEnum):
    """Why ranks stop."""

    NONE = 0
    GONE = 1
    LATE = 2
    OUT_OF_STEP = 3
    ABORTED = 4
    """By another rank, or by who started them."""


class Waiting(NamedTuple):
    """A rank that waits for another, for longer than it spins."""

    rank: int
    operation: str
    missing: int


def shared_memory(size: int) -> int:
    """The file descriptor of memory for `size` ranks that have not joined yet, for RankLink.memory.

    It is to be inherited (`subprocess.Popen(pass_fds=...)`), and belongs to the caller. Pages are taken only as they
    are written. Raises OSError where the system gives none.
    """
    try:
        memory = os.memfd_create("octavo-ranks")
    except (AttributeError, OSError):  # another system, or one that forbids it
        memory, path = tempfile.mkstemp(prefix="octavo-ranks-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        os.unlink(path)
    os.ftruncate(memory, RANK_HEAD + size * RANK_BYTES)
    return memory


def abort(memory: int, missing: int | None = None) -> None:
    """End every operation of all ranks, at once and for good; their errors name the `missing` rank."""
    os.pwrite(memory, struct.pack("=i", -1 if missing is None else missing + 1), ABORT_AT)


def waiting_ranks(memory: int) -> list[Waiting]:
    """The ranks that wait. Who hangs is waited for, and does not wait."""
    found = []
    for rank in range((os.fstat(memory).st_size - RANK_HEAD) // RANK_BYTES):
        operation, missing = struct.unpack("=ii", os.pread(memory, 8, RANK_HEAD + rank * RANK_BYTES + WAITING_AT))
        if missing:
            found.append(Waiting(rank, RankOperation(operation).name.lower(), missing - 1))
    return found
