"""Servers for the programs of others: a tiny model that writes, and one that embeds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compat.clients.hub import write_kind
from tests.compat.clients.run import traces
from tests.server.running import server


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where both are: `chat` and `embed`, which are also the models' names."""
    made: Path = tmp_path_factory.mktemp("clients")
    (made / "files").mkdir()
    text, embed = (str(write_kind(kind, made / kind)) for kind in ("text", "embed"))
    flags = ("--kv-cache-memory", "64MiB", "--served-model-name")
    with (
        server(text, "--max-model-len", "2048", "--files-folder", str(made / "files"), *flags, "chat") as chats,
        server(embed, "--runner", "pooling", *flags, "embed") as embeddings,
    ):
        yield {"chat": chats.url, "embed": embeddings.url}
        assert not traces(chats, embeddings)
