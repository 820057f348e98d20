"""The processes of several ranks on this machine: they are started, told, heard and ended together."""

import os
import tempfile
from multiprocessing.connection import wait
from typing import Protocol

from octavo.config import EngineArgs
from octavo.executor.process import ExecutorProcess, Load
from octavo.rank_memory import abort, shared_memory
from octavo.rank_place import RankLink, RankPlace


class RankGroup(Protocol):
    """The processes of all ranks of one engine, wherever they are."""

    size: int

    def loads(self, args: EngineArgs) -> list[Load]:
        """What each rank is told first."""
        ...

    def send(self, rank: int, message: bytes) -> None:
        """Never waits for the rank to be done with something else; `receive` says if it has ended."""
        ...

    def receive(self, timeout: float | None) -> list[tuple[int, bytes | None]]:
        """What has come from which rank; waits for the first of it. None of a rank that has ended."""
        ...

    def end_of(self, rank: int) -> str:
        """How a rank that `receive` has called ended came to its end."""
        ...

    def close(self) -> None:
        """End all of them, whatever they do."""
        ...


class LocalRanks:
    """Ranks that are processes of this machine, and meet in memory that they share.

    Args:
        size: how many.
        tensor_size: how many share each layer.
        timeout: seconds that one of them waits for another.
        models: how many they may load, one after the other.

    Raises OSError where processes or memory are not to be had.
    """

    def __init__(self, size: int, tensor_size: int, timeout: float, models: int = 1) -> None:
        self.size, self._tensor_size, self._timeout = size, tensor_size, timeout
        self._folder = tempfile.TemporaryDirectory(prefix="octavo-ranks-", ignore_cleanup_errors=True)
        self._memories = [shared_memory(size) for _ in range(models)]
        self._loads = 0
        self._processes: list[ExecutorProcess] = []
        try:
            for _ in range(size):
                self._processes.append(ExecutorProcess(inherits=self._memories, timeout=timeout))
        except BaseException:
            self.close()
            raise
        self._ranks = {process.connection: rank for rank, process in enumerate(self._processes)}

    def loads(self, args: EngineArgs) -> list[Load]:
        address = f"file://{self._folder.name}/{self._loads}"  # for a backend that does not meet in memory
        link = RankLink(self._memories[self._loads], address, self._timeout)
        self._loads += 1
        return [Load.of(args, RankPlace(rank, self.size, self._tensor_size), link) for rank in range(self.size)]

    def send(self, rank: int, message: bytes) -> None:
        self._processes[rank].send_bytes(message)

    def receive(self, timeout: float | None) -> list[tuple[int, bytes | None]]:
        came: list[tuple[int, bytes | None]] = []
        for connection in wait(list(self._ranks), timeout):
            rank = self._ranks[connection]  # type: ignore[index]
            try:
                came.append((rank, connection.recv_bytes()))  # type: ignore[union-attr]
            except (EOFError, OSError):
                came.append((rank, None))
        return came

    def end_of(self, rank: int) -> str:
        return self._processes[rank].end()

    def close(self) -> None:
        while self._memories:
            memory = self._memories.pop()
            abort(memory)
            os.close(memory)
        self._folder.cleanup()
        for process in self._processes:
            process.close()
