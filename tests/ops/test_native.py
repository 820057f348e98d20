"""The compiled core beside its arithmetic: threads, recordings, memory, and what happens without it."""

import logging
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import octavo.ops.native.library as library_module
from octavo.ops import Gate, host_memory, select_backend
from octavo.ops.native import Library, NativeBackend, load, runnable, threads
from octavo.ops.native.description import DType
from octavo.ops.native.library import Steps
from octavo.ops.native.recording import Recording, record
from octavo.ops.recordable import NotRecordableError
from octavo.ops.torch import TorchBackend

CPU = torch.device("cpu")


@pytest.fixture
def core() -> NativeBackend:
    return NativeBackend(Library(runnable()[0]))


class TestThreads:
    def test_their_number_changes_no_bit(self, core: NativeBackend, generator: torch.Generator) -> None:
        linear = core.linear(torch.randn(300, 200, generator=generator))
        x = torch.randn(50, 200, generator=generator)
        found = []
        for count in (1, 2, 5, 2):
            core.set_threads(count)
            assert core.threads == count
            found.append(linear(x))
        assert all(torch.equal(found[0], other) for other in found)

    def test_callers_at_the_same_time(self, core: NativeBackend, generator: torch.Generator) -> None:
        """One has the pool, the others compute alone: all with the same bits, and nobody waits for ever."""
        core.set_threads(2)
        linear = core.linear(torch.randn(500, 300, generator=generator))
        x = torch.randn(40, 300, generator=generator)
        want, wrong = linear(x), []

        def call() -> None:
            for _ in range(100):
                if not torch.equal(linear(x), want):
                    wrong.append(threading.get_ident())

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(60)
        assert not any(c.is_alive() for c in callers)
        assert not wrong

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
    def test_a_forked_child_computes(self, core: NativeBackend, generator: torch.Generator) -> None:
        """The pool's threads are not there in the child, which must not wait for them."""
        core.set_threads(2)
        linear = core.linear(torch.randn(200, 100, generator=generator))
        x = torch.randn(30, 100, generator=generator)
        want = linear(x)
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(linear(x), want) else 1)
        assert os.waitpid(child, 0)[1] == 0

    def test_no_more_than_the_control_group_grants(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(threads, "siblings", str)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
        monkeypatch.setattr(threads, "_processes", {"cores": 1, "time": 1})
        monkeypatch.setattr(threads, "_quota", lambda: 3)
        assert threads.default_threads() == 3
        monkeypatch.setattr(threads, "_quota", lambda: 100)
        assert threads.default_threads() == 8
        monkeypatch.setattr(threads, "siblings", lambda cpu: str(cpu // 2))  # two hyperthreads a core
        assert threads.default_threads() == 4


class TestRecording:
    def test_runs_again_for_fewer_rows(self, core: NativeBackend, generator: torch.Generator) -> None:
        up = core.linear(torch.randn(64, 48, generator=generator))
        down = core.linear(torch.randn(48, 32, generator=generator))
        weight, x = torch.rand(48, generator=generator), torch.zeros(8, 48)

        def step() -> tuple[Tensor, Tensor]:
            total = core.add(core.rms_norm(x, weight, 1e-5), x)
            mixed = core.gated(up(core.rms_norm(total, weight, 1e-6)), Gate("silu"))
            return core.add(total, down(mixed)), mixed

        program = record(core.library, step, 8)
        for rows in (8, 1, 5):
            x.copy_(torch.randn(8, 48, generator=generator))
            want = [result[:rows].clone() for result in step()]
            assert all(torch.equal(*pair) for pair in zip(program.run(rows), want, strict=True))

    def test_a_sum_and_its_norm_become_one(self) -> None:
        recording = Recording()
        rows: dict[str, float | None] = {"rows": 8, "columns": 48, "dtype": DType.F32}
        added = rows | {"x": 100, "y": 200, "out": 300, "scale": 1.0}
        norm = rows | {"x": 300, "weight": 400, "out": 500, "eps": 1e-5}
        recording.add("add", added)
        recording.add("rms_norm", norm)
        recording.add("rms_norm", norm | {"out": 600})
        assert recording.operations == [
            ("add_rms_norm", rows | {"x": 100, "y": 200, "total": 300, "weight": 400, "out": 500, "eps": 1e-5}),
            ("rms_norm", norm | {"out": 600}),
        ]
        recording.add("add", added | {"scale": 0.5})
        recording.add("rms_norm", norm)
        assert [name for name, _ in recording.operations[2:]] == ["add", "rms_norm"]

    def test_what_pytorch_computes_is_called_again(self, core: NativeBackend, generator: torch.Generator) -> None:
        router, x = torch.randn(6, 32, generator=generator), torch.zeros(8, 32)

        def step() -> tuple[Tensor]:
            total = core.add(x, x)
            weights, chosen = torch.softmax(total @ router.T, -1).topk(2)  # two results, one of whole numbers
            total = core.add(total, torch.where(total > 0.5, total, 0.0) + chosen[:, 1:])
            total[:, 3].mul_(weights[:, 0])  # in place
            return (core.add(total, torch.zeros_like(x).add_(weights[:, :1])),)

        program = record(core.library, step, 8)
        assert "_softmax" in program.torch_calls
        for rows in (8, 1, 5):
            x.copy_(torch.randn(8, 32, generator=generator))
            want = step()[0][:rows].clone()
            (got,) = program.run(rows)
            assert torch.equal(got, want)

    def test_recording_writes_to_no_state(self, core: NativeBackend) -> None:
        x, state = torch.ones(4, 16), torch.zeros(4, 16)

        def step() -> tuple[Tensor]:
            state.add_(x)
            return (core.add(state, x),)

        program = record(core.library, step, 4)
        assert not state.any()
        assert torch.equal(program.run(4)[0], torch.full((4, 16), 2.0))
        assert torch.equal(program.run(4)[0], torch.full((4, 16), 3.0))

    def test_other_threads_compute_meanwhile(self, core: NativeBackend) -> None:
        """An adapter is packed while a step is recorded: no part of the recording, and done when it should be."""
        x, found = torch.ones(4, 16), list[Tensor]()

        def step() -> tuple[Tensor]:
            other = threading.Thread(target=lambda: found.append(core.add(torch.ones(1, 16), torch.ones(1, 16))))
            other.start()
            other.join(60)
            return (core.add(x, x),)

        program = record(core.library, step, 4)
        (part,) = program._parts
        assert isinstance(part, Steps)
        assert part.operations == 1
        assert torch.equal(found[0], torch.full((1, 16), 2.0))

    @pytest.mark.parametrize(
        "looks", [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: bool(x.any()), lambda x: x.bernoulli()]
    )
    def test_what_depends_on_values_cannot_be_recorded(
        self, core: NativeBackend, looks: Callable[[Tensor], object]
    ) -> None:
        x = torch.zeros(4, 16)

        def step() -> tuple[Tensor]:
            total = core.add(x, x)
            looks(total)
            return (total,)

        with pytest.raises(NotRecordableError, match="depends on the values"):
            record(core.library, step, 4)
        assert torch.equal(core.add(x, x), x)  # and recording is over


class TestMemory:
    def test_buffers_are_apart_and_zero(self) -> None:
        arena = host_memory.Arena()
        parts = [arena.zeros((3, 5), torch.float32), arena.zeros((7,), torch.bfloat16), arena.bytes(1)]
        for i, part in enumerate(parts):
            assert not part.any()
            part.fill_(i + 1)
        assert [float(p.float().mean()) for p in parts] == [1.0, 2.0, 3.0]
        assert all(p.data_ptr() % host_memory.ALIGNMENT == 0 for p in parts)

    def test_larger_than_a_chunk(self) -> None:
        arena = host_memory.Arena()
        small, large = arena.bytes(10), arena.bytes(host_memory.CHUNK + 1)
        large[-1] = 7
        assert (len(large), int(large[-1]), int(small.sum())) == (host_memory.CHUNK + 1, 7, 0)

    def test_nothing(self) -> None:
        assert host_memory.Arena().zeros((4, 0), torch.float32).shape == (4, 0)

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    def test_a_short_text_takes_little_of_a_cache(self) -> None:
        def resident() -> int:
            return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

        arena = host_memory.Arena()
        caches = [arena.zeros((host_memory.CHUNK + 1,), torch.uint8) for _ in range(16)]
        before = resident()
        for cache in caches:
            cache[0] = 1
        assert resident() - before < 8 * host_memory.LARGE_PAGE


@pytest.mark.parametrize(("files", "reason"), [((), "compiler"), (("_core_processor", "_core_base"), "base alone")])
def test_without_the_core_the_reference_serves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, files: tuple[str, ...], reason: str
) -> None:
    """The command line shows warnings, and so says why as well."""
    monkeypatch.setattr(library_module, "_path", lambda name: Path(name) if name in files else None)
    monkeypatch.setattr(library_module.ctypes, "CDLL", lambda path: SimpleNamespace(octavo_instructions=lambda: 0))
    monkeypatch.setattr(library_module, "check", lambda processor: None)
    load.cache_clear()
    library_module.runnable.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "octavo"):
            backend = select_backend(CPU)
        assert type(backend) is TorchBackend
        assert len(caplog.records) == 1
        assert reason in caplog.text
    finally:
        monkeypatch.undo()
        load.cache_clear()
        library_module.runnable.cache_clear()


@pytest.mark.skipif("OCTAVO_CORE" not in os.environ, reason="only `make sanitize` builds with sanitizers")
def test_the_sanitizers_are_on() -> None:
    """A row that is not in the table: where nothing was checked, the other tests of this run would prove nothing."""
    overrun = """
import torch
from octavo.ops.native import Library, runnable
table, ids, out = torch.zeros(4, 16), torch.tensor([0, 1, 2, 4]), torch.empty(4, 16)
addresses = dict(ids=ids.data_ptr(), table=table.data_ptr(), out=out.data_ptr())
Library(runnable()[0]).core.table_rows(rows=4, first=0, count=5, row_bytes=64, **addresses)
"""
    done = subprocess.run([sys.executable, "-c", overrun], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
