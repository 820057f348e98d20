"""Media that was made to break something: an error that names it, in bounded memory, and nothing fetched or read."""

import contextlib
import http.server
import io
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
import pytest
from PIL import Image

from octavo.errors import ConfigError, InvalidRequestError
from octavo.media.fetch import FetchPolicy, MediaFetcher, _is_public, decode_data_url
from octavo.media.films import FrameSampling, decode_film, frame_sampling
from octavo.media.limits import MediaLimits
from octavo.media.pictures import decode_picture
from octavo.media.sounds import decode_sound

SMALL = MediaLimits(max_bytes=1 << 20)


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG whose header says what you like."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(format: str, size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, format)
    return file.getvalue()


def film(frames: int, size: int = 32, codec: str = "mpeg4", format: str = "mp4") -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            pixels = np.full((size, size, 3), i * 5 % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())
    return file.getvalue()


def wav(samples: int = 1600, rate: int = 16000) -> bytes:
    data = np.zeros(samples, np.int16).tobytes()
    form = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
CONCAT = b"ffconcat version 1.0\nfile /etc/passwd\n"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) run\n"
NAN = np.array([0.0, np.nan, 0.5], np.float32)

PICTURES: dict[str, tuple[object, str]] = {
    "nothing": (b"", "empty"),
    "text": (b"GET / HTTP/1.1\r\n", "no picture"),
    "postscript": (EPS, "no picture"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", "no picture"),
    "bomb": (png(60000, 60000), "pixels"),
    "bomb below Pillow's own bound": (png(9000, 9000), "pixels"),
    "no width": (png(0, 10), "no picture"),
    "thin": (png(1, 100_000), "times the shorter"),
    "no rows": (png(40, 40), "damaged"),
    "cut png": (saved("PNG")[:200], "damaged"),
    "cut jpeg": (saved("JPEG")[:700], "damaged"),
    "cut webp": (saved("WEBP")[:200], "picture"),
    "too many bytes": (b"\x89PNG" + bytes(2 << 20), "larger"),
    "empty array": (np.zeros((0, 0, 3), np.uint8), "nothing to see"),
    "array without height": (np.zeros((0, 5, 3), np.uint8), "nothing to see"),
    "array of NaN": (np.full((4, 4, 3), np.nan, np.float32), "not finite"),
    "array of large numbers": (np.full((4, 4, 3), 300), "bytes"),
    "array of negative numbers": (np.full((4, 4, 3), -0.5), "bytes"),
    "array of strings": (np.full((4, 4, 3), "a"), "bytes"),
    "array of objects": (np.full((4, 4, 3), None), "bytes"),
    "two channels": (np.zeros((5, 4, 2), np.uint8), "Give"),
    "four axes": (np.zeros((2, 4, 4, 3), np.uint8), "Give"),
    "huge array without memory": (np.broadcast_to(np.uint8(0), (1 << 20, 1 << 20, 3)), "pixels"),
    "a number": (7, "of type int"),
    "None": (None, "of type NoneType"),
    "a dict": ({"url": "x"}, "of type dict"),
    "no such file": ("/no/such/file.png", "cannot be read"),
    "a folder": ("/tmp", "cannot be read"),
    "a device": ("/dev/zero", "no plain file"),
    "a path with NUL": ("/tmp/\0x", "cannot be read"),
}
FILMS: dict[str, tuple[object, str]] = {
    "nothing": (b"", "empty"),
    "text": (b"hello" * 100, "cannot be decoded"),
    "playlist": (PLAYLIST, "cannot be decoded"),
    "concat": (CONCAT, "cannot be decoded"),
    "sound": (wav(), "no pictures"),
    "cut": (film(20)[:700], "video"),
    "no frames": (np.zeros((0, 4, 4, 3), np.uint8), "no frames"),
    "no frames in a list": ([], "no frames"),
    "10,000 frames": (np.broadcast_to(np.uint8(0), (10_000, 4, 4, 3)), "10,000 frames"),
    "10,000 frames in a list": ([np.zeros((4, 4, 3), np.uint8)] * 10_000, "10,000 frames"),
    "many large frames": (np.broadcast_to(np.uint8(0), (1000, 4000, 4000, 3)), "pixels in all"),
    "0 x 0": (np.zeros((3, 0, 0, 3), np.uint8), "nothing to see"),
    "one picture": (np.zeros((4, 4, 3), np.uint8), "Give"),
    "NaN": (np.full((2, 4, 4, 3), np.nan), "not finite"),
    "two sizes": ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], "different sizes"),
    "a number": (3.5, "of type float"),
}
SOUNDS: dict[str, tuple[object, str]] = {
    "nothing": (b"", "empty"),
    "text": (b"hello" * 100, "cannot be decoded"),
    "playlist": (PLAYLIST, "cannot be decoded"),
    "film without sound": (film(3), "no sound"),
    "cut": (wav()[:30], "audio"),
    "no samples": ((np.zeros(0, np.float32), 16000), "no samples"),
    "NaN": ((NAN, 16000), "not finite"),
    "infinite": ((np.array([np.inf, 0], np.float32), 16000), "not finite"),
    "rate 0": ((np.zeros(5, np.float32), 0), "rate"),
    "negative rate": ((np.zeros(5, np.float32), -5), "rate"),
    "rate of NaN": ((np.zeros(5, np.float32), float("nan")), "rate"),
    "rate as text": ((np.zeros(5, np.float32), "16000"), "rate"),
    "too slow a rate": ((np.zeros(10_000, np.float32), 1), "seconds long"),
    "hours": ((np.broadcast_to(np.float32(0), (1 << 29,)), 16000), "seconds long"),
    "9 channels": ((np.zeros((9, 100), np.float32), 16000), "channels"),
    "three axes": ((np.zeros((1, 2, 3), np.float32), 16000), "shape"),
    "strings": ((["a", "b"], 16000), "type list"),
    "complex": ((np.zeros(5, np.complex64), 16000), "complex64"),
    "no rate": (np.zeros(5, np.float32), "Give"),
    "three values": ((1, 2, 3), "Give"),
}


