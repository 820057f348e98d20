"""Whisper over HTTP: every format, streams, OpenAI's client, and what is refused."""

import io
import json
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from octavo import LLM, TranscriptionParams
from octavo.text.subtitles import as_srt, as_tsv, as_vtt
from octavo.transcripts import Transcript, TranscriptSegment
from tests.media.test_hostile import film
from tests.server.running import Running, server
from tests.whisper_models import RATE, tones, write_whisper

OPTIONS = ("--dtype", "float32", "--kv-cache-memory", "32MiB")


def as_wav(samples: "np.ndarray[Any, Any]") -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


LONG = as_wav(tones(7.3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("whisper"), seed=1)


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Running]:
    with server(str(folder), *OPTIONS, "--served-model-name", "whisper") as made:
        yield made


@pytest.fixture(scope="module")
def want(folder: Path) -> Transcript:
    """What Python says of the same sound."""
    llm = LLM(str(folder), dtype="float32", kv_cache_memory="32MiB")
    return llm.transcribe(LONG, TranscriptionParams(language="en", seed=1), use_tqdm=False)[0]


def ask(running: Running, data: bytes = LONG, task: str = "transcriptions", **fields: Any) -> httpx.Response:
    form = {"model": "whisper", "language": "en", "seed": "1", **fields}
    return httpx.post(f"{running.url}/v1/audio/{task}", data=form, files={"file": ("a.wav", data)}, timeout=120)


def values(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def test_every_format(running: Running, want: Transcript) -> None:
    whole = values(ask(running))
    assert whole == {"text": want.text, "usage": {"type": "duration", "seconds": 8}}
    told = values(ask(running, response_format="verbose_json", **{"timestamp_granularities[]": "segment"}))
    assert (told["task"], told["language"], told["duration"]) == ("transcribe", "english", 7.3)
    assert told["segments"] == [json.loads(json.dumps(vars(segment))) for segment in want.segments]
    assert len(told["segments"]) > 3
    for kind, text in (("text", want.text + "\n"), ("srt", as_srt(want)), ("vtt", as_vtt(want))):
        answer = ask(running, response_format=kind)
        assert answer.headers["content-type"].startswith("text/plain")
        assert answer.text == text


def test_languages_are_found_out_and_translated(running: Running) -> None:
    found = values(ask(running, language="", response_format="verbose_json"))
    assert found["language"] in ("english", "german", "french")
    translated = values(ask(running, task="translations", language="German", response_format="verbose_json"))
    assert (translated["task"], translated["language"]) == ("translate", "german")
    assert values(ask(running, task="translations", to_language="english"))["text"]


def test_streams_as_vllm_and_openai_have_them(running: Running, want: Transcript) -> None:
    text = ask(running, stream="true", stream_include_usage="true").text
    assert text.rstrip().endswith("data: [DONE]")
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    *deltas, done, usage = events
    assert {event["object"] for event in events} == {"transcription.chunk"}
    assert len({event["id"] for event in events}) == 1
    assert "".join(event["choices"][0]["delta"]["content"] for event in deltas).strip() == want.text
    assert [event["delta"] for event in deltas] == [e["choices"][0]["delta"]["content"] for e in deltas]
    assert len(deltas) == len(want.segments)
    assert done["type"] == "transcript.text.done"
    assert done["text"].strip() == want.text
    assert done["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == want.num_generated_tokens
    assert done["usage"]["input_tokens"] == want.num_prompt_tokens


def test_openais_client(running: Running, want: Transcript) -> None:
    import openai

    client = openai.OpenAI(base_url=running.url + "/v1", api_key="none")
    given: dict[str, Any] = {"model": "whisper", "file": ("a.wav", LONG), "extra_body": {"seed": 1}}
    create = client.audio.transcriptions.create
    assert create(**given, language="en").text == want.text
    verbose = create(**given, language="en", response_format="verbose_json", timestamp_granularities=["segment"])
    assert [segment.tokens for segment in verbose.segments] == [segment.tokens for segment in want.segments]
    assert create(**given, language="en", response_format="srt") == as_srt(want)
    events = list(create(**given, language="en", stream=True))
    assert "".join(event.delta for event in events[:-1]).strip() == events[-1].text.strip() == want.text
    assert client.audio.translations.create(model="whisper", file=("a.wav", LONG), response_format="json").text
    with pytest.raises(openai.BadRequestError, match="word is not supported"):
        create(**given, response_format="verbose_json", timestamp_granularities=["segment", "word"])


def test_many_at_a_time_are_as_alone(running: Running, want: Transcript) -> None:
    others = [as_wav(tones(seconds, seed)) for seed, seconds in enumerate((0.5, 3.0, 4.4))]
    alone = [values(ask(running, sound)) for sound in others]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda sound: values(ask(running, sound)), [LONG, *others] * 2))
    assert [answer["text"] for answer in answers] == [want.text, *(one["text"] for one in alone)] * 2


