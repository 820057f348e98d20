"""/v1/files and /v1/batches as OpenAI's client uses them, over the whole application and a folder."""

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from octavo.errors import ConfigError
from octavo.server.app import create_app, inner_app
from octavo.server.batch_lines import run_file
from octavo.server.batches import answered
from octavo.server.file_store import FileStore
from tests.server.scripted import ScriptedClient, byte_tokenizer, service

CHAT: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}


def line(custom_id: Any = "a", body: Any = CHAT, url: Any = "/v1/chat/completions", **more: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **more}


def as_file(*lines: Any) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


@asynccontextmanager
async def served(
    folder: Path, text: str = "Hello", **options: Any
) -> AsyncIterator[tuple[openai.AsyncOpenAI, ScriptedClient, Any]]:
    """OpenAI's client of a server with this folder, whose model says `text`."""
    tokenizer = byte_tokenizer("</s>")
    scripted = ScriptedClient([[*tokenizer.encode(text), 0]], "stop", ())
    made = service(tokenizer, scripted, files_folder=str(folder), served_model_name="scripted", **options)
    app = create_app(made)
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://octavo") as http,
        openai.AsyncOpenAI(api_key="x", base_url="http://octavo/v1", http_client=http, max_retries=0) as client,
    ):
        yield client, scripted, made


async def batch_of(client: openai.AsyncOpenAI, data: bytes, endpoint: Any = "/v1/chat/completions") -> Any:
    made = await client.files.create(file=("in.jsonl", data), purpose="batch")
    return await client.batches.create(input_file_id=made.id, endpoint=endpoint, completion_window="24h")


async def until(client: openai.AsyncOpenAI, id: str, *statuses: str) -> Any:
    for _ in range(2000):
        if (batch := await client.batches.retrieve(id)).status in statuses:
            return batch
        await asyncio.sleep(0.005)
    raise AssertionError(f"the batch is {batch.status}")


async def lines_of(client: openai.AsyncOpenAI, id: str) -> list[Any]:
    content = await client.files.content(id)
    return [json.loads(text) for text in content.content.splitlines()]


def test_a_batch(tmp_path: Path) -> None:
    async def run() -> None:
        async with served(tmp_path / "files") as (client, _, _):
            lines = [line(f"request {i}") for i in range(100)]
            lines[7] = line("bad", {**CHAT, "temperature": -1})
            batch = await batch_of(client, as_file(*lines))
            assert batch.status in ("validating", "in_progress")
            batch = await until(client, batch.id, "completed", "failed")
            assert batch.status == "completed"
            assert (batch.request_counts.total, batch.request_counts.completed) == (100, 99)
            assert batch.request_counts.failed == 1
            answers = await lines_of(client, batch.output_file_id)
            assert [answer["custom_id"] for answer in answers] == [f"request {i}" for i in range(100) if i != 7]
            for answer in answers:
                assert answer["error"] is None
                assert answer["response"]["status_code"] == 200
                assert answer["response"]["body"]["choices"][0]["message"]["content"] == "Hello"
            (failed,) = await lines_of(client, batch.error_file_id)
            assert failed["custom_id"] == "bad"
            assert failed["response"]["status_code"] == 400
            assert "temperature" in failed["response"]["body"]["error"]["message"]
            assert (await client.files.retrieve(batch.output_file_id)).purpose == "batch_output"
            assert [one.id for one in (await client.batches.list()).data] == [batch.id]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/responses", {"input": "Hi"}),
        ("/v1/messages", {"messages": CHAT["messages"], "max_tokens": 20}),
    ],
)
def test_other_endpoints(tmp_path: Path, endpoint: str, body: Any) -> None:
    async def run() -> None:
        async with served(tmp_path) as (client, _, _):
            batch = await batch_of(client, as_file(line(body=body, url=endpoint)), endpoint)
            batch = await until(client, batch.id, "completed", "failed")
            (answer,) = await lines_of(client, batch.output_file_id)
            assert answer["response"]["status_code"] == 200

    asyncio.run(run())


