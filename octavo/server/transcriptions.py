"""/v1/audio/transcriptions and /v1/audio/translations: what is said in a sound, of a model that hears."""

import contextlib
import math
import time
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from octavo.errors import InvalidRequestError
from octavo.server.body import BodyError
from octavo.server.event_stream import event_response, json_response, while_connected
from octavo.server.form_data import read_form
from octavo.server.service import Service
from octavo.server.transcription_form import FORM, read_fields
from octavo.server.transcription_form import Transcription as Fields
from octavo.server.transcription_work import Work, work_of
from octavo.text.languages import language_code
from octavo.text.subtitles import as_srt, as_text, as_verbose, as_vtt
from octavo.transcripts import Transcript

PLAIN = {"text": as_text, "srt": as_srt, "vtt": as_vtt}
"""Formats that are no JSON."""


async def whole(work: Work) -> Transcript:
    """The transcript, when it is there."""
    async with contextlib.aclosing(work.pieces()) as pieces:
        async for _ in pieces:
            pass
    return work.transcript()


def usage_of(transcript: Transcript) -> dict[str, Any]:
    """What is told of a transcript's costs: seconds of the sound, or tokens where nobody counted these."""
    if transcript.duration:
        return {"type": "duration", "seconds": math.ceil(transcript.duration)}
    return transcript.usage()


async def events(work: Work, fields: Fields, kind: str, model: str) -> AsyncGenerator[dict[str, Any], None]:
    """The text as it comes. Each event is OpenAI's (`type`, `delta`) and vLLM's (`object`, `choices`) at once."""
    head = {"id": work.id, "object": f"{kind}.chunk", "created": int(time.time()), "model": model}
    text = ""
    async with contextlib.aclosing(work.pieces()) as pieces:
        async for piece in pieces:
            text += piece
            choices = [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]
            told = {"usage": tokens_of(work.transcript())} if fields.stream_continuous_usage_stats else {}
            yield {**head, "choices": choices, "type": "transcript.text.delta", "delta": piece, **told}
    transcript = work.transcript()
    choices = [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}]
    end = {"type": "transcript.text.done", "text": text, "usage": transcript.usage()}
    yield {**head, "choices": choices, **end}
    if fields.stream_include_usage:
        yield {**head, "choices": [], "usage": tokens_of(transcript)}


def tokens_of(transcript: Transcript) -> dict[str, int]:
    """Tokens under the names of completions."""
    read, written = transcript.num_prompt_tokens, transcript.num_generated_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def answer_of(transcript: Transcript, fields: Fields) -> Response:
    """A transcript in the format that the request asks for."""
    if (write := PLAIN.get(fields.response_format)) is not None:
        return PlainTextResponse(write(transcript))
    values = as_verbose(transcript) if fields.response_format == "verbose_json" else {"text": transcript.text}
    return json_response({**values, "usage": usage_of(transcript)})


def check_origin(service: Service, request: Request) -> None:
    """Raises InvalidRequestError for a page of another origin: browsers send its forms without asking the server."""
    origin, allowed = request.headers.get("origin"), service.options.allowed_origins
    own = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if not own and "*" not in allowed and origin not in allowed:
        raise InvalidRequestError("pages of this origin may not send forms here. See --allowed-origins.")


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    async def answer(request: Request, task: str, kind: str) -> Response:
        check_origin(service, request)
        fields, sound = read_fields(read_form(request.headers.get("content-type", ""), await request.body()))
        if fields.to_language and language_code(fields.to_language) != "en":
            raise BodyError("translations are into English.", "to_language")
        model = service.accept(fields, "generate")
        work = work_of(service, fields, sound, model, task)
        await work.prepare()
        if fields.stream:
            return await event_response(request, events(work, fields, kind, model.name))
        return answer_of(await while_connected(request, whole(work)), fields)

    @routes.post("/v1/audio/transcriptions", summary="Write down what is said in a sound", openapi_extra=FORM)
    async def transcribe(request: Request) -> Response:
        return await answer(request, "transcribe", "transcription")

    @routes.post("/v1/audio/translations", summary="Translate what is said into English", openapi_extra=FORM)
    async def translate(request: Request) -> Response:
        return await answer(request, "translate", "translation")

    return routes
