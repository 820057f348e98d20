"""Servers for the tests: one of the small real model, one tiny with a tokenizer of its own, one that embeds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.golden import case_named, write_model
from tests.media.toy import install_toy, write_toy
from tests.server.browser import Page, chromium
from tests.server.running import Running, server
from tests.server.scripted_page import Script, scripted_page

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
    "{% endfor %}{% if tools %}<tool_call>{{ tools | length }}{% endif %}<|assistant|>"
)


def write_tiny(folder: Path) -> Path:
    """A two-layer Llama of 320 tokens with a byte-level tokenizer and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    write_model(case_named("LlamaForCausalLM--gqa-tied"), folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["</s>"])
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": CHAT}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048, "eos_token_id": 256}))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="session")
def tiny_server(tiny_model: Path) -> Iterator[Running]:
    with server(str(tiny_model), "--kv-cache-memory", "64MiB", "--served-model-name", "tiny") as running:
        yield running


@pytest.fixture(scope="session")
def toy_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A model that takes pictures, films and sounds, and the environment of a server that knows it."""
    made = tmp_path_factory.mktemp("toy")
    return write_toy(made / "model", tiny_model), install_toy(made / "site")


@pytest.fixture(scope="session")
def smollm_server(smollm_file: Path) -> Iterator[Running]:
    with server(str(smollm_file), "--kv-cache-memory", "512MiB", "--max-model-len", "2048") as running:
        yield running


@pytest.fixture(scope="session")
def embedding_server(tiny_model: Path) -> Iterator[Running]:
    options = ("--kv-cache-memory", "64MiB", "--task", "embedding", "--hf-overrides", '{"is_matryoshka": true}')
    with server(str(tiny_model), *options) as running:
        yield running


@pytest.fixture(scope="session")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for all tests of the pages."""
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(scope="session")
def page_script() -> Iterator[Script]:
    with scripted_page() as script:
        yield script


@pytest.fixture
def script(page_script: Script) -> Script:
    page_script.reset()
    return page_script


@pytest.fixture(params=["screen-light", "phone-dark"])
def page(chrome: Any, script: Script, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The chat page of a scripted server, with nothing kept, on a screen and on a phone."""
    made = Page(chrome, script.url, request.param)
    made.clear()
    yield made.show()
    extra = chrome.window_handles[1:]
    for handle in extra:
        chrome.switch_to.window(handle)
        chrome.close()
    chrome.switch_to.window(chrome.window_handles[0])