def refuses(decode: Callable[..., object], value: object, says: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequestError, match=says) as caught:
            decode(value, limits=SMALL if isinstance(value, bytes) else MediaLimits(), name="item 3")
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert "item 3" in str(caught.value)
    assert str(caught.value).rstrip()[-1] in ".)"


@pytest.mark.parametrize("case", PICTURES)
def test_pictures(case: str) -> None:
    refuses(decode_picture, *PICTURES[case])


@pytest.mark.parametrize("case", SOUNDS)
def test_sounds(case: str) -> None:
    refuses(decode_sound, SOUNDS[case][0], SOUNDS[case][1].replace("audio", "item 3"))


@pytest.mark.parametrize("case", FILMS)
def test_films(case: str) -> None:
    refuses(decode_film, FILMS[case][0], FILMS[case][1].replace("video", "item 3"))


def test_memory_stays_low() -> None:
    """What decoders take outside of Python counts too: in a process of its own, since a peak never falls."""
    program = """
import resource
from octavo.errors import InvalidRequestError
from tests.media.test_hostile import *
peaks = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
for decode, table in ((decode_picture, PICTURES), (decode_film, FILMS), (decode_sound, SOUNDS)):
    for value, _ in table.values():
        try:
            decode(value)
        except InvalidRequestError:
            pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peaks[0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < 150 << 10  # KiB; the largest item that would be allowed takes some hundred MiB


@pytest.mark.filterwarnings("ignore")  # of Pillow, about the damage
def test_every_truncation_is_an_error_or_a_result() -> None:
    """No cut of a file raises anything else, whatever the decoders do with it."""
    for decode, data in [(decode_picture, saved(f, (9, 7))) for f in ("PNG", "JPEG", "GIF", "BMP", "TIFF")] + [
        (decode_film, film(4)),
        (decode_sound, wav(100)),
    ]:
        for end in range(1, len(data), max(1, len(data) // 40)):
            with contextlib.suppress(InvalidRequestError):
                decode(data[:end])
            broken = bytearray(data)
            broken[end] ^= 0xFF
            with contextlib.suppress(InvalidRequestError):
                decode(bytes(broken))


def test_a_long_film_is_sampled_or_refused() -> None:
    data = film(300)
    assert decode_film(data).shape == (32, 32, 32, 3)
    assert len(decode_film(data, FrameSampling(-1))) == 300
    assert len(decode_film(data, FrameSampling(1000, fps=1))) == 30
    with pytest.raises(InvalidRequestError, match="300 frames"):
        decode_film(data, FrameSampling(-1), MediaLimits(max_frames=299))
    with pytest.raises(InvalidRequestError, match="too many frames"):
        decode_film(data, FrameSampling(4), MediaLimits(max_decoded_frames=299))
    with pytest.raises(InvalidRequestError, match="32 x 32 pixels"):
        decode_film(data, FrameSampling(4), MediaLimits(max_pixels=1000))


@pytest.mark.parametrize(
    "options", [{"frames": 3}, {"num_frames": 0}, {"num_frames": "3"}, {"num_frames": True}, {"fps": -1}, {"fps": "x"}]
)
def test_sampling_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(options))):
        frame_sampling(options)


# Addresses


class Handler(http.server.BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []
    done: ClassVar[threading.Event]
    """Ends what drips; each server's own, since modules share this class."""

    def do_GET(self) -> None:
        Handler.asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(1000):
                    self.wfile.write(bytes(1 << 16))
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while not Handler.done.wait(0.05):
                    self.wfile.write(b"x")
                    self.wfile.flush()
        elif self.path == "/missing":
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"picture")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Handler.done = threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    Handler.done.set()
    server.shutdown()
    server.server_close()
    thread.join()


