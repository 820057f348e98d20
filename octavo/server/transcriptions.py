"""/v1/audio/transcriptions: what is said in a sound, asked of a model that hears and talks."""

import re
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import ValidationError, field_validator

from octavo.errors import InvalidRequestError
from octavo.server.body import BodyError
from octavo.server.chat_completions import prompt_of
from octavo.server.event_stream import event_response, json_response, while_connected
from octavo.server.form_data import FormPart, read_form
from octavo.server.protocol import ChatRequest, Int
from octavo.server.protocol import Request as Body
from octavo.server.served_models import ServedModel
from octavo.server.service import Run, Service

FORMATS = ("json", "text")
INSTRUCTION = "Transcribe this audio{language}. Write only what is said."
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "model": {"type": "string"},
                        "language": {"type": "string"},
                        "prompt": {"type": "string"},
                        "response_format": {"type": "string", "enum": list(FORMATS)},
                        "temperature": {"type": "number"},
                        "max_completion_tokens": {"type": "integer"},
                        "seed": {"type": "integer"},
                        "stream": {"type": "boolean"},
                    },
                }
            }
        },
    }
}


class Transcription(Body):
    """The fields of the form beside its file."""

    language: str | None = None
    prompt: str | None = None
    response_format: str = "json"
    temperature: float | None = None
    max_completion_tokens: Int | None = None
    seed: Int | None = None
    stream: bool = False

    @field_validator("language")
    @classmethod
    def _a_language(cls, value: str | None) -> str | None:
        if value and not re.fullmatch(r"[A-Za-z][A-Za-z -]{0,39}", value):
            raise ValueError("give a language's code or name, such as en.")
        return value

    @field_validator("response_format")
    @classmethod
    def _a_format(cls, value: str) -> str:
        if value not in FORMATS:
            raise ValueError(f"{value!r:.40} is not supported; it is json or text. The model tells no times.")
        return value


def read_fields(form: Mapping[str, FormPart]) -> tuple[Transcription, bytes]:
    """A form's values, and its sound. Raises InvalidRequestError that names the field."""
    if (sound := form.get("file")) is None or not sound.data:
        raise BodyError("send the sound as a file.", "file")
    names = Transcription.model_fields
    given = {name: part.text(name) for name, part in form.items() if name in names}
    try:
        return Transcription.model_validate({name: value for name, value in given.items() if value != ""}), sound.data
    except ValidationError as error:
        first = error.errors()[0]
        raise BodyError(first["msg"].removeprefix("Value error, "), str(first["loc"][0])) from error


class Transcribing:
    """One request of /v1/audio/transcriptions."""

    def __init__(self, service: Service, fields: Transcription, sound: bytes, model: ServedModel) -> None:
        self.service, self.fields, self.sound, self.model = service, fields, sound, model
        self.id, self.created = service.new_id("transcribe"), int(time.time())

    async def prepare(self) -> None:
        """Check everything before anything runs. Raises InvalidRequestError."""
        service, fields = self.service, self.fields
        templates = {} if service.tokenizer is None else service.tokenizer.chat_templates
        if service.chat_template is None and not templates:
            raise InvalidRequestError(
                "this model has no chat template to ask for a transcription. Start the server with --chat-template."
            )
        language = f", which is in {fields.language}" if fields.language else ""
        text = " ".join(filter(None, (INSTRUCTION.format(language=language), fields.prompt)))
        content = [{"type": "audio", "audio": self.sound}, {"type": "text", "text": text}]
        values: dict[str, Any] = {"temperature": fields.temperature or 0.0, "max_tokens": fields.max_completion_tokens}
        values |= {"seed": fields.seed, "messages": [{"role": "user", "content": content}]}
        request = ChatRequest(**values)
        params = request.sampling_params(service.recommended)
        service.admission.admit(1, 1)
        prompt = await prompt_of(service, request)
        self.run = Run(self.id, await service.check(prompt, params, self.model.adapter), params)

    async def whole(self) -> str:
        """The text, when it is there."""
        return "".join(answer.text for answer in await self.service.whole(self.run)).strip()

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """The text as it comes, as OpenAI's events, and its usage."""
        text = ""
        async for chunk in self.service.generate(self.run):
            if chunk.text:
                text += chunk.text
                yield {"type": "transcript.text.delta", "delta": chunk.text}
        yield {"type": "transcript.text.done", "text": text, "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        used = self.run.usage()
        return {
            "type": "tokens",
            "input_tokens": used["prompt_tokens"],
            "output_tokens": used["completion_tokens"],
            "total_tokens": used["total_tokens"],
        }


def check_origin(service: Service, request: Request) -> None:
    """Raises InvalidRequestError for a page of another origin: browsers send its forms without asking the server."""
    origin, allowed = request.headers.get("origin"), service.options.allowed_origins
    own = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if not own and "*" not in allowed and origin not in allowed:
        raise InvalidRequestError("pages of this origin may not send forms here. See --allowed-origins.")


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/audio/transcriptions", summary="Write down what is said in a sound", openapi_extra=FORM)
    async def transcribe(request: Request) -> Response:
        check_origin(service, request)
        fields, sound = read_fields(read_form(request.headers.get("content-type", ""), await request.body()))
        work = Transcribing(service, fields, sound, service.accept(fields, "generate"))
        await work.prepare()
        if fields.stream:
            return await event_response(request, work.events())
        text = await while_connected(request, work.whole())
        if fields.response_format == "text":
            return PlainTextResponse(text + "\n")
        return json_response({"text": text, "usage": work.usage()})

    return routes
