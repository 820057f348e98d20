"""`octavo transcribe`: texts on standard output or in files, and what is said of what cannot be transcribed."""

import json
from pathlib import Path
from typing import Any

import pytest

import octavo.transcribe
from octavo.cli.main import main
from octavo.cli.transcribe_files import InOrder
from octavo.client.transcribing import Transcriber
from tests.golden import case_named, write_model
from tests.media.test_hostile import film
from tests.server.test_transcriptions import as_wav
from tests.whisper_models import tones, write_whisper

OPTIONS = ("--kv-cache-memory", "32MiB", "--dtype", "float32", "--language", "en")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("transcribe")
    write_whisper(made / "model", seed=1)
    for name, seconds in (("one", 3.2), ("two", 1.0)):
        (made / f"{name}.wav").write_bytes(as_wav(tones(seconds, len(name))))
    (made / "clip.mp4").write_bytes(film(3))
    (made / "notes.wav").write_text("no sound")
    (made / "empty.wav").write_bytes(b"")
    return made


def run(folder: Path, *arguments: str) -> int:
    return main(["transcribe", "--model", str(folder / "model"), *OPTIONS, *arguments])


def test_texts_alone_are_on_standard_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, str(folder / "one.wav"), "--temperature", "0") == 0
    one = capsys.readouterr().out
    assert run(folder, str(folder / "two.wav"), str(folder / "one.wav"), "--temperature", "0") == 0
    both = capsys.readouterr().out
    assert one.strip()
    assert both.endswith(one)
    assert both != one
    assert run(folder, str(folder / "one.wav"), "--format", "srt") == 0
    assert capsys.readouterr().out.startswith("1\n00:00:0")


def test_files_in_every_format(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sounds = [str(folder / "one.wav"), str(folder / "two.wav")]
    assert run(folder, *sounds, "--format", "json", "--output", str(tmp_path / "made")) == 0
    assert capsys.readouterr().out == ""
    told = {path.name: json.loads(path.read_text()) for path in (tmp_path / "made").iterdir()}
    assert told.keys() == {"one.json", "two.json"}
    assert told["one.json"]["duration"] == 3.2
    assert told["one.json"]["segments"]
    assert run(folder, sounds[0], "--format", "vtt", "--output", str(tmp_path / "made")) == 0
    assert (tmp_path / "made" / "one.vtt").read_text().startswith("WEBVTT\n\n00:0")
    assert run(folder, sounds[0], "--output", str(tmp_path / "made"), "--task", "translate", "--temperature", "0") == 0
    assert (tmp_path / "made" / "one.txt").exists()


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [str(folder / name) for name in ("notes.wav", "empty.wav", "clip.mp4")]
    assert run(folder, str(folder / "one.wav"), *wrong) == 1
    told = capsys.readouterr()
    assert told.out.strip()
    assert "notes.wav: the sound cannot be decoded as a sound" in told.err
    assert "empty.wav" in told.err
    assert "is empty" in told.err
    assert "clip.mp4: the sound has no sound in it" in told.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("none.wav",), "none.wav is not there"),
        (("{folder}",), "is no plain file"),
        (("{folder}/one.wav", "--language", "klingon"), "language 'klingon' is not known"),
        (("{folder}/one.wav", "--language", "ja"), "no token for it"),
        (("{folder}/one.wav", "--temperature", "-1"), "temperature=-1"),
        (("{folder}/one.wav", "{folder}/one.wav", "--output", "{folder}/x"), "two files would be written"),
        (("{folder}/one.wav", "--output", "{folder}/none/x"), "cannot be made"),
    ],
)
def test_what_is_refused(
    folder: Path, arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, *(part.format(folder=folder) for part in arguments)) == 1
    assert says in capsys.readouterr().err


def test_models_that_do_not_transcribe(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = str(folder / "one.wav")
    assert main(["transcribe", sound]) == 1
    assert "name a model that transcribes" in capsys.readouterr().err
    write_model(case_named("LlamaForCausalLM--gqa-tied"), tmp_path)
    assert main(["transcribe", sound, "--model", str(tmp_path), "--skip-tokenizer-init"]) == 1
    assert "this model does not transcribe sounds" in capsys.readouterr().err


def test_transcripts_are_written_as_soon_as_they_are_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, seen = Transcriber.begin, list[int]()

    def counted(self: Transcriber, *arguments: Any, **options: Any) -> Any:
        seen.append(len(list(tmp_path.iterdir())))
        return begin(self, *arguments, **options)

    monkeypatch.setattr(Transcriber, "begin", counted)
    monkeypatch.setattr(octavo.transcribe, "AT_ONCE", 1)
    sounds = [str(folder / f"{name}.wav") for name in ("one", "notes", "two")]
    assert run(folder, *sounds, "--output", str(tmp_path), "--temperature", "0") == 1
    assert seen == [0, 1, 1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.txt", "two.txt"]


def test_what_is_done_out_of_order_waits_for_what_is_before_it() -> None:
    done, in_order = list[int](), InOrder()
    for place in (2, 0, 1):
        in_order.add(place, lambda place=place: done.append(place))  # type: ignore[misc]
        assert done == list(range(len(done)))
    assert done == [0, 1, 2]