def fetcher(**options: Any) -> MediaFetcher:
    return MediaFetcher(FetchPolicy(**{"timeout": 5.0, "limits": MediaLimits(max_bytes=1 << 18), **options}))


def test_what_is_allowed_is_fetched(port: int) -> None:
    ours = fetcher(domains=["localhost", "127.0.0.1"])
    for url in (f"http://localhost:{port}/a", f"http://127.0.0.1:{port}/a?b#c", f"HTTP://LOCALHOST:{port}/to//a"):
        assert ours.fetch(url) == b"picture"
    assert ours.fetch(f"http://localhost:{port}/to/http://127.0.0.1:{port}/x") == b"picture"


@pytest.mark.parametrize(
    ("domains", "path", "says"),
    [
        ([], "/a", "not allowed"),
        (["example.com"], "/a", "not allowed"),
        (["*"], "/a", "private"),
        (["*.0.0.1"], "/a", "private"),
        (["127.0.0.1"], "/to/http://localhost:{port}/secret", "not allowed"),
        (["127.0.0.1", "*"], "/to/http://localhost:{port}/secret", "private"),
        (["127.0.0.1", "*"], "/to/http://[::1]:{port}/secret", "private"),
        (["127.0.0.1", "*"], "/to/http://[::ffff:127.0.0.1]:{port}/secret", "private"),
        (["127.0.0.1", "*"], "/to/http://2130706433:{port}/secret", "private|cannot be fetched"),
        (["127.0.0.1", "*"], "/to/http://0.0.0.0:{port}/secret", "private"),
        (["127.0.0.1", "*"], "/to/http://169.254.169.254/secret", "private"),
        (["127.0.0.1"], "/to/http://user:password@127.0.0.1:{port}/secret", "user name"),
        (["127.0.0.1"], "/to/file:///etc/passwd", "not allowed"),
        (["127.0.0.1"], "/to/ftp://127.0.0.1/secret", "not allowed"),
        (["127.0.0.1"], "/to/http://127.0.0.1:99999/secret", "no URL"),
        (["127.0.0.1"], "/to//to//to//to//to//to//to//to//a", "redirected"),
        (["127.0.0.1"], "/endless", "larger"),
        (["127.0.0.1"], "/missing", "404"),
    ],
)
def test_what_is_not_allowed_is_not(port: int, domains: list[str], path: str, says: str) -> None:
    Handler.asked.clear()
    with pytest.raises(InvalidRequestError, match=says) as caught:
        fetcher(domains=domains).fetch(f"http://127.0.0.1:{port}{path.format(port=port)}", "item 2")
    assert "item 2" in str(caught.value)
    assert not [p for p in Handler.asked if p == "/secret"]