BROKEN: list[tuple[bytes, str]] = [
    (b"", "no requests"),
    (b"{\n", "line"),
    (b"\xff\xfe\n", "UTF-8"),
    (b"[" * 1000 + b"\n", "deeper|not JSON"),
    (as_file([]), "object"),
    (as_file(line(5)), "custom_id"),
    (as_file(line("")), "custom_id"),
    (as_file(line("a"), line("a")), "twice"),
    (as_file(line(method="GET")), "method"),
    (as_file(line(url="/v1/files")), "url"),
    (as_file(line(url="/v1/completions")), "url"),
    (as_file(line(body=[])), "body"),
    (as_file(line(body={**CHAT, "stream": True})), "stream"),
    (as_file(line(body={**CHAT, "user": "x" * 5_000_000})), "longer"),
]


@pytest.mark.parametrize(("data", "said"), BROKEN)
def test_files_that_are_no_batch(tmp_path: Path, data: bytes, said: str) -> None:
    async def run() -> None:
        async with served(tmp_path) as (client, _, _):
            batch = await until(client, (await batch_of(client, data)).id, "completed", "failed")
            assert batch.status == "failed"
            assert re.search(said, batch.errors.data[0].message)
            assert batch.errors.data[0].code in ("invalid_line", "empty_file")

    asyncio.run(run())


def test_cancelled_and_gone_on_with(tmp_path: Path) -> None:
    async def run() -> None:
        lines = as_file(*(line(str(i)) for i in range(1000)))
        async with served(tmp_path) as (client, scripted, made):
            say, count = scripted.add, 0

            def add(*args: Any, **options: Any) -> None:
                nonlocal count
                count += 1
                say(*args, **options)

            scripted.add = add  # type: ignore[method-assign]
            first = await batch_of(client, lines)
            second = await batch_of(client, lines)
            while count < 100:
                await asyncio.sleep(0)
            await client.batches.cancel(first.id)
            batch = await until(client, first.id, "cancelled")
            done = await lines_of(client, batch.output_file_id)
            assert 0 < len(done) == batch.request_counts.completed < 1000
            with pytest.raises(openai.BadRequestError, match="cancelled"):
                await client.batches.cancel(first.id)
            count = 0
            while count < 100:
                await asyncio.sleep(0)
            with pytest.raises(openai.BadRequestError, match="needs this file"):
                await client.files.delete(second.input_file_id)
            with pytest.raises(ConfigError, match="another server"):
                FileStore(tmp_path, 10_000)
            made.accepting = False  # the server ends
            while made.admission.load.requests:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
        partial = tmp_path / f"{second.id}.output"
        with open(partial, "ab") as file:
            file.write(b'{"custom_id": "cut sh')
        made.files.close()  # as the end of its process does
        async with served(tmp_path) as (client, scripted, _):
            say, again = scripted.add, 0

            def add_again(*args: Any, **options: Any) -> None:
                nonlocal again
                again += 1
                say(*args, **options)

            scripted.add = add_again  # type: ignore[method-assign]
            assert (await client.batches.retrieve(first.id)).status == "cancelled"
            batch = await until(client, second.id, "completed")
            assert [one["custom_id"] for one in await lines_of(client, batch.output_file_id)] == [
                str(i) for i in range(1000)
            ]
            assert 0 < again < 1000

    asyncio.run(run())


