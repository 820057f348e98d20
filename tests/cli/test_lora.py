"""Adapters on the command line: --lora, and /lora in a conversation."""

import json
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, LoRARequest, SamplingParams
from octavo.cli.chat.local_chat import LocalChat
from octavo.cli.main import main
from octavo.config import EngineArgs
from tests.adapter_folders import write_adapter
from tests.cli.talking import Talk
from tests.server.conftest import write_tiny

FLAGS = ("--kv-cache-memory", "8MiB", "--max-tokens", "8", "--temperature", "0")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("cli-lora") / "tiny")


@pytest.fixture(scope="module")
def adapters(model: Path) -> list[Path]:
    """Of which one has a rank above what vLLM's default allows."""
    return [write_adapter(model.parent / name, model, i, rank=8 * (4 * i + 1)) for i, name in enumerate("ab")]


@pytest.fixture(scope="module")
def texts(model: Path, adapters: list[Path]) -> list[str]:
    """What the model continues "Hi" with, by itself and with each adapter."""
    llm = LLM(str(model), enable_lora=True, max_lora_rank=64, kv_cache_memory="8MiB")
    refs = [None, *(LoRARequest(p.name, i + 1, str(p)) for i, p in enumerate(adapters))]
    params = SamplingParams(max_tokens=8, temperature=0)
    outputs = llm.generate(["Hi"] * 3, params, lora_request=refs, use_tqdm=False)
    found = [o.outputs[0].text for o in outputs]
    assert len({*found}) == 3
    return found


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    said = capsys.readouterr()
    return status, said.out, said.err


def test_generate(model: Path, adapters: list[Path], texts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for lora, text in ((None, texts[0]), (str(adapters[0]), texts[1]), (f"name={adapters[1]}", texts[2])):
        flags = ("--lora", lora) if lora else ()
        status, out, _ = run(capsys, "generate", "Hi", "--raw", "--json", "--model", str(model), *FLAGS, *flags)
        assert status == 0
        assert json.loads(out)["outputs"][0]["text"] == text


@pytest.mark.parametrize(
    ("lora", "words"), [("/nowhere", "there is no /nowhere"), ("x=y=z", "there is no y=z"), ("=", "lora_name")]
)
def test_what_is_not_there_is_said_first(lora: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "generate", "Hi", "--model", "/no/model", "--lora", lora)
    assert status == 1
    assert words in err
    assert err.count("\n") == 1


def test_an_adapter_that_does_not_fit(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = write_adapter(tmp_path / "bad", model, peft_type="LOHA")
    status, out, err = run(capsys, "generate", "Hi", "--raw", "--model", str(model), *FLAGS, "--lora", str(bad))
    assert (status, out.strip()) == (1, "")
    assert "LOHA" in err.splitlines()[-1]


def test_embed_and_bench(model: Path, adapters: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for flags in ((), ("--lora", str(adapters[0]))):
        status, out, _ = run(capsys, "embed", "Hi", "--model", str(model), "--kv-cache-memory", "8MiB", *flags)
        assert status == 0
        found.append(json.loads(out)["embedding"])
    assert found[0] != found[1]
    sizes = ("--runs", "1", "--input-len", "4", "--output-len", "2", "--num-prompts", "2", "--json")
    for kind in ("latency", "throughput"):
        flags = ("--model", str(model), "--kv-cache-memory", "8MiB", "--lora", str(adapters[1]))
        assert run(capsys, "bench", kind, *sizes, *flags)[0] == 0


def conversation(model: Path, adapters: list[LoRARequest]) -> Talk:
    options: dict[str, Any] = {"enable_lora": True, "max_lora_rank": 64, "kv_cache_memory": "8MiB"}
    local = LocalChat(EngineArgs(str(model), **options), adapters)
    return Talk(local, values={"max_tokens": 6, "temperature": 0.0, "ignore_eos": True})


def test_chat(model: Path, adapters: list[Path]) -> None:
    talk = conversation(model, [LoRARequest(p.name, i + 1, str(p)) for i, p in enumerate(adapters)])
    said = {}
    for command in ("/lora a", "/lora b", "/lora off"):
        talk.type(f"{command}\n/reset\nHello\n")
        said[command] = talk.conversation.messages[-1]["content"]
    assert len({*said.values()}) == 3
    talk.type("/lora a\n/retry\n")
    assert talk.conversation.messages[-1]["content"] == said["/lora a"]
    assert talk.type("/lora\n")[0] == f"* a: {adapters[0]}\n  b: {adapters[1]}\n"
    assert "Did you mean a" in talk.type("/lora aa\n")[1]
    none = conversation(model, [])
    assert "--lora PATH" in none.type("/lora\n")[0]
    assert "--lora NAME=PATH" in none.type("/lora somebody\n")[1]


def test_names_that_two_have(adapters: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "chat", "--lora", str(adapters[0]), "--lora", f"a={adapters[1]}")
    assert status == 1
    assert "two adapters are called 'a'" in err
