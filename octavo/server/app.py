"""The HTTP application: routes, the page, and what surrounds them."""

from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from octavo.errors import InvalidRequestError
from octavo.params import SamplingParams
from octavo.server import adapter_routes, chat_completions, completions, http_errors, pooling_routes, transcriptions
from octavo.server.access import AccessMiddleware
from octavo.server.admission import AdmissionScope
from octavo.server.body import JSONRoute
from octavo.server.event_stream import json_response
from octavo.server.protocol import DetokenizeRequest, TokenizeRequest
from octavo.server.served_models import ServedModel
from octavo.server.service import MediaPrompt, Service
from octavo.version import __version__


def create_app(service: Service) -> ASGIApp:
    """The application over a service that has started."""
    # No redirects: they would go wherever the Host header says.
    app = FastAPI(title="Octavo", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    for routes in (
        completions.router(service),
        chat_completions.router(service),
        pooling_routes.router(service),
        plain(service),
    ):
        app.include_router(routes)
    if service.options.allow_runtime_lora_updating:
        app.include_router(adapter_routes.router(service))
    if "audio" in service.media_kinds:
        app.include_router(transcriptions.router(service))
    if service.options.page:
        app.include_router(pages())
    http_errors.install(app)
    # Around the whole app, so that errors pass them too; pages may read refusals, so CORS is the outermost.
    access = AccessMiddleware(AdmissionScope(app, service.admission), service.options, bool(service.media_kinds))
    if not service.options.allowed_origins:
        return access
    return CORSMiddleware(
        access,
        allow_origins=service.options.allowed_origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["X-Request-Id", "Retry-After"],
    )


def plain(service: Service) -> APIRouter:
    """The small routes: models, tokens, health, numbers."""
    routes = APIRouter(route_class=JSONRoute)

    def card(model: ServedModel) -> dict[str, Any]:
        info, adapter = service.ready.info, model.adapter
        return {
            "id": model.name,
            "object": "model",
            "created": model.created,
            "owned_by": "octavo",
            "root": service.args.model if adapter is None else adapter.lora_path,
            "parent": None if adapter is None else service.models.parent(adapter),
            "max_model_len": info.max_model_len,
            "task": info.task,
            "input_modalities": ["text", *service.media_kinds],
        }

    @routes.get("/v1/models", summary="The model that is served, and its adapters")
    async def models() -> Response:
        return json_response(
            {"object": "list", "data": [card(m) for m in (service.models.base, *service.models.adapters)]}
        )

    @routes.get("/health", summary="200 while requests are served")
    @routes.get("/ping", summary="200 while requests are served")
    async def health() -> Response:
        if service.healthy:
            return Response(status_code=200)
        return http_errors.error_response(503, f"the engine is {service.client.state}.")

    @routes.get("/version", summary="Octavo's version")
    async def version() -> Response:
        return json_response({"version": __version__})

    @routes.get("/metrics", summary="Numbers for Prometheus")
    async def metrics() -> Response:
        assert service.metrics is not None
        service.metrics.up.set(service.healthy)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @routes.post("/tokenize", summary="A text's token ids")
    async def tokenize(body: TokenizeRequest) -> Response:
        model = service.accept(body, service.ready.info.task)
        tokenizer = service.tokenizer
        if tokenizer is None:
            raise InvalidRequestError("this server has no tokenizer (--skip-tokenizer-init).")
        if body.messages is not None and body.prompt is not None:
            raise InvalidRequestError("give a prompt or messages, not both.")
        if body.messages is not None:
            prompt = await chat_completions.prompt_of(service, body)
        elif body.prompt is not None:
            prompt = {"prompt": body.prompt, "add_special_tokens": body.add_special_tokens is not False}
        else:
            raise InvalidRequestError("give a prompt or messages.")

        def work(ids: list[int] | None, text: str, special: bool) -> tuple[list[int], list[str | None] | None]:
            ids = tokenizer.encode(text, special) if ids is None else ids
            return ids, [tokenizer.token(i) for i in ids] if body.return_token_strs else None

        if isinstance(prompt, MediaPrompt):
            checked = await service.check(prompt, SamplingParams(max_tokens=1), model.adapter)
            ids, strings = await service.threads.run(len(checked.token_ids), work, checked.token_ids, "", False)
        else:
            text = prompt["prompt"]
            ids, strings = await service.threads.run(len(text), work, None, text, prompt["add_special_tokens"])
        answer = {"count": len(ids), "max_model_len": service.ready.info.max_model_len, "tokens": ids}
        return json_response({**answer, "token_strs": strings})

    @routes.post("/detokenize", summary="The text of token ids")
    async def detokenize(body: DetokenizeRequest) -> Response:
        service.accept(body, service.ready.info.task)
        tokenizer, size = service.tokenizer, service.ready.info.vocab_size
        if tokenizer is None:
            raise InvalidRequestError("this server has no tokenizer (--skip-tokenizer-init).")

        def work() -> str:
            for token in body.tokens:
                if not 0 <= token < size and tokenizer.token(token) is None:
                    raise InvalidRequestError(
                        f"tokens holds {token}, outside this model's vocabulary (0 to {size - 1})."
                    )
            return tokenizer.decode(body.tokens, skip_special_tokens=False)

        return json_response({"prompt": await service.threads.run(len(body.tokens), work)})

    return routes


def pages() -> APIRouter:
    """The chat page and the statistics. They load nothing from anywhere else."""
    routes = APIRouter(include_in_schema=False)
    policy = (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
        "media-src data:"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}

    def page(name: str) -> HTMLResponse:
        static = files("octavo.server") / "static"
        text = (static / name).read_text(encoding="utf-8")
        text = text.replace("/* attach.js */", (static / "attach.js").read_text(encoding="utf-8"))
        return HTMLResponse(text, headers=headers)

    @routes.get("/")
    async def index(request: Request) -> HTMLResponse:
        return page("index.html")

    @routes.get("/stats")
    async def stats(request: Request) -> HTMLResponse:
        return page("stats.html")

    return routes
