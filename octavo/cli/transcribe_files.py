"""`octavo transcribe`: sounds and films in, what is said in them out."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from octavo.cli.flags import adapters_of, engine_args_of
from octavo.cli.load_spinner import loading
from octavo.cli.model_argument import after_model
from octavo.client.transcribing import Transcriber
from octavo.errors import InvalidRequestError, shorten
from octavo.llm import LLM
from octavo.text.languages import language_code
from octavo.text.subtitles import as_srt, as_text, as_tsv, as_verbose, as_vtt
from octavo.transcribe import transcribe_sounds
from octavo.transcripts import TEMPERATURES, Transcript, TranscriptionParams


def as_json(transcript: Transcript) -> str:
    return json.dumps(as_verbose(transcript), ensure_ascii=False) + "\n"


FORMATS: dict[str, tuple[str, Callable[[Transcript], str]]] = {
    "text": ("txt", as_text),
    "srt": ("srt", as_srt),
    "vtt": ("vtt", as_vtt),
    "tsv": ("tsv", as_tsv),
    "json": ("json", as_json),
}
"""Endings of files, and what writes them."""


class InOrder:
    """Does what belongs to each file in the order of the files, as soon as those before it are done."""

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, Callable[[], None]] = {}

    def add(self, place: int, act: Callable[[], None]) -> None:
        """What is to be done for the file at this place."""
        self._waiting[place] = act
        while (first := self._waiting.pop(self._next, None)) is not None:
            self._next += 1
            first()


def run(namespace: argparse.Namespace) -> int:
    files = [Path(name).expanduser() for name in after_model(namespace, namespace.files)]
    if not files:
        raise InvalidRequestError(f"name a sound or a film behind the model {shorten(namespace.model)}.")
    if not hasattr(namespace, "model"):
        raise InvalidRequestError("name a model that transcribes, such as --model openai/whisper-small.")
    places = output_places(files, namespace.output, FORMATS[namespace.format][0])
    check_files(files)
    params = params_of(namespace)
    args = engine_args_of(namespace)
    with loading(args.model):
        llm = LLM.from_args(args)
    adapter = next(iter(adapters_of(namespace)), None)
    transcriber = Transcriber(llm.engine.info, llm.engine.checker)
    refused: list[int] = []

    def refuse(place: int, error: InvalidRequestError) -> None:
        refused.append(place)
        print(f"octavo: {files[place]}: {error}", file=sys.stderr)

    def write(place: int, transcript: Transcript) -> None:
        text = FORMATS[namespace.format][1](transcript)
        with tqdm.external_write_mode(sys.stdout):  # a bar may be on the same terminal
            if places is None:
                sys.stdout.write(text)
                sys.stdout.flush()
            else:
                places[place].write_text(text, encoding="utf-8")
                print(f"octavo: {places[place]}", file=sys.stderr)

    in_order = InOrder()

    def leave_out(place: int, error: InvalidRequestError) -> None:
        refuse(place, error)
        in_order.add(place, lambda: None)

    def take(place: int, transcript: Transcript) -> None:
        in_order.add(place, lambda: write(place, transcript))

    transcribe_sounds(llm.requests, transcriber, files, params, adapter, sys.stderr.isatty(), leave_out, take)
    return 1 if refused else 0


def params_of(namespace: argparse.Namespace) -> TranscriptionParams:
    """How sounds are transcribed by the flags. Raises InvalidRequestError for a wrong one."""
    if namespace.language is not None:
        language_code(namespace.language)  # before the model is loaded
    return TranscriptionParams(
        language=namespace.language,
        task=namespace.speech_task,
        prompt=namespace.prompt,
        temperature=TEMPERATURES if namespace.temperature is None else namespace.temperature,
        condition_on_previous_text=namespace.condition_on_previous_text,
    )


def check_files(files: list[Path]) -> None:
    """Raises InvalidRequestError for one that is not there, before the model is loaded."""
    for file in files:
        if not file.is_file():
            what = "is no plain file" if file.exists() else "is not there"
            raise InvalidRequestError(f"{file} {what}. Give the path of a sound or a film.")


def output_places(files: list[Path], folder: str | None, ending: str) -> list[Path] | None:
    """Where each file's transcript goes; None for standard output. The folder is made.

    Raises InvalidRequestError where it cannot be, and where two files would be one.
    """
    if folder is None:
        return None
    places = [Path(folder, f"{file.stem}.{ending}") for file in files]
    if twice := next((place for i, place in enumerate(places) if place in places[:i]), None):
        raise InvalidRequestError(f"--output: two files would be written as {twice}. Rename one.")
    try:
        Path(folder).mkdir(exist_ok=True)
    except OSError as error:
        raise InvalidRequestError(f"--output {folder} cannot be made: {error.strerror}.") from error
    return places
