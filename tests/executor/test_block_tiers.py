"""Files of blocks: what is not as it should be is not used, what is too much goes, and nothing else is touched."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from octavo.executor import block_tiers
from octavo.executor.block_tiers import ENDING, HEADER, DiskTier, HostTier, Tier

SIZE = 5000
LIMIT = 1 << 20


def name(number: int) -> bytes:
    return number.to_bytes(32, "big")


def data(number: int) -> bytes:
    return bytes((number * 7 + i) % 251 for i in range(SIZE))


def read(tier: Tier, number: int, size: int = SIZE) -> bytes | None:
    into = bytearray(size)
    return bytes(into) if tier.read(name(number), 0, memoryview(into)) else None


def path_of(folder: Path, number: int) -> Path:
    return folder / (name(number).hex() + ENDING)


@pytest.fixture
def tier(tmp_path: Path) -> DiskTier:
    tier = DiskTier(tmp_path / "blocks", LIMIT)
    assert tier.write(name(1), 0, memoryview(data(1))) == HEADER.size + SIZE
    return tier


@pytest.mark.parametrize("make", [lambda folder: DiskTier(folder, LIMIT), lambda folder: HostTier(LIMIT)])
def test_what_is_written_is_read(make: Callable[[Path], Tier], tmp_path: Path) -> None:
    tier = make(tmp_path)
    for number in range(5):
        tier.write(name(number), number, memoryview(data(number)))
    assert [read(tier, number) for number in range(6)] == [*map(data, range(5)), None]
    assert [tier.has(name(number), 0) for number in (4, 5)] == [True, False]
    assert tier.write(name(3), 0, memoryview(data(3))) == 0  # it is there
    assert read(tier, 3, SIZE - 1) is None


def damage(change: Callable[[bytearray], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(content)

    return apply


def as_another(path: Path) -> None:
    other = DiskTier(path.parent, LIMIT)
    other.write(name(2), 0, memoryview(data(2)))
    os.replace(path_of(path.parent, 2), path)


def as_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


HOSTILE: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b"") and None,
    "a header alone": damage(lambda content: content.__delitem__(slice(HEADER.size, None))),
    "half a header": damage(lambda content: content.__delitem__(slice(20, None))),
    "cut short": damage(lambda content: content.pop() and None),
    "too long": damage(lambda content: content.append(0)),
    "a bit of the bytes": damage(lambda content: content.__setitem__(-1, content[-1] ^ 1)),
    "a bit of the sum": damage(lambda content: content.__setitem__(HEADER.size - 1, content[HEADER.size - 1] ^ 1)),
    "another line": damage(lambda content: content.__setitem__(0, 0)),
    "another size": damage(lambda content: content.__setitem__(slice(51, 59), b"\xff" * 8)),
    "a pickle": lambda path: path.write_bytes(b"cos\nsystem\n(S'true'\ntR.") and None,
    "another block's": as_another,
    "a link": as_link,
    "a FIFO": as_fifo,
    "others may write it": lambda path: path.chmod(0o666),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_wrong_file_is_not_used_and_deleted(tier: DiskTier, change: Callable[[Path], None]) -> None:
    path = path_of(tier.folder, 1)
    change(path)
    assert read(tier, 1) is None
    assert not os.path.lexists(path)
    assert tier.write(name(1), 0, memoryview(data(1)))
    assert read(tier, 1) == data(1)


def test_every_bit_counts(tier: DiskTier) -> None:
    path = path_of(tier.folder, 1)
    whole = path.read_bytes()
    for at in [*range(HEADER.size + 5), *range(HEADER.size + 5, len(whole), 211)]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert read(tier, 1) is None
    path.write_bytes(whole)
    assert read(tier, 1) == data(1)


def test_a_folder_in_the_place_of_a_file_is_left(tier: DiskTier) -> None:
    path = path_of(tier.folder, 7)
    path.mkdir()
    assert read(tier, 7) is None
    assert path.is_dir()


def test_the_least_recently_used_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**18, 10**19, block_tiers.MINUTE))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    (tmp_path / "somebody's").write_bytes(bytes(LIMIT))
    (tmp_path / "kv-abandoned.partial").write_bytes(b"1")
    os.utime(tmp_path / "kv-abandoned.partial", (0, 0))
    tier = DiskTier(tmp_path, LIMIT)
    for number in range(300):
        tier.write(name(number), 0, memoryview(data(number)))
        assert tier.has(name(0), 0)
    sizes = [path.stat().st_blocks * 512 for path in tmp_path.glob("*" + ENDING)]
    assert LIMIT * 0.8 < sum(sizes) <= LIMIT
    assert read(tier, 0) == data(0)
    assert read(tier, 299) == data(299)
    assert read(tier, 1) is None
    assert (tmp_path / "somebody's").exists()
    assert not (tmp_path / "kv-abandoned.partial").exists()


def test_last_blocks_of_a_prompt_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)
    tier = DiskTier(tmp_path, LIMIT)
    for number in range(200):
        tier.write(name(number), number, memoryview(data(number)))
    left = [number for number in range(200) if path_of(tmp_path, number).exists()]
    assert left[:100] == list(range(100))
    assert len(left) <= LIMIT // 8192


def test_a_full_disk_is_told_once_and_read_on(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for number in range(2, 6):
        assert tier.write(name(number), 0, memoryview(data(number))) == 0
    assert [r.getMessage() for r in caplog.records] == [
        f"no more blocks of the KV cache are written to {tier.folder}: [Errno 28] No space left on device"
    ]
    assert read(tier, 1) == data(1)
    assert [path.suffix for path in tier.folder.iterdir()] == [ENDING]  # nothing half written is left


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    tier = DiskTier(tmp_path / "file" / "folder", LIMIT)
    assert tier.write(name(1), 0, memoryview(data(1))) == 0
    assert not tier.has(name(1), 0)
    assert read(tier, 1) is None
    assert len(caplog.records) == 1


def test_a_folder_that_is_deleted_is_made_again(tier: DiskTier) -> None:
    path_of(tier.folder, 1).unlink()
    tier.folder.rmdir()
    assert tier.write(name(1), 0, memoryview(data(1)))
    assert read(tier, 1) == data(1)


def test_several_write_the_same(tmp_path: Path) -> None:
    tiers = [DiskTier(tmp_path, 1 << 26) for _ in range(4)]

    def work(tier: DiskTier) -> None:
        for number in range(60):
            tier.write(name(number), 0, memoryview(data(number)))
            assert read(tier, number) == data(number)

    threads = [threading.Thread(target=work, args=(tier,)) for tier in tiers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(tmp_path.iterdir())) == 60


def test_memory_is_bounded() -> None:
    tier = HostTier(10 * SIZE)
    for number in range(30):
        tier.write(name(number), 0, memoryview(data(number)))
        assert tier.has(name(0), 0)
    assert [number for number in range(30) if tier.has(name(number), 0)] == [0, *range(21, 30)]
    assert tier.write(name(99), 0, memoryview(bytes(11 * SIZE))) == 0
