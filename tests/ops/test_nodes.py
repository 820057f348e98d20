"""Threads on several NUMA nodes, which are made up: the same bits, every piece once, and memory beside who reads it."""

import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo.ops import CacheSpec, Gate, host_memory
from octavo.ops.host_memory import Arena
from octavo.ops.native import Library, NativeBackend, runnable, threads
from octavo.ops.native.native_products import NativeLinear
from octavo.ops.native.threads import homes
from octavo.ops.weight_kinds import WeightKind
from tests.ops.stored import random_rows
from tests.ops.test_adapters import EVERY_WAY, INPUTS, OUTPUTS, random_update, table_of
from tests.ops.test_attention import Cache

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the system binds no threads")

FIRST, LAST = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
MADE_UP = [
    (2, {0: [FIRST], 1: [LAST]}),
    (7, {0: [FIRST], 1: [LAST]}),
    (3, {0: [FIRST], 2: [LAST], 3: [FIRST, LAST], 5: [LAST]}),  # of which one has no threads
    (5, {0: [FIRST, LAST], 4: [1000]}),  # a processor that is not there: nothing binds its threads
]
PLAIN = dict[int, list[int]]()


@pytest.fixture
def core() -> Iterator[NativeBackend]:
    backend = NativeBackend(Library(runnable()[0]))
    yield backend
    backend.set_threads(1)


def with_each(core: NativeBackend, compute: Callable[[], list[Tensor]]) -> None:
    """Compute on each of the made up machines, and hold the results to be those of one thread."""
    core.library.set_threads(1, PLAIN)
    want = compute()
    for count, nodes in MADE_UP:
        assert core.library.set_threads(count, nodes) == count
        assert core.library.nodes == tuple(nodes)
        for _ in range(5):
            assert all(torch.equal(*pair) for pair in zip(compute(), want, strict=True)), nodes


@pytest.mark.parametrize("kind", [torch.bfloat16, WeightKind.Q4_1, WeightKind.Q6_K], ids=str)
def test_products(core: NativeBackend, kind: torch.dtype | WeightKind, generator: torch.Generator) -> None:
    """Each result is written, for nothing that was there before is left."""
    if isinstance(kind, torch.dtype):
        weight = core.linear(torch.randn(74 * 16, 512, generator=generator).to(kind))
    else:
        weight = core.stored_linear([random_rows(kind, 74 * 16, 512, generator)[0]])
    x = torch.randn(70, 512, generator=generator).to(kind if isinstance(kind, torch.dtype) else torch.float32)

    def compute() -> list[Tensor]:
        made = [core.gated_linear(weight, x[:rows], None, Gate("silu")) for rows in (1, 70)]
        for rows in (1, 2, 9, 70):
            out = torch.full((rows, weight.outputs), torch.nan, dtype=x.dtype)
            weight.parts[0].multiply(x[:rows], out, 0, None)
            assert not out.isnan().any()
            made.append(out)
        return made

    with_each(core, compute)


def test_what_is_added_is_added_once(core: NativeBackend, generator: torch.Generator) -> None:
    """Adapters change results where they are: a piece that came twice would be seen."""
    table = table_of(core, [random_update(generator, parts) for parts in EVERY_WAY])
    x, y = torch.randn(300, INPUTS, generator=generator), torch.randn(300, OUTPUTS, generator=generator)
    slots = torch.arange(300) % len(EVERY_WAY)

    def compute() -> list[Tensor]:
        changed = y.clone()
        table.apply(x, changed, slots)
        return [changed]

    with_each(core, compute)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_attention(core: NativeBackend, dtype: torch.dtype, generator: torch.Generator) -> None:
    cache = Cache(core, [300, 2600], 3, 32, 16, generator, dtype)
    q = torch.randn(300, 9, 32, generator=generator)
    ways = [[(1, 2599, q[:1])], [(0, 296, q[:4]), (1, 2596, q[4:8])], [(1, 2300, q)]]
    with_each(core, lambda: [torch.cat(cache.attend(queries)) for queries in ways])


def test_callers_at_the_same_time(core: NativeBackend, generator: torch.Generator) -> None:
    """One has the pool, the others compute alone, while a weight is placed."""
    core.library.set_threads(5, MADE_UP[0][1])
    weight = core.linear(torch.randn(500, 300, generator=generator))
    x, wrong = torch.randn(40, 300, generator=generator), list[str]()
    want = weight(x)

    def compute() -> None:
        wrong.extend("product" for _ in range(50) if not torch.equal(weight(x), want))

    def place() -> None:
        for _ in range(50):
            placed = core.beside_threads(weight)
            assert isinstance(placed, NativeLinear)
            if not torch.equal(placed.parts[0].data, weight.parts[0].data):
                wrong.append("place")

    callers = [threading.Thread(target=target) for target in (compute, place, compute, place)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not any(caller.is_alive() for caller in callers)
    assert not wrong


def wait_until(ready: Callable[[], bool]) -> None:
    """Threads bind themselves when they begin, and the system lists them a moment longer than they live."""
    end = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.001)


