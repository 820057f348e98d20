"""The HTTP application: routes, the page, and what surrounds them."""

from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import Response
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from octavo.server import (
    anthropic_messages,
    chat_batch,
    chat_completions,
    cohere_embed,
    completions,
    dev_routes,
    file_routes,
    http_errors,
    model_routes,
    pages,
    pooling_routes,
    render_routes,
    response_routes,
    token_routes,
    transcriptions,
)
from octavo.server.access import AccessMiddleware
from octavo.server.admission import AdmissionScope
from octavo.server.body import JSONRoute
from octavo.server.event_stream import json_response
from octavo.server.invocations import Invocations
from octavo.server.middleware import KeepAlive, add_middleware
from octavo.server.root_path import RootPath
from octavo.server.service import Service
from octavo.version import __version__


def inner_app(service: Service) -> AdmissionScope:
    """The application over a service that has started, without keys: for requests from within, too.

    Raises ConfigError for a --files-folder that cannot be used.
    """
    # No redirects: they would go wherever the Host header says.
    described = None if service.options.disable_fastapi_docs else "/openapi.json"
    app = FastAPI(
        title="Octavo",
        version=__version__,
        openapi_url=described,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for routes in (
        completions.router(service),
        chat_completions.router(service),
        chat_batch.router(service),
        render_routes.router(service),
        response_routes.router(service),
        anthropic_messages.router(service),
        pooling_routes.router(service),
        cohere_embed.router(service),
        model_routes.router(service),
        token_routes.router(service),
        plain(service),
    ):
        app.include_router(routes)
    if service.options.allow_runtime_lora_updating:
        app.include_router(model_routes.updating(service))
    if service.options.server_dev_mode:
        app.include_router(dev_routes.router(service))
    if service.options.enable_tokenizer_info_endpoint:
        app.include_router(token_routes.tokenizer_info(service))
    if "audio" in service.media_kinds:
        app.include_router(transcriptions.router(service))
    app.add_middleware(Invocations, service=service)
    if service.options.root_path:
        app.add_middleware(RootPath, routes=app)
    if service.options.page:
        app.include_router(pages.router(service))
        app.include_router(pages.settings_router(service))
    http_errors.install(app)
    add_middleware(app, service.options.middleware)
    inner = AdmissionScope(app, service.admission)
    if service.options.files_folder is not None:
        app.include_router(file_routes.router(service, Path(service.options.files_folder), inner))
    return inner


def create_app(service: Service) -> ASGIApp:
    """The same with what HTTP needs around it."""
    # Around the whole app, so that errors pass them too; pages may read refusals, so CORS is the outermost.
    access = AccessMiddleware(inner_app(service), service.options, bool(service.media_kinds))
    options = service.options
    around = KeepAlive(access, options.sse_keep_alive_interval) if options.sse_keep_alive_interval else access
    if not options.allowed_origins:
        return around
    return CORSMiddleware(
        around,
        allow_origins=options.allowed_origins,
        allow_methods=options.allowed_methods,
        allow_headers=options.allowed_headers,
        allow_credentials=options.allow_credentials,
        expose_headers=["X-Request-Id", "Retry-After"],
    )


def plain(service: Service) -> APIRouter:
    """The small routes: health, version, numbers."""
    routes = APIRouter(route_class=JSONRoute)

    @routes.get("/health", summary="200 while requests are served")
    @routes.get("/ping", summary="200 while requests are served")
    async def health() -> Response:
        if service.healthy:
            return Response(status_code=200)
        return http_errors.error_response(503, f"the engine is {service.client.state}.")

    @routes.get("/version", summary="Octavo's version")
    async def version() -> Response:
        return json_response({"version": __version__})

    @routes.get("/load", summary="Requests that are running or waiting")
    async def load() -> Response:
        return json_response({"server_load": service.admission.load.requests})

    @routes.get("/metrics", summary="Numbers for Prometheus")
    async def metrics() -> Response:
        assert service.metrics is not None
        service.metrics.take_states(service.client.states)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes
