"""Which processors ranks are bound to: by the nodes of machines that are made up, and on this one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo.ops.cpu_binding import bind, numa_nodes, shares
from octavo.ops.native import threads
from octavo.ops.native.threads import siblings

TWO_SOCKETS = [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]
"""Eight cores of two threads each."""


@pytest.fixture(autouse=True)
def _threads_of_cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "shares" in request.node.name:
        monkeypatch.setattr(threads, "siblings", lambda cpu: f"{cpu % 8},{cpu % 8 + 8}")


@pytest.mark.parametrize(
    ("nodes", "size", "expected"),
    [
        (TWO_SOCKETS, 1, [[*range(16)]]),
        (TWO_SOCKETS, 2, TWO_SOCKETS),
        (TWO_SOCKETS, 4, [[0, 1, 8, 9], [2, 3, 10, 11], [4, 5, 12, 13], [6, 7, 14, 15]]),
        (TWO_SOCKETS, 3, [[0, 1, 8, 9], [2, 3, 10, 11], TWO_SOCKETS[1]]),
        (TWO_SOCKETS, 10, [[0, 8], [0, 8], [1, 9], [2, 10], [3, 11], [4, 12], [4, 12], [5, 13], [6, 14], [7, 15]]),
        ([[0, 1], [2, 3], [4, 5], [6, 7]], 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ([[0, 1, 2], [3]], 3, [[0], [1, 2], [3]]),
        ([[5]], 3, [[5], [5], [5]]),
    ],
)
def test_shares_of_nodes(nodes: list[list[int]], size: int, expected: list[list[int]]) -> None:
    assert shares(nodes, size) == expected


def test_the_threads_of_a_core() -> None:
    path = Path("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list")
    assert siblings(0) == (path.read_text().strip() if path.exists() else "0")


def test_nodes_of_this_machine() -> None:
    assert sorted(cpu for cpus in numa_nodes().values() for cpu in cpus) == sorted(os.sched_getaffinity(0))


BINDS = """
import os, sys, threading
from octavo.ops.cpu_binding import bind
from octavo.ops.native.threads import default_threads, siblings
done, asked = threading.Event(), threading.Event()
seen = []
thread = threading.Thread(target=lambda: (asked.set(), done.wait(), seen.append(os.sched_getaffinity(0))))
thread.start()
asked.wait()
for _ in range(2):  # as for two models, one after the other
    cpus = bind(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
done.set()
thread.join()
assert os.sched_getaffinity(0) == seen[0] == set(cpus), (cpus, seen)
cores = len({siblings(cpu) for cpu in cpus})
assert default_threads() <= (max(1, cores // int(sys.argv[3])) if sys.argv[1] == "none" else cores)
print(cpus)
"""


def bound(*choice: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", BINDS, *choice], capture_output=True, text=True, timeout=120, check=True
    )
    return [int(cpu) for cpu in done.stdout.strip("[]\n").split(",")]


def test_a_process_and_its_threads_are_bound() -> None:
    here = sorted(os.sched_getaffinity(0))
    assert bound("none", "1", "2") == bound("auto", "0", "1") == here
    assert bound(f"{here[0]}|{here[-1]}", "1", "2") == [here[-1]]
    ranks = [bound("auto", str(rank), "2") for rank in (0, 1)]
    assert len(here) == 1 or not {*ranks[0]} & {*ranks[1]}


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ("0", r"has 1 list\(s\) for 2 rank\(s\)"),
        ("0|0|0", r"has 3 list\(s\) for 2 rank\(s\)"),
        ("0|none", r"'none', of rank 1, is no list of processors"),
        ("|0", r"'', of rank 0, is no list of processors"),
        ("3-0|0", r"'3-0', of rank 0, is no list"),
        ("0|0-99999999999", r"'0-99999999999', of rank 1, is no list"),
        ("60000|0", r"processor 60000, of rank 0, is none that this process may use: \d"),
        ("some", r"'some' has 1 list"),
    ],
)
def test_lists_that_are_wrong(choice: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        bind(choice, 0, 2)


SHARE = """
import os, sys
from octavo.config import EngineArgs
from octavo.ops.cpu_binding import take_share
from octavo.ops import cpu_binding
from octavo.ops.native import threads
threads.siblings = cpu_binding.siblings = str
allowed = sorted(os.sched_getaffinity(0))
lists = "|".join(map(str, [allowed[0], allowed[-1]]))
for bound in ("auto", "none", lists):
    args = EngineArgs("m", data_parallel_size=2, data_parallel_rank=1, cpu_bind=bound)
    os.sched_setaffinity(0, allowed)
    share = take_share(args)
    mine = sorted(os.sched_getaffinity(0))
    print(share.threads >= 1, mine == allowed if bound == "none" else set(mine) < set(allowed), mine[-1] == allowed[-1])
os.sched_setaffinity(0, allowed)
one = EngineArgs("m")
assert take_share(one) is one and sorted(os.sched_getaffinity(0)) == allowed
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor cannot be divided")
def test_a_replica_takes_its_share() -> None:
    done = subprocess.run([sys.executable, "-c", SHARE], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines() == ["True True True"] * 3, done.stderr
