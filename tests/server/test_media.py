"""Pictures, films and sounds over HTTP: in every way that a client may send them, and in all ways that harm."""

import asyncio
import base64
import contextlib
import io
import json
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from octavo.errors import InvalidRequestError
from octavo.server.admission import Admission, AdmissionScope, OverloadedError
from octavo.server.form_data import FormPart, read_form
from octavo.server.server_options import ServerOptions
from tests.media.test_hostile import CONCAT, EPS, PLAYLIST, Handler, film, png, port, saved, wav  # noqa: F401
from tests.server.running import Running, server

LIMITS = ("--kv-cache-memory", "64MiB", "--max-model-len", "1024")
OPTIONS = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What file: URLs may name."""
    made = tmp_path_factory.mktemp("media") / "open"
    made.mkdir()
    picture(0).save(made / "a.png")
    picture(1).save(made.parent / "secret.png")
    (made / "link.png").symlink_to(made.parent / "secret.png")
    return made


@pytest.fixture(scope="module")
def running(toy_model: tuple[Path, dict[str, str]], folder: Path) -> Iterator[Running]:
    allowed = ("--allowed-media-domains", "127.0.0.1", "--allowed-local-media-path", str(folder))
    limits = ("--limit-mm-per-prompt", '{"image": 4, "audio": 2}', "--media-io-kwargs", '{"video": {"num_frames": 8}}')
    with server(str(toy_model[0]), *LIMITS, *allowed, *limits, "--served-model-name", "toy", **toy_model[1]) as made:
        yield made


@pytest.fixture(scope="module")
def closed(toy_model: tuple[Path, dict[str, str]]) -> Iterator[Running]:
    """One whose options allow nothing to be fetched."""
    with server(
        str(toy_model[0]), *LIMITS, "--max-body-size", "1MiB", "--max-queued-media", "4000", **toy_model[1]
    ) as made:
        yield made


@pytest.fixture(scope="module")
def patient(toy_model: tuple[Path, dict[str, str]]) -> Iterator[Running]:
    """One that waits for media as long as a test may take."""
    options = ("--allowed-media-domains", "127.0.0.1", "--media-fetch-timeout", "600")
    with server(str(toy_model[0]), *LIMITS, *options, **toy_model[1]) as made:
        yield made


@pytest.fixture(scope="module")
def embedding(toy_model: tuple[Path, dict[str, str]]) -> Iterator[Running]:
    with server(str(toy_model[0]), *LIMITS, "--task", "embedding", **toy_model[1]) as made:
        yield made


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def of_picture(seed: int = 0) -> dict[str, Any]:
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return {"type": "image_url", "image_url": {"url": data_url(file.getvalue())}}


def of_url(url: Any, kind: str = "image") -> dict[str, Any]:
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def chat(running: Running, *parts: Any, **more: Any) -> httpx.Response:
    content = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    body = {"messages": [{"role": "user", "content": content}], **OPTIONS, **more}
    return running.post("/v1/chat/completions", body)


def answer(response: httpx.Response) -> tuple[str, int]:
    """An answer's text, and how many tokens its prompt had."""
    assert response.status_code == 200, response.text
    body = response.json()
    return body["choices"][0]["message"]["content"], body["usage"]["prompt_tokens"]


def test_a_picture_is_seen_wherever_it_is(running: Running, folder: Path, port: int) -> None:  # noqa: F811
    text, tokens = answer(chat(running, "What?", of_picture()))
    assert answer(chat(running, "What?"))[1] == tokens - 5  # four rows and a line's end
    assert answer(chat(running, "What?", of_picture(1)))[0] != text
    Handler.asked.clear()
    for same in (
        of_url(f"file://{folder}/a.png"),
        {"type": "image_url", "image_url": f"file://{folder}/a.png"},
        {"type": "input_image", "image_url": of_picture()["image_url"]["url"]},
    ):
        assert answer(chat(running, "What?", same)) == (text, tokens)
    assert chat(running, "What?", of_url(f"http://127.0.0.1:{port}/a")).status_code == 400  # its bytes are no picture
    assert Handler.asked == ["/a"]


def test_films_and_sounds(running: Running) -> None:
    _, none = answer(chat(running, "What?"))
    clip = of_url(data_url(film(20), "video/mp4"), "video")
    assert answer(chat(running, "What?", clip))[1] == none + 8 + 1
    frames = {"video": {"num_frames": 3}}
    assert answer(chat(running, "What?", clip, media_io_kwargs=frames))[1] == none + 3 + 1
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav()).decode(), "format": "wav"}}
    assert answer(chat(running, "What?", sound, of_picture(), clip))[1] == none + 3 + 4 + 8 + 3


def test_streams_and_tokens(running: Running) -> None:
    text, tokens = answer(chat(running, "What?", of_picture()))
    events = chat(running, "What?", of_picture(), stream=True).text
    pieces = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")]
    assert "".join(p["choices"][0]["delta"].get("content", "") for p in pieces) == text
    talk = [{"role": "user", "content": [{"type": "text", "text": "What?"}, of_picture()]}]
    counted = running.post("/tokenize", {"messages": talk}).json()
    assert counted["count"] == tokens
    assert counted["tokens"].count(257) == 4
    card = running.get("/v1/models").json()["data"][0]
    assert card["input_modalities"] == ["text", "image", "video", "audio"]


def test_numbers_follow(running: Running) -> None:
    names = ("media_items_total", "media_cache_hits_total", "media_tower_seconds_total", "prefix_cache_hits_total")
    before = {name: running.metric(name) for name in names}
    chat(running, "A text of more than a block of tokens, and then the picture.", of_picture(77))
    first = {name: running.metric(name) - before[name] for name in names}
    assert first["media_items_total"] == 1
    assert first["media_tower_seconds_total"] > 0
    chat(running, "Another text.", of_picture(77))
    assert running.metric("media_items_total") == before["media_items_total"] + 1
    assert running.metric("media_cache_hits_total") == before["media_cache_hits_total"] + 1
    chat(running, "A text of more than a block of tokens, and then the picture.", of_picture(77))
    assert running.metric("prefix_cache_hits_total") > before["prefix_cache_hits_total"]


def test_embeddings_of_messages(embedding: Running) -> None:
    def embed(*parts: Any) -> Any:
        body = {"messages": [{"role": "user", "content": list(parts)}]}
        response = embedding.post("/v1/embeddings", body)
        assert response.status_code == 200, response.text
        return response.json()["data"][0]["embedding"]

    text = {"type": "text", "text": "What?"}
    seen = embed(text, of_picture())
    assert seen == embed(text, of_picture())
    assert seen != embed(text, of_picture(1))
    assert embed(text) != seen
    for body, says in (
        ({"messages": [{"role": "user", "content": [of_picture()]}], "input": "x"}, "exclude"),
        ({}, "give an input or messages"),
        ({"messages": [{"role": "user", "content": [of_picture()]}], "truncate_prompt_tokens": 4}, "cut through"),
    ):
        refused = embedding.post("/v1/embeddings", body)
        assert refused.status_code == 400
        assert says in refused.json()["error"]["message"]


def transcribe(running: Running, data: bytes | None = None, **fields: Any) -> httpx.Response:
    files = {"file": ("a.wav", wav() if data is None else data)}
    headers = fields.pop("headers", None)
    return httpx.post(
        running.url + "/v1/audio/transcriptions", data=fields, files=files, headers=headers, timeout=60
    )  # fmt: skip


def test_transcriptions(running: Running) -> None:
    fields = {"model": "toy", "max_completion_tokens": 5}
    whole = transcribe(running, **fields)
    assert whole.status_code == 200, whole.text
    assert whole.json()["usage"]["output_tokens"] <= 5
    text = transcribe(running, **fields, response_format="text")
    assert text.headers["content-type"].startswith("text/plain")
    assert text.text.strip() == whole.json()["text"]
    streamed = transcribe(running, **fields, stream="true").text
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert events[-1]["type"] == "transcript.text.done"
    assert "".join(e["delta"] for e in events[:-1]) == events[-1]["text"]
    assert transcribe(running, **fields, language="de").json() != whole.json()


