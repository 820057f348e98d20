"""Requests for transcripts: by a model that transcribes, window by window, or by a chat with one that hears."""

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any, Protocol

from octavo.client.transcribing import Question, Transcriber, Transcription, proceed
from octavo.errors import InvalidRequestError
from octavo.media.windows import LONG_SOUNDS
from octavo.outputs import CompletionOutput
from octavo.server.chat_completions import prompt_of
from octavo.server.protocol import ChatRequest
from octavo.server.served_models import ServedModel
from octavo.server.server_options import BODY_WITH_MEDIA
from octavo.server.service import RequestTimeoutError, Run, Service
from octavo.server.transcription_form import STREAMED
from octavo.server.transcription_form import Transcription as Fields
from octavo.transcripts import Transcript, TranscriptionParams

INSTRUCTIONS = {
    "transcribe": "Transcribe this audio{language}. Write only what is said.",
    "translate": "Translate what is said in this audio{language} into English. Write only the translation.",
}
LIMITS = replace(LONG_SOUNDS, max_bytes=BODY_WITH_MEDIA, max_seconds=2 * 3600.0)
"""Of a sound that is sent."""


class Work(Protocol):
    """A request on its way. `prepare` first: it raises InvalidRequestError for what cannot be."""

    id: str

    async def prepare(self) -> None: ...

    def pieces(self) -> AsyncGenerator[str, None]:
        """The text as it comes."""
        ...

    def transcript(self) -> Transcript:
        """All of it, once there are no more pieces."""
        ...


class Windows:
    """By a model that transcribes."""

    def __init__(self, service: Service, fields: Fields, sound: bytes, model: ServedModel, task: str) -> None:
        self.service, self.fields, self.sound, self.model = service, fields, sound, model
        self.params = TranscriptionParams(
            language=fields.language,
            task=task,
            prompt=fields.prompt,
            temperature=fields.temperatures,
            condition_on_previous_text=fields.condition_on_previous_text is not False,
            **fields.sampling(),
        )
        self.id = service.new_id("trsl" if task == "translate" else "trsc")

    async def prepare(self) -> None:
        service = self.service
        service.admission.admit(1)
        sent = len(self.sound)
        self.work: Transcription = await service.threads.media(self._begin)
        self.sound = b""
        service.admission.admit_media(self.work.sound.frames.nbytes - sent)

    def _begin(self) -> Transcription:
        service = self.service
        transcriber = Transcriber(service.ready.info, service.checker)
        return transcriber.begin(self.sound, self.params, self.model.adapter, LIMITS, "the file")

    async def pieces(self) -> AsyncGenerator[str, None]:
        """A segment at a time, once its window is done."""
        deadline = time.monotonic() + self.service.options.request_timeout
        asking, told = self.work.run(), 0
        # A window's frames are read beside the event loop.
        questions = await self.service.threads.run(0, proceed, asking, None)
        while questions is not None:
            answers = await self._ask(questions)
            questions = await self.service.threads.run(0, proceed, asking, answers)
            for segment in self.work.segments[told:]:
                yield segment.text if told else segment.text.lstrip()
                told += 1
            if time.monotonic() > deadline:
                limit = f"{self.service.options.request_timeout:g} s"
                raise RequestTimeoutError(f"the request was ended after {limit}. Send a shorter sound.")

    async def _ask(self, questions: list[Question]) -> list[CompletionOutput]:
        service = self.service
        runs = [Run(service.new_id("window"), question.prompt, question.params) for question in questions]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(service.whole(run)) for run in runs]
        return [task.result()[0] for task in tasks]

    def transcript(self) -> Transcript:
        return self.work.transcript()


class Talk:
    """By a chat with a model that hears, which is asked to write down what is said. It tells no times."""

    def __init__(self, service: Service, fields: Fields, sound: bytes, model: ServedModel, task: str) -> None:
        self.service, self.fields, self.sound, self.model, self.task = service, fields, sound, model, task
        self.id = service.new_id("transcribe")
        self.text = ""

    async def prepare(self) -> None:
        service, fields = self.service, self.fields
        if fields.response_format not in STREAMED:
            raise InvalidRequestError(
                f"response_format: this model tells no times; it is {' or '.join(STREAMED)}. Whisper models have all."
            )
        templates = {} if service.tokenizer is None else service.tokenizer.chat_templates
        if service.chat_template is None and not templates:
            raise InvalidRequestError(
                "this model has no chat template to ask for a transcription. Start the server with --chat-template."
            )
        language = f", which is in {fields.language}" if fields.language else ""
        text = " ".join(filter(None, (INSTRUCTIONS[self.task].format(language=language), fields.prompt)))
        content = [{"type": "audio", "audio": self.sound}, {"type": "text", "text": text}]
        values: dict[str, Any] = {"temperature": fields.temperature or 0.0, **fields.sampling()}
        request = ChatRequest(**values, messages=[{"role": "user", "content": content}])
        params = request.sampling_params(service.recommended)
        service.admission.admit(1)
        prompt = await prompt_of(service, request)
        self.run = Run(self.id, await service.check(prompt, params, self.model.adapter), params)

    async def pieces(self) -> AsyncGenerator[str, None]:
        async for chunk in self.service.generate(self.run):
            if chunk.text:
                self.text += chunk.text
                yield chunk.text

    def transcript(self) -> Transcript:
        used = self.run.usage()
        tokens = {"num_prompt_tokens": used["prompt_tokens"], "num_generated_tokens": used["completion_tokens"]}
        return Transcript(self.text.strip(), self.fields.language or "", self.task, 0.0, **tokens)


def work_of(service: Service, fields: Fields, sound: bytes, model: ServedModel, task: str) -> Work:
    """What answers a request, by what the model can do."""
    if service.media is not None and service.media.transcribes:
        return Windows(service, fields, sound, model, task)
    return Talk(service, fields, sound, model, task)
