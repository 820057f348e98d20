"""The chat page and the statistics: files of octavo/server/static, and what the page asks of the model."""

import dataclasses
import hashlib
import mimetypes
import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from octavo.option_types import without_none
from octavo.params import SamplingParams
from octavo.server.body import JSONRoute
from octavo.server.event_stream import json_response
from octavo.server.model_formats import model_formats
from octavo.server.reasoning import SWITCHES
from octavo.server.service import Service
from octavo.version import __version__

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; media-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing is loaded from anywhere else, and no script or style that an answer could hold ever runs."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked again each time, and not sent again where it is the same
}
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".woff2": "font/woff2"}
SHOWN_OPTIONS: tuple[str, ...] = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty")
SHOWN_OPTIONS += ("frequency_penalty", "max_tokens", "min_tokens", "seed", "stop", "ignore_eos")
"""The sampling options that the page has a field for."""
KINDS = {int: "integer", float: "number", bool: "boolean"}


@dataclasses.dataclass(frozen=True)
class StaticFile:
    """A file as it is sent."""

    data: bytes
    media_type: str
    tag: str

    def response(self, request: Request) -> Response:
        headers = {**HEADERS, "ETag": self.tag}
        if self.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.data, headers=headers, media_type=self.media_type)


def static_files() -> dict[str, StaticFile]:
    """Every file of the page, by its path below static/: what is not among them cannot be asked for."""
    found: dict[str, StaticFile] = {}

    def read(folder: Traversable, prefix: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir():
                read(entry, f"{prefix}{entry.name}/")
                continue
            data, end = entry.read_bytes(), "." + entry.name.rpartition(".")[2]
            kind = TYPES.get(end) or mimetypes.guess_type(entry.name)[0] or "text/plain; charset=utf-8"
            tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            found[prefix + entry.name] = StaticFile(data, kind, tag)

    read(files("octavo.server") / "static", "")
    return found


def sampling_fields(recommended: dict[str, Any]) -> list[dict[str, Any]]:
    """What the page's settings offer: each option with its bounds, help, and the default of this model."""
    by_name = {f.name: f for f in dataclasses.fields(SamplingParams)}
    fields = []
    for name in SHOWN_OPTIONS:
        option = by_name[name]
        default = None if name == "max_tokens" else option.default  # an answer over HTTP is as long as fits
        bounds = {bound: option.metadata[bound] for bound in ("low", "above", "high")}
        kind = KINDS.get(without_none(option.type), "text")
        text, value = option.metadata["help"], recommended.get(name, default)
        fields.append({"name": name, "kind": kind, "help": text, "default": value, **bounds})
    return fields


def is_asked(name: str, template: str) -> bool:
    """Whether a chat template asks for a variable, rather than have its name in some text."""
    return bool(re.search(rf"\bif (?:not )?{name}\b|\b{name} (?:is|==|and|or)\b", template))


def about_model(service: Service) -> dict[str, Any]:
    """The model in words and numbers, as a person reads them."""
    info, ready = service.ready.info, service.ready
    templates = list(service.tokenizer.chat_templates.values()) if service.tokenizer else []
    options, texts = service.options, (service.chat_template or "", *templates)
    formats = model_formats(options.reasoning_parser, options.tool_parser, texts)
    return {
        "name": service.models.base.name,
        "path": service.args.model,
        "task": info.task,
        "max_model_len": info.max_model_len,
        "vocab_size": info.vocab_size,
        "input_modalities": ["text", *service.media_kinds],
        "adapters": [adapter.name for adapter in service.models.adapters],
        "dtype": str(service.args.dtype),
        "quantization": service.args.quantization,
        "device": service.args.device,
        "weight_bytes": sum(ready.rank_weight_bytes),
        "max_body_bytes": options.body_bytes(bool(service.media_kinds)),
        "has_chat_template": any(texts),
        "can_think": formats.reasoning is not None,
        "thinking_switch": next((name for name in SWITCHES if any(is_asked(name, text) for text in texts)), None),
        "calls_tools": formats.tools is not None,
    }


def router(service: Service) -> APIRouter:
    """The pages, and what they are made of."""
    routes = APIRouter(include_in_schema=False)
    static = static_files()

    @routes.get("/")
    async def index(request: Request) -> Response:
        return static["index.html"].response(request)

    @routes.get("/stats")
    async def stats(request: Request) -> Response:
        return static["stats.html"].response(request)

    @routes.get("/static/{path:path}")
    async def part(path: str, request: Request) -> Response:
        if (found := static.get(path)) is None:
            return Response(status_code=404)
        return found.response(request)

    return routes


def settings_router(service: Service) -> APIRouter:
    """What the page's settings and details say of the model; where keys are needed, this needs one."""
    routes = APIRouter(route_class=JSONRoute, include_in_schema=False)

    @routes.get("/page/model")
    async def model() -> Response:
        sampling = sampling_fields(service.recommended)
        return json_response({"version": __version__, "model": about_model(service), "sampling": sampling})

    return routes
