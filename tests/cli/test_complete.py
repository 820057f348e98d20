"""`octavo complete`, of a server that answers as the test says."""

import io
from typing import Any

import pytest

from octavo.cli.main import main
from tests.cli.test_bench import answering as answering


def test_texts(answering: tuple[str, list[Any]], capsys: pytest.CaptureFixture[str]) -> None:
    url, seen = answering
    for given in (["Once", "--stats", "--max-tokens", "7", "--temperature", "0.5"], ["-q", "Once"]):
        assert main(["complete", *given, "--url", url]) == 0
    said = capsys.readouterr()
    assert said.out == "aaa\naaa\n"
    assert "tokens/s (3 in " in said.err
    path, _, body = seen[0]
    assert (path, body["model"], body["prompt"]) == ("/v1/completions", "m", "Once")
    assert (body["max_tokens"], body["temperature"], body["stream"]) == (7, 0.5, True)
    assert "temperature" not in seen[1][2], "the server's own"


def test_lines(
    answering: tuple[str, list[Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, seen = answering
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    assert main(["complete", "--url", url + "/v1", "--model-name", "m", "--api-key", "k"]) == 0
    assert capsys.readouterr().out == "aaa\naaa\n"
    assert [body["prompt"] for _, _, body in seen] == ["one", "two"]
    assert seen[0][1]["Authorization"] == "Bearer k"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x", "--url", "http://127.0.0.1:9"], "no server answers"),
        (["x", "-q", "y"], "once"),
        (["x", "--temperature", "-1"], "temperature"),
        (["x", "--model-name", "other"], "has no model 'other'"),
    ],
)
def test_what_cannot_be(
    answering: tuple[str, list[Any]], arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments if "--url" in arguments else [*arguments, "--url", answering[0]]
    assert main(["complete", *given]) == 1
    assert said in capsys.readouterr().err