def test_a_server_that_drips_is_left(port: int) -> None:
    with pytest.raises(InvalidRequestError, match="was not there within"):
        fetcher(domains=["127.0.0.1"], timeout=0.5).fetch(f"http://127.0.0.1:{port}/slow")


def test_a_fetcher_that_is_closed_waits_for_nobody(port: int) -> None:
    ours = fetcher(domains=["127.0.0.1"], timeout=600.0)
    with ThreadPoolExecutor(1) as pool:
        Handler.asked.clear()
        slow = pool.submit(ours.fetch, f"http://127.0.0.1:{port}/slow")
        while not Handler.asked:
            assert not slow.done()
        ours.close()
        with pytest.raises(InvalidRequestError, match="is stopped"):
            slow.result(60)


@pytest.mark.parametrize(
    "url", ["ftp://x/y", "javascript:alert(1)", "x", "", "//a/b", "http:", "http://", "gopher://a"]
)
def test_other_addresses(url: str) -> None:
    with pytest.raises(InvalidRequestError):
        fetcher(domains=["*"], folder="/tmp").fetch(url)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "::1", "fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::"],
)  # fmt: skip
def test_private_addresses(address: str) -> None:
    assert not _is_public(address)
    assert _is_public("93.184.216.34")
    assert _is_public("2606:2800:220:1::1")


def test_files_of_one_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "media", tmp_path / "secret.png"
    folder.mkdir()
    (folder / "in.png").write_bytes(b"inside")
    outside.write_bytes(b"outside")
    (folder / "link.png").symlink_to(outside)
    (folder / "within.png").symlink_to(folder / "in.png")
    (folder / "sub").symlink_to(tmp_path)
    ours = fetcher(folder=folder)
    for url in (f"file://{folder}/in.png", f"file://localhost{folder}/in.png", f"file://{folder}/within.png"):
        assert ours.fetch(url) == b"inside"
    for path in (
        outside, f"{folder}/../secret.png", f"{folder}/%2e%2e/secret.png", f"{folder}/link.png",
        f"{folder}/sub/secret.png", "/etc/passwd", folder, f"{folder}/nothing.png", f"{folder}/in.png%00",
        f"{folder}/{'x' * 5000}", "/proc/self/environ",
    ):  # fmt: skip
        with pytest.raises(InvalidRequestError, match="no file in the folder"):
            ours.fetch(f"file://{path}")
    with pytest.raises(InvalidRequestError, match="no file in the folder"):
        ours.fetch(f"file://server{folder}/in.png")
    with pytest.raises(InvalidRequestError, match="none may be read"):
        fetcher().fetch(f"file://{folder}/in.png")
    with pytest.raises(ConfigError, match="no folder"):
        FetchPolicy(folder=outside)


@pytest.mark.parametrize(
    "url", ["data:", "data:image/png;base64", "data:image/png;base64,!!!!", "data:image/png;base64,"]
)
def test_data_urls(url: str) -> None:
    with pytest.raises(InvalidRequestError):
        decode_data_url(url)
    assert decode_data_url("data:image/png;base64,aGVsbG8=") == decode_data_url("data:text/plain,hello") == b"hello"
    with pytest.raises(InvalidRequestError, match="larger"):
        decode_data_url("data:;base64," + "A" * (1 << 20), MediaLimits(max_bytes=1 << 10))
