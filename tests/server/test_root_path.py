"""Behind a proxy with a prefix, which it takes away or not: the same paths answer, and the same need no key."""

from pathlib import Path

import pytest

from tests.server.running import server

OPEN = ("/health", "/ping", "/version", "/metrics", "/", "/stats", "/openapi.json")


@pytest.mark.parametrize("prefix", ["/llm/one", "v1/"])
def test_with_and_without_the_prefix(tiny_model: Path, prefix: str) -> None:
    with server(str(tiny_model), "--kv-cache-memory", "64MiB", "--root-path", prefix, "--api-key", "K") as running:
        root = "/" + prefix.strip("/")
        headers = {"Authorization": "Bearer K"}
        for path in OPEN:
            assert running.get(path).status_code == 200
            assert running.get(root + path).status_code == 200
        for path in ("/v1/models", root + "/v1/models"):
            assert running.get(path).status_code == 401
            assert running.get(path, headers=headers).status_code == 200
        body = {"prompt": "x", "max_tokens": 1}
        for path in ("/v1/completions", root + "/v1/completions"):
            assert running.post(path, body).status_code == 401
            assert running.post(path, body, headers=headers).status_code == 200
        for path in ("/other", root + "/other", root + "x/health", root + root + "/health"):
            assert running.get(path, headers=headers).status_code == 404