def test_transcriptions_of_openais_client(running: Running) -> None:
    import openai

    client = openai.OpenAI(base_url=running.url + "/v1", api_key="none")
    sound = ("a.wav", wav())
    assert client.audio.transcriptions.create(model="toy", file=sound, temperature=0).text is not None
    events = list(client.audio.transcriptions.create(model="toy", file=sound, stream=True))
    assert events[-1].type == "transcript.text.done"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"response_format": "srt"}, "response_format"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"temperature": "-1"}, "temperature"),
        ({"max_completion_tokens": "1e99"}, "max_completion_tokens"),
        ({"max_completion_tokens": str(1 << 70)}, "max_completion_tokens"),
        ({"language": "{{ 7 * 7 }}"}, "language"),
        ({"stream": "perhaps"}, "stream"),
        ({"data": b""}, "file"),
        ({"data": b"no sound"}, "audio 1|audio"),
        ({"headers": {"Origin": "https://evil.example"}}, "origin"),
        ({f"x{i}": "y" for i in range(40)}, "more than 32 parts"),
        ({"prompt": "word " * 2000}, "tokens"),
    ],
)
def test_transcriptions_refused(running: Running, fields: dict[str, Any], says: str) -> None:
    refused = transcribe(running, **fields)
    assert refused.status_code == 400, refused.text
    assert any(word in refused.json()["error"]["message"] for word in says.split("|"))


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/form-data", b"x", 415),
        ("multipart/form-data; boundary=b", b"", 400),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\n--b--", 400),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--", 400),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"x: y\r\n" * 9000 + b"\r\n\r\n--b--", 400),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx', 400),
        ("multipart/form-data; boundary=b", b"--b--", 400),
    ],
)
def test_forms_that_are_none(running: Running, kind: str, body: bytes, status: int) -> None:
    refused = httpx.post(
        running.url + "/v1/audio/transcriptions", content=body, headers={"Content-Type": kind}, timeout=60
    )
    assert refused.status_code == status, refused.text


def test_any_bytes_are_a_form_or_an_error() -> None:
    whole = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\0\r\n--\r\n\xff'
        b'\r\n--b\r\ncontent-disposition: form-data; name="model"\r\n\r\ntoy\r\n--b--\r\n'
    )
    form = read_form('multipart/form-data; boundary="b"', whole)
    assert form["file"].data == b"\0\r\n--\r\n\xff"
    assert form["file"].is_file
    assert form["model"].text("model") == "toy"
    for name in ("file", "model"):
        with pytest.raises(InvalidRequestError, match="must be text"):
            FormPart(b"\xff", name == "file").text(name)
    rng = np.random.default_rng(3)
    for _ in range(2000):
        broken = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 5)):
            broken[place] = rng.integers(0, 256)
        with contextlib.suppress(InvalidRequestError):
            read_form("multipart/form-data; boundary=b", bytes(broken[: rng.integers(1, len(whole) + 1)]))


def test_a_model_of_text_has_no_transcriptions(tiny_server: Running) -> None:
    assert transcribe(tiny_server).status_code == 404
    assert tiny_server.get("/v1/models").json()["data"][0]["input_modalities"] == ["text"]
    refused = chat(tiny_server, of_picture())
    assert refused.status_code == 400
    assert "only text parts are supported" in refused.json()["error"]["message"]


