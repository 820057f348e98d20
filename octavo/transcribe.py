"""Transcriptions on top of an engine that is computed here: windows of several sounds side by side."""

import asyncio
import functools
import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from octavo.client.local_client import LocalRequests
from octavo.client.transcribing import Asking, Question, Transcriber, Transcription, proceed
from octavo.engine.messages import Failed
from octavo.errors import InvalidRequestError, RequestFailedError
from octavo.lora import LoRARequest
from octavo.outputs import CompletionOutput, RequestOutput
from octavo.transcripts import Transcript, TranscriptionParams

AT_ONCE = 8
"""Sounds that are in memory at a time."""
_ids = itertools.count()


class _Running:
    """A transcription, and what it waits for."""

    def __init__(self, place: int, transcription: Transcription) -> None:
        self.place, self.transcription = place, transcription
        self.asking: Asking = transcription.run()
        self.answers: dict[str, CompletionOutput | None] = {}
        """By request id; None for those to come."""

    def take(self) -> list[CompletionOutput] | None:
        """The answers, once all are there."""
        answers = [answer for answer in self.answers.values() if answer is not None]
        return answers if len(answers) == len(self.answers) else None


def transcribe_all(
    requests: LocalRequests,
    sounds: Iterable[Callable[[], Transcription | None]],
    on_progress: Callable[[int, Transcription], None] = lambda place, transcription: None,
    on_done: Callable[[int, Transcription], None] = lambda place, transcription: None,
) -> dict[int, Transcription]:
    """Transcribe sounds, a few at a time: by their places, in order.

    Args:
        requests: the engine's.
        sounds: each makes a transcription when its turn comes, since sounds are large; None leaves one out.
        on_progress: called after each window with a sound's place and its transcription.
        on_done: called so once it is complete.

    Raises what goes wrong with any of them; then nothing is left behind in the engine.
    """
    waiting = enumerate(sounds)
    running: list[_Running] = []
    done: dict[int, Transcription] = {}
    try:
        _fill(requests, waiting, running)
        while running:
            outputs = {output.request_id: output for output in requests.step() if _is_final(output)}
            for one in list(running):
                for request_id in one.answers.keys() & outputs.keys():
                    one.answers[request_id] = answer_of(outputs[request_id])
                if (answers := one.take()) is None:
                    continue
                is_done = not _go_on(requests, one, answers)
                on_progress(one.place, one.transcription)
                if is_done:
                    running.remove(one)
                    done[one.place] = one.transcription
                    on_done(one.place, one.transcription)
            _fill(requests, waiting, running)
    except BaseException:
        requests.abort([request_id for one in running for request_id in one.answers])
        raise
    return dict(sorted(done.items()))


def transcribe_sounds(
    requests: LocalRequests,
    transcriber: Transcriber,
    sounds: Sequence[Any],
    params: TranscriptionParams | None = None,
    adapter: LoRARequest | None = None,
    use_tqdm: bool = False,
    on_refused: Callable[[int, InvalidRequestError], None] | None = None,
    on_done: Callable[[int, Transcript], None] = lambda place, transcript: None,
) -> dict[int, Transcript]:
    """Transcripts of sounds by their places, in order.

    Args:
        requests: the engine's.
        transcriber: the model's.
        sounds: see `decode_sound`.
        params, adapter: for all of them.
        use_tqdm: show a bar of the seconds that are done.
        on_refused: called with the place of a sound that cannot be read, which is left out; None to raise the error.
        on_done: called with a sound's place and its transcript as soon as it is there.
    """
    params = params or TranscriptionParams()
    transcriber.check(params)
    bar = tqdm(total=0, desc="Transcribing", disable=not use_tqdm, unit="s", dynamic_ncols=True)
    done = [0.0] * len(sounds)

    def begin(place: int) -> Transcription | None:
        name = f"sound {place + 1} of {len(sounds)}" if len(sounds) > 1 and on_refused is None else "the sound"
        try:
            begun = transcriber.begin(sounds[place], params, adapter, name=name)
        except InvalidRequestError as error:
            if on_refused is None:
                raise
            on_refused(place, error)
            return None
        bar.total = round((bar.total or 0) + begun.sound.duration)
        return begun

    def show(place: int, transcription: Transcription) -> None:
        done[place] = transcription.seconds
        bar.update(round(sum(done)) - bar.n)

    found = dict[int, Transcript]()

    def tell(place: int, transcription: Transcription) -> None:
        found[place] = transcription.transcript()
        on_done(place, found[place])

    with bar:
        made = transcribe_all(requests, [functools.partial(begin, place) for place in range(len(sounds))], show, tell)
    return {place: found[place] for place in made}


def _fill(
    requests: LocalRequests, waiting: Iterator[tuple[int, Callable[[], Transcription | None]]], running: list[_Running]
) -> None:
    while len(running) < AT_ONCE and (following := next(waiting, None)) is not None:
        if (begun := following[1]()) is not None:
            running.append(_Running(following[0], begun))
            _go_on(requests, running[-1], None)


def _go_on(requests: LocalRequests, one: _Running, answers: list[CompletionOutput] | None) -> bool:
    """Ask what a transcription asks next; False if it has ended."""
    one.answers = {}
    if (questions := proceed(one.asking, answers)) is None:
        return False
    for question in questions:
        request_id = f"transcribe-{next(_ids)}"
        requests.add(request_id, question.prompt, question.params)
        one.answers[request_id] = None
    return True


async def transcribe_async(
    transcription: Transcription, ask: Callable[[Question], Awaitable[CompletionOutput]]
) -> Transcript:
    """The transcript, of questions that `ask` puts to an engine. Frames are read beside the event loop."""
    asking = transcription.run()
    questions = await asyncio.to_thread(proceed, asking, None)
    while questions is not None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_asked(ask, question)) for question in questions]
        questions = await asyncio.to_thread(proceed, asking, [task.result() for task in tasks])
    return transcription.transcript()


async def _asked(ask: Callable[[Question], Awaitable[CompletionOutput]], question: Question) -> CompletionOutput:
    return await ask(question)


def _is_final(output: Any) -> bool:
    return isinstance(output, Failed) or output.finished


def answer_of(output: Any) -> CompletionOutput:
    """The one answer of an output. Raises the error that it ended with."""
    if isinstance(output, Failed):
        raise output.exception()
    assert isinstance(output, RequestOutput)
    answer = output.outputs[0]
    if answer.finish_reason in ("error", "abort"):
        raise (InvalidRequestError if answer.is_invalid else RequestFailedError)(str(answer.stop_reason))
    return answer