def test_a_client_that_goes_ends_its_windows(running: Running) -> None:
    form = {"model": "whisper", "language": "en", "stream": "true"}
    files = {"file": ("a.wav", as_wav(tones(120.0)))}
    url = f"{running.url}/v1/audio/transcriptions"
    with httpx.stream("POST", url, data=form, files=files, timeout=60) as response:
        assert next(response.iter_lines()).startswith("data: {")
    running.until(lambda: running.metric("num_requests_running") == 0)
    assert values(ask(running))["text"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"response_format": "docx"}, "response_format"),
        ({"response_format": "srt", "stream": "true"}, "stream=true is for"),
        ({"timestamp_granularities[]": "word"}, "times are told of segments"),
        ({"timestamp_granularities[]": "letter"}, "letter"),
        ({"language": "klingon"}, "language 'klingon' is not known"),
        ({"language": "ja"}, "no token for it"),
        ({"to_language": "de"}, "into English"),
        ({"temperature": "3"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"max_completion_tokens": "0"}, "max_completion_tokens"),
        ({"top_p": "7"}, "top_p"),
        ({"seed": str(1 << 70)}, "seed"),
        ({"data": b""}, "file"),
        ({"data": b"no sound"}, "cannot be decoded"),
        ({"data": film(3)}, "no sound in it"),
        ({"data": LONG[:30]}, "the file"),
    ],
)
def test_what_is_refused(running: Running, fields: dict[str, Any], says: str) -> None:
    refused = ask(running, **fields)
    assert refused.status_code == 400, refused.text
    assert says in refused.json()["error"]["message"]


def test_an_unknown_model(running: Running) -> None:
    assert ask(running, model="other").status_code == 404


def test_sampling_values_reach_the_model(running: Running, want: Transcript) -> None:
    short = values(ask(running, max_completion_tokens="3", response_format="verbose_json"))
    assert all(len(segment["tokens"]) <= 3 for segment in short["segments"])
    hot = values(ask(running, temperature="0.9", response_format="verbose_json"))
    assert {segment["temperature"] for segment in hot["segments"]} == {0.9}
    assert hot == values(ask(running, temperature="0.9", response_format="verbose_json"))
    assert values(ask(running, temperature="0.9", top_k="1"))["text"] != hot["text"]
    assert values(ask(running, prompt="Names: Ada, Bob."))["text"] != want.text


def test_subtitles() -> None:
    def segment(start: float, end: float, text: str) -> TranscriptSegment:
        return TranscriptSegment(0, 0, start, end, text, [], 0.0, 0.0, 1.0, 0.0)

    made = Transcript(
        "", "en", "transcribe", 9.0, [segment(0.0, 1.5, " One\n two"), segment(3661.25, 3662.0, "a --> b")]
    )
    assert as_srt(made) == ("1\n00:00:00,000 --> 00:00:01,500\nOne two\n\n2\n01:01:01,250 --> 01:01:02,000\na -> b\n\n")
    assert as_vtt(made) == ("WEBVTT\n\n00:00.000 --> 00:01.500\nOne two\n\n01:01:01.250 --> 01:01:02.000\na -> b\n\n")
    assert as_tsv(made).splitlines()[2] == "3661250\t3662000\ta --> b"