def test_files(tmp_path: Path) -> None:
    async def run() -> None:
        async with served(tmp_path / "a" / "files", max_file_size="1000B", files_size="26000B") as (client, _, made):
            names = ["../../etc/passwd", "a\\b\\c.jsonl", "é" * 100]
            kept = [await client.files.create(file=(name, b"data"), purpose="batch") for name in names]
            assert [one.filename for one in kept][:2] == ["passwd", "c.jsonl"]
            assert (await client.files.content(kept[0].id)).content == b"data"
            assert (await client.files.retrieve(kept[0].id)).bytes == 4
            assert {path.parent for path in tmp_path.rglob("*") if path.is_file()} == {tmp_path / "a" / "files"}
            for name in ("%2e%2e", "..%2fx", "file-x", "file-" + "0" * 32, "file-" + "0" * 31 + "%0a", ".lock"):
                for path in (f"/v1/files/{name}", f"/v1/files/{name}/content", f"/v1/batches/{name}"):
                    assert (await client._client.get("http://octavo" + path)).status_code == 404
            with pytest.raises(openai.APIStatusError, match="larger"):
                await client.files.create(file=("x", b"x" * 100_000), purpose="batch")
            with pytest.raises(openai.BadRequestError, match="purpose"):
                await client.files.create(file=("x", b"x"), purpose="vision")
            more = [await client.files.create(file=("x", b"x"), purpose="batch") for _ in range(3)]
            with pytest.raises(openai.BadRequestError, match="room"):
                await client.files.create(file=("x", b"x" * 900), purpose="batch")
            listed = await client.files.list(order="asc", limit=2)
            assert len(listed.data) == 2
            assert listed.has_more
            assert (await client.files.delete(more[0].id)).deleted
            with pytest.raises(openai.NotFoundError):
                await client.files.retrieve(more[0].id)
            made.files.close()  # as the end of its process does
        async with served(tmp_path / "a" / "files") as (client, _, _):
            assert {one.id for one in (await client.files.list()).data} == {one.id for one in (*kept, *more[1:])}
            with pytest.raises(openai.NotFoundError):
                await client.batches.create(
                    input_file_id="file-x", endpoint="/v1/chat/completions", completion_window="24h"
                )
            with pytest.raises(openai.BadRequestError, match="endpoint"):
                await client.batches.create(
                    input_file_id=kept[0].id, endpoint="/v1/moderations", completion_window="24h"
                )

    asyncio.run(run())


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be used"):
        FileStore(tmp_path / "file", 10_000)


def test_strange_things_in_the_folder(tmp_path: Path) -> None:
    id = "file-" + "0" * 32
    (tmp_path / f"{id}.json").write_text("{")
    (tmp_path / f"{id}.data").write_text("left over")
    (tmp_path / "file-x.json").write_text("{}")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / f"file-{'1' * 32}.json").symlink_to(tmp_path / "secret")
    store = FileStore(tmp_path, 10_000)
    assert store.all() == []
    assert not (tmp_path / f"{id}.data").exists()
    assert (tmp_path / "secret").read_text() == "secret"
    store.close()


def test_an_output_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "output"
    assert answered(path) == set()
    path.write_bytes(b'{"custom_id": "a"}\n{"custom_id": "b"}\n{"cust')
    assert answered(path) == {"a", "b"}
    assert path.read_bytes() == b'{"custom_id": "a"}\n{"custom_id": "b"}\n'


def test_a_file_for_a_command() -> None:
    async def run() -> list[Any]:
        tokenizer = byte_tokenizer("</s>")
        made = service(
            tokenizer,
            ScriptedClient([[*tokenizer.encode("Hello"), 0]], "stop", ()),
            api_key=["secret"],
            served_model_name="scripted",
        )
        source = io.BytesIO(as_file(line("a"), line("b", url="/v1/completions", body={"prompt": "x"})) + b"\n{\n")
        target = io.BytesIO()
        assert await run_file(inner_app(made), source, target, 10_000) == 3
        return [json.loads(text) for text in target.getvalue().splitlines()]

    first, second, third = asyncio.run(run())
    assert first["response"]["body"]["choices"][0]["message"]["content"] == "Hello"
    assert second["response"]["body"]["choices"][0]["text"] == "Hello"
    assert third["response"] is None
    assert "line 4" in third["error"]["message"]