def float_wav(samples: list[float], rate: int = 16000) -> bytes:
    data = np.array(samples, "<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, 1, rate, 4 * rate, 4, 32)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


ONE = of_picture()
HOSTILE: dict[str, tuple[Any, str]] = {
    "bomb": (of_url(data_url(png(60000, 60000))), "pixels"),
    "bomb below Pillow's own bound": (of_url(data_url(png(9000, 9000, bytes(1 << 20)))), "pixels"),
    "0 x 0": (of_url(data_url(png(0, 0))), "no picture"),
    "thin": (of_url(data_url(png(1, 100_000))), "times the shorter"),
    "cut png": (of_url(data_url(saved("PNG")[:200])), "damaged"),
    "cut jpeg": (of_url(data_url(saved("JPEG")[:700])), "damaged"),
    "text": (of_url(data_url(b"GET / HTTP/1.1")), "no picture"),
    "postscript": (of_url(data_url(EPS)), "no picture"),
    "svg": (of_url(data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>")), "no picture"),
    "sound as picture": (of_url(data_url(wav())), "no picture"),
    "nothing": (of_url("data:image/png;base64,"), "empty"),
    "no base64": (of_url("data:image/png;base64,!!!"), "no base64"),
    "no url": (of_url(""), "begins with"),
    "a number": (of_url(7), "image"),
    "a list": ({"type": "image", "image": ["/etc/passwd"]}, "must be a URL"),
    "a path": ({"type": "image", "image": "/etc/passwd"}, "begins with"),
    "a list of paths": ({"type": "video", "video": ["/etc/passwd", "/etc/passwd"]}, "must be a URL"),
    "a nested list": ({"type": "image_url", "image_url": {"url": [["/etc/passwd"]]}}, "must be a URL"),
    "rows as json": ({"type": "image_embeds", "image_embeds": [[0.5] * 64] * 4}, "must be a URL"),
    "rows as a pickle": ({"type": "image_embeds", "image_embeds": "gASVAAAA"}, "image_embeds"),
    "no source": ({"type": "image_url"}, "nothing in it"),
    "unknown kind": ({"type": "file", "file": {"file_id": "x"}}, "supported"),
    "5 pictures": ([ONE] * 5, "5 image items; limit_mm_per_prompt allows 4"),
    "2 films": ([of_url("http://x/", "video")] * 2, "2 video items"),
    "300 pictures": ([{"type": "image_url", "image_url": {"url": "http://x/"}}] * 300, "300 media"),
    "playlist": (of_url(data_url(PLAYLIST), "video"), "cannot be decoded"),
    "concat": (of_url(data_url(CONCAT), "video"), "cannot be decoded"),
    "cut film": (of_url(data_url(film(20)[:700]), "video"), "video"),
    "sound as film": (of_url(data_url(wav()), "video"), "no pictures"),
    "film as sound": (of_url(data_url(film(3)), "audio"), "no sound"),
    "cut sound": (of_url(data_url(wav()[:30]), "audio"), "audio"),
    "hours of sound": (of_url(data_url(wav(3_000_000, 1000)), "audio"), "seconds long"),
    "rate 0": (of_url(data_url(wav(100, 0)), "audio"), "audio"),
    "NaN samples": (of_url(data_url(float_wav([0.0, float("nan"), 0.5])), "audio"), "not finite"),
    "infinite samples": (of_url(data_url(float_wav([float("inf")] * 90)), "audio"), "not finite"),
    "no domain": (of_url("http://example.org/a.png"), "not allowed"),
    "local host by name": (of_url("http://localhost:{port}/secret"), "not allowed"),
    "the cloud's own": (of_url("http://169.254.169.254/latest/meta-data"), "not allowed"),
    "this machine in IPv6": (of_url("http://[::1]:{port}/secret"), "not allowed"),
    "this machine as a number": (of_url("http://2130706433:{port}/secret"), "not allowed"),
    "redirected to another host": (of_url("http://127.0.0.1:{port}/to/http://localhost:{port}/secret"), "not allowed"),
    "redirected to a file": (of_url("http://127.0.0.1:{port}/to/file:///etc/passwd"), "not allowed"),
    "redirected in circles": (of_url("http://127.0.0.1:{port}/to//to//to//to//to//to//to//to//a"), "redirected"),
    "endless": (of_url("http://127.0.0.1:{port}/endless"), "larger|no picture"),
    "missing": (of_url("http://127.0.0.1:{port}/missing"), "404"),
    "with a password": (of_url("http://a:b@127.0.0.1:{port}/secret"), "user name"),
    "a header in a URL": (of_url("http://127.0.0.1:{port}/a\r\nHost: evil"), "no picture"),
    "ftp": (of_url("ftp://127.0.0.1/secret"), "begins with"),
    "javascript": (of_url("javascript:alert(1)"), "begins with"),
    "a long URL": (of_url("http://127.0.0.1/" + "x" * 9000), "characters"),
    "etc": (of_url("file:///etc/passwd"), "no file in the folder"),
    "..": (of_url("file://{folder}/../secret.png"), "no file in the folder"),
    ".. encoded": (of_url("file://{folder}/%2e%2e/secret.png"), "no file in the folder"),
    "a link out": (of_url("file://{folder}/link.png"), "no file in the folder"),
    "the folder itself": (of_url("file://{folder}"), "no file in the folder"),
    "NUL in a path": (of_url("file://{folder}/a.png%00"), "no file in the folder"),
    "a device": (of_url("file:///dev/zero"), "no file in the folder"),
    "this process": (of_url("file:///proc/self/environ"), "no file in the folder"),
}


def filled(value: Any, **names: Any) -> Any:
    return json.loads(json.dumps(value).replace("{port}", str(names["port"])).replace("{folder}", str(names["folder"])))


def memory(running: Running) -> int:
    """Bytes that the server and its engine hold."""
    process = psutil.Process(running.process.pid)
    return sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))


def test_hostile_media_are_the_requests_own_error(running: Running, folder: Path, port: int) -> None:  # noqa: F811
    Handler.asked.clear()
    _, tokens = answer(chat(running, "What?", of_picture()))
    before, peak, ended = memory(running), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.05):
            peak = max(peak, memory(running))

    watcher = threading.Thread(target=watch)
    watcher.start()

    def send(case: tuple[str, tuple[Any, str]]) -> str | None:
        name, (part, says) = case
        parts = filled(part if isinstance(part, list) else [part], port=port, folder=folder)
        response = chat(running, "What?", *parts)
        if response.status_code != 400:
            return f"{name}: {response.status_code} {response.text[:300]}"
        message = response.json()["error"]["message"]
        said = any(word in message for word in says.split("|"))
        return None if said and len(message) < 600 else f"{name}: {message}"

    with ThreadPoolExecutor(6) as pool:
        failed = [found for found in pool.map(send, HOSTILE.items()) if found is not None]
    ended.set()
    watcher.join()
    assert not failed, "\n".join(failed)
    assert "/secret" not in Handler.asked
    assert peak - before < 1 << 30
    assert answer(chat(running, "What?", of_picture()))[1] == tokens
    assert running.metric("engine_restarts_total") == 0
    assert not any("Traceback" in line for line in running.log), "".join(running.log[-40:])