def tasks() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def allowed(task: str) -> set[int]:
    return os.sched_getaffinity(int(task))


def faults(task: str) -> int:
    """Pages that a thread was the first to write."""
    return int(Path(f"/proc/self/task/{task}/stat").read_text().rpartition(")")[2].split()[7])


@pytest.mark.skipif(FIRST == LAST, reason="one processor cannot be two nodes")
@pytest.mark.parametrize("parts", [1, 2])
def test_memory_is_taken_by_those_who_read_it(core: NativeBackend, parts: int) -> None:
    """Of four threads two belong to the second node, and are the first to write the second half of each part."""
    before, others = os.sched_getaffinity(0), tasks()
    core.library.set_threads(4, {0: [FIRST], 1: [LAST]})
    workers = tasks() - others
    bound = sorted([[FIRST], [LAST], [LAST]])
    wait_until(lambda: sorted([*allowed(task)] for task in workers) == bound)
    pages = 8192
    memory = mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    target = torch.frombuffer(memory, dtype=torch.uint8)
    source = torch.randint(0, 256, (target.nbytes - 6 * 17,), dtype=torch.uint8)
    # The second time only the target's pages are new: the first also touches what sanitizers note of each address.
    for _ in range(2):
        memory.madvise(mmap.MADV_DONTNEED)
        begin = {task: faults(task) for task in workers}
        core.library.core.place(source=source.data_ptr(), target=target.data_ptr(), size=source.nbytes, parts=parts)
        second = sum(faults(task) - begin[task] for task in workers if allowed(task) == {LAST})
    assert abs(second - pages // 2) < pages // 20
    assert torch.equal(target[: source.nbytes], source)
    assert not target[source.nbytes :].any()
    assert os.sched_getaffinity(0) == before


def test_placed_weights_compute_the_same(core: NativeBackend, generator: torch.Generator) -> None:
    core.library.set_threads(3, MADE_UP[0][1])
    for outputs, is_gated in ((640, True), (641, True), (96, False), (1, False)):
        weight, x = core.linear(torch.randn(outputs, 96, generator=generator)), torch.randn(5, 96, generator=generator)
        placed = core.beside_threads(weight, is_gated)
        assert isinstance(placed, NativeLinear)
        assert placed.parts[0].data.data_ptr() != weight.parts[0].data.data_ptr()
        assert torch.equal(placed(x), weight(x))
    core.set_threads(1)
    assert core.beside_threads(weight) is weight


def test_each_thread_has_a_home() -> None:
    """As many on a node as it has a share of the cores, and never all of a few on the first."""
    assert homes(4, {0: [0, 1], 1: [2, 3]}) == [0, 1, 0, 1]
    assert homes(2, {0: [0, 1], 1: [2, 3], 3: [4, 5]}) == [0, 1]
    assert [homes(8, {2: [*range(30)], 3: [*range(30, 40)]}).count(node) for node in (2, 3)] == [6, 2]


def test_one_node_is_as_ever(core: NativeBackend) -> None:
    """Nothing is bound or copied, whoever asked before."""
    others = tasks()
    core.library.set_threads(3, {0: [FIRST], 1: [LAST]})
    bound = tasks() - others
    core.library.set_threads(3, {0: [FIRST, LAST]})
    assert core.library.nodes == ()
    wait_until(lambda: not bound & tasks())
    assert all(allowed(task) == os.sched_getaffinity(0) for task in tasks() - others)


def test_threads_are_not_bound_where_nobody_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_binds", [True])
    monkeypatch.setattr(threads, "nodes_of", lambda _: {0: [0], 1: [1]})
    assert threads.own_nodes() == {0: [0], 1: [1]}
    threads.bind_to_nodes(False)
    assert threads.own_nodes() == {}


def test_caches_lie_on_the_nodes_in_turn(core: NativeBackend) -> None:
    """As far as the system lets anybody say so; it is asked for the node that every machine has."""
    buffer = Arena().zeros((8 << 20,), torch.uint8)
    if not host_memory.interleave(buffer, [0]):
        pytest.skip("the system does not let this process say where memory lies")
    maps = Path("/proc/self/numa_maps").read_text().splitlines()
    assert any(line.startswith(f"{buffer.data_ptr():x} interleave") for line in maps)
    core.library.set_threads(2, MADE_UP[0][1])
    core.library.nodes = (0, 0)
    cache = core.make_cache(CacheSpec(1, 64, 64), 5000, 16, torch.float32)
    maps = Path("/proc/self/numa_maps").read_text().splitlines()
    assert any(line.startswith(f"{cache.keys.data_ptr():x} interleave") for line in maps)
    assert not cache.keys.any()
