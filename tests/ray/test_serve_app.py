"""The app for Ray Serve: two replicas answer as `octavo serve` does, and each prompt goes where it was read before."""

import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

pytest.importorskip("ray")

import ray
from openai import APIError, OpenAI
from ray import serve

from octavo.ray_serve import build_app
from octavo.ray_serve.door import LOST
from tests.server.conftest import write_tiny

pytestmark = pytest.mark.alone

OPTIONS = {
    "num_replicas": "2",
    "kv_cache_memory": "32MiB",
    "served_model_name": "tiny",
    "max_body_size": "64KiB",
    "pieces_per_request": "0.1",  # of what a replica has to do Serve may know what was so seconds ago
}


@pytest.fixture(scope="module")
def url(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = write_tiny(tmp_path_factory.mktemp("rayed") / "tiny")
    ray.init(address=cluster.address, configure_logging=False, log_to_driver=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_app({"model": str(model), **OPTIONS}), name="octavo")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def numbers(url: str, name: str) -> list[float]:
    """One of Octavo's numbers, of each replica."""
    text = httpx.get(f"{url}/metrics", timeout=60).text
    return [float(value) for value in re.findall(rf"^octavo:{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE)]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def ask(client: OpenAI, text: str, **options: Any) -> Any:
    message, options = {"role": "user", "content": text}, {"temperature": 0, **options}
    return client.chat.completions.create(model="tiny", messages=[message], extra_body={"ignore_eos": True}, **options)


def test_answers_as_one_server_does(url: str, client: OpenAI) -> None:
    whole = ask(client, "Hello", max_tokens=12)
    assert whole.usage.completion_tokens == 12
    parts = ask(client, "Hello", max_tokens=12, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert next(model.id for model in client.models.list()) == "tiny"
    assert httpx.get(f"{url}/health").status_code == 200
    assert httpx.get(f"{url}/nothing").status_code == 404
    assert httpx.post(f"{url}/v1/completions", content=b"{").json()["error"]["code"] == 400
    assert httpx.post(f"{url}/v1/completions", content=b" " * (70 << 10)).status_code == 413
    assert numbers(url, "engine_up") == [1, 1]


def test_a_prompt_goes_where_it_was_read(url: str, client: OpenAI) -> None:
    conversations = [f"conversation {i} " + "once upon a time " * 40 for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda text: ask(client, text, max_tokens=4), conversations))
    read = numbers(url, "prompt_tokens_total")
    assert min(read) > 0, "they all went to one replica"
    for text in conversations:
        answer = ask(client, text + " and then", max_tokens=4)
        assert answer.usage.prompt_tokens_details.cached_tokens > 600
    assert numbers(url, "prompt_tokens_total") != read


def test_who_closes_a_stream_ends_the_request(url: str, client: OpenAI) -> None:
    stream = ask(client, "Hello", max_tokens=1900, n=16, temperature=1, stream=True)  # it runs on while that is asked
    next(iter(stream))
    assert sum(numbers(url, "num_requests_running")) > 0
    stream.close()
    wait_for(lambda: sum(numbers(url, "num_requests_running")) == 0)
    ended = re.compile(r'octavo:request_success_total{finished_reason="abort".*} 1.0')
    wait_for(lambda: ended.search(httpx.get(f"{url}/metrics", timeout=60).text) is not None)


@pytest.mark.slow
def test_a_replica_that_dies_is_replaced(url: str, client: OpenAI) -> None:
    def names() -> list[str]:
        status = serve.status().applications["octavo"].deployments["Octavo"]
        actors = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        running = [name for name in actors if "#Octavo#" in name]
        return running if status.replica_states.get("RUNNING", 0) == len(running) == 2 else []

    before = names()
    streams = [ask(client, text, max_tokens=1900, n=16, temperature=1, stream=True) for text in ("Hello", "Good night")]
    for stream in streams:
        next(iter(stream))
    ray.kill(ray.get_actor(before[0], namespace="serve"), no_restart=True)
    ends = Counter(how_it_ends(stream) for stream in streams)
    assert ends == {LOST: 1, "goes on": 1}
    for _ in range(4):
        assert ask(client, "Hello", max_tokens=4).usage.completion_tokens == 4
    wait_for(lambda: bool(names()) and names() != before)
    assert ask(client, "Hello", max_tokens=4).usage.completion_tokens == 4


def how_it_ends(stream: Any) -> str:
    """What a stream of 16 answers comes to in its next 5,000 pieces."""
    try:
        for _ in range(5000):
            next(stream)
    except APIError as error:
        return error.message
    stream.close()
    return "goes on"