def test_films_of_ten_thousand_frames(running: Running) -> None:
    """Sampled where the options say how many, refused where they say all."""
    long = of_url(data_url(film(10_000, 16)), "video")
    assert answer(chat(running, "What?", long, media_io_kwargs={"video": {"num_frames": 4}}))[1] > 0
    refused = chat(running, "What?", long, media_io_kwargs={"video": {"num_frames": -1}})
    assert refused.status_code == 400
    assert "10,000 frames" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"mm_processor_kwargs": {"num_crops": 4}}, "no mm_processor_kwargs 'num_crops'"),
        ({"mm_processor_kwargs": [4]}, "mm_processor_kwargs"),
        ({"media_io_kwargs": {"video": 4}}, "media_io_kwargs"),
        ({"media_io_kwargs": {"video": {"frames": 4}}}, "frames"),
        ({"truncate_prompt_tokens": 4}, "cut through"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "must end in text"),
    ],
)
def test_options_that_do_not_fit(running: Running, more: dict[str, Any], says: str) -> None:
    refused = chat(running, "What?", of_picture(), **more)
    assert refused.status_code == 400, refused.text
    assert says in refused.json()["error"]["message"]


def test_nothing_is_fetched_unless_an_option_says_so(closed: Running, folder: Path, port: int) -> None:  # noqa: F811
    Handler.asked.clear()
    for url, says in (
        (f"http://127.0.0.1:{port}/secret", "not allowed"),
        (f"file://{folder}/a.png", "none may be read"),
    ):
        refused = chat(closed, of_url(url))
        assert refused.status_code == 400
        assert says in refused.json()["error"]["message"]
    assert Handler.asked == []
    assert chat(closed, of_url(data_url(bytes(1 << 20)))).status_code == 413


def test_media_that_wait_are_bounded(closed: Running) -> None:
    """A picture has 2,500 bytes here: two are more than this server holds."""
    assert chat(closed, "x", of_picture()).status_code == 200
    refused = chat(closed, "x", of_picture(), of_picture(1))
    assert refused.status_code == 400
    assert "--max-queued-media" in refused.json()["error"]["message"]
    assert chat(closed, "x", of_picture()).status_code == 200


def test_media_are_counted_until_their_request_ends() -> None:
    admission = Admission(ServerOptions(max_queued_media="100B"))
    free, held, finished = list[int](), asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        admission.admit_media(60)
        held.set()
        await finished.wait()

    async def run() -> None:
        first = asyncio.create_task(AdmissionScope(app, admission)({}, None, None))  # type: ignore[arg-type]
        await held.wait()
        with pytest.raises(OverloadedError):
            admission.admit_media(60)
        admission.admit_media(40)  # of no HTTP request, so that it is not counted on
        with pytest.raises(InvalidRequestError, match="--max-queued-media"):
            admission.admit_media(101)
        finished.set()
        await first
        free.append(admission.load.media_bytes)

    asyncio.run(run())
    assert free == [0]


def test_slow_media_hold_nobody_up(running: Running, patient: Running, port: int) -> None:  # noqa: F811
    """Addresses that drip leave the event loop, texts and the engine to others, and are left in the end."""
    Handler.asked.clear()
    with ThreadPoolExecutor(12) as pool:
        dripping = [pool.submit(chat, patient, of_url(f"http://127.0.0.1:{port}/slow")) for _ in range(12)]
        patient.until(lambda: Handler.asked.count("/slow") >= 8, 60)
        assert chat(patient, "What?").status_code == 200
        assert chat(patient, "What?", of_picture()).status_code == 200
        assert not any(future.done() for future in dripping)
        Handler.done.set()
        for future in dripping:
            assert future.result().status_code == 400  # what had come is no picture
    Handler.done.clear()
    refused = chat(running, of_url(f"http://127.0.0.1:{port}/slow"))
    assert refused.status_code == 400
    assert "was not there within" in refused.json()["error"]["message"]


def test_parts_of_any_shape(running: Running) -> None:
    """Whatever stands where a part has its values: an answer, or an error of the client's that says which part."""
    shapes: list[Any] = [
        None,
        True,
        7,
        -1.5,
        "",
        "x",
        [],
        [1],
        {},
        {"url": None},
        {"url": {}},
        {"data": 7},
        {"data": "!"},
    ]
    shapes += [{"data": ""}, {"url": "data:,"}, [["x"]], {"type": "image"}, "\0", "data:" + "x" * 5000, {"url": ["x"]}]
    types = ("image_url", "input_image", "image", "image_pil", "image_embeds", "video_url", "video", "audio_url")
    types += ("input_audio", "audio", "text", "input_text", "file", "refusal")  # type: ignore[assignment]
    parts: list[Any] = [{"type": kind, kind: shape} for kind in types for shape in shapes]
    parts += [{"type": shape} for shape in shapes] + shapes

    def send(part: Any) -> str | None:
        body = {"messages": [{"role": "user", "content": [part]}], **OPTIONS}
        response = running.post("/v1/chat/completions", body)
        fine = response.status_code in (200, 400) and len(response.text) < 2000
        return None if fine else f"{part!r:.200}: {response.status_code} {response.text[:300]}"

    with ThreadPoolExecutor(4) as pool:
        failed = [found for found in pool.map(send, parts) if found is not None]
    assert not failed, "\n".join(failed)
    assert not any("Traceback" in line for line in running.log), "".join(running.log[-40:])
