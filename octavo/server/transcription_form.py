"""The form of /v1/audio/transcriptions and /v1/audio/translations, as OpenAI and vLLM have it."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from octavo.server.body import BodyError
from octavo.server.form_data import FormPart
from octavo.server.protocol import Int
from octavo.server.protocol import Request as Body
from octavo.transcripts import TEMPERATURES

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
STREAMED = ("json", "text")


class Transcription(Body):
    """The fields of the form beside its file."""

    language: str | None = None
    to_language: str | None = None
    prompt: str | None = None
    response_format: str = "json"
    temperature: float | None = Field(None, ge=0, le=2)
    granularities: str | None = Field(None, alias="timestamp_granularities[]")
    max_completion_tokens: Int | None = Field(None, ge=1)
    seed: Int | None = None
    top_p: float | None = None
    top_k: Int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    condition_on_previous_text: bool | None = None
    stream: bool = False
    stream_include_usage: bool = False
    stream_continuous_usage_stats: bool = False

    @field_validator("language", "to_language")
    @classmethod
    def _a_language(cls, value: str | None) -> str | None:
        if value and not re.fullmatch(r"[A-Za-z][A-Za-z _-]{0,39}", value):
            raise ValueError("give a language's code or name, such as en.")
        return value

    @field_validator("response_format")
    @classmethod
    def _a_format(cls, value: str) -> str:
        if value not in FORMATS:
            raise ValueError(f"{value!r:.40} is not supported; it is one of {', '.join(FORMATS)}.")
        return value

    @field_validator("granularities")
    @classmethod
    def _segments_alone(cls, value: str | None) -> str | None:
        for name in (value or "").split(","):
            if name == "word":
                raise ValueError("word is not supported: times are told of segments. Send segment, or leave it out.")
            if name not in ("", "segment"):
                raise ValueError(f"{name!r:.40} is not known; it is segment.")
        return value

    @model_validator(mode="after")
    def _can_be_streamed(self) -> "Transcription":
        if self.stream and self.response_format not in STREAMED:
            raise ValueError(f"stream=true is for response_format {' and '.join(STREAMED)}.")
        return self

    def sampling(self) -> dict[str, Any]:
        """The sampling values that are given, by SamplingParams' names, but the temperature."""
        names = ("seed", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
        values = {name: getattr(self, name) for name in names} | {"max_tokens": self.max_completion_tokens}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def temperatures(self) -> tuple[float, ...]:
        """As OpenAI has it: with 0 others are tried where the text seems unsound."""
        return (self.temperature,) if self.temperature else TEMPERATURES


def read_fields(form: Mapping[str, FormPart]) -> tuple[Transcription, bytes]:
    """A form's values, and its sound. Raises InvalidRequestError that names the field."""
    if (sound := form.get("file")) is None or not sound.data:
        raise BodyError("send the sound as a file.", "file")
    names = [field.alias or name for name, field in Transcription.model_fields.items()]
    given = {name: part.text(name) for name, part in form.items() if name in names}
    try:
        return Transcription.model_validate({name: value for name, value in given.items() if value != ""}), sound.data
    except ValidationError as error:
        first = error.errors()[0]
        place = str(first["loc"][0]) if first["loc"] else None
        raise BodyError(first["msg"].removeprefix("Value error, "), place) from error


def _openapi() -> dict[str, Any]:
    schema = Transcription.model_json_schema(by_alias=True)
    properties = {"file": {"type": "string", "format": "binary"}, **schema["properties"]}
    form = {"type": "object", "required": ["file"], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


FORM = _openapi()
"""What the schema of the API says of it."""
