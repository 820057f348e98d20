"""/v1/chat/completions/render and /v1/completions/render: what a request would run, without running it."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from octavo.engine.messages import pack_params
from octavo.server.body import JSONRoute
from octavo.server.chat_completions import Chat
from octavo.server.completions import Completions
from octavo.server.event_stream import json_response
from octavo.server.protocol import ChatRequest, CompletionRequest, Sampling
from octavo.server.service import Run, Service


def rendered(run: Run, request: Sampling, model: str) -> dict[str, Any]:
    """A prompt's tokens and sampling values, in the shape of vLLM's GenerateRequest."""
    stream_options = request.stream_options
    return {
        "request_id": run.request_id,
        "token_ids": list(run.prompt.token_ids),
        "features": None,
        "sampling_params": pack_params(run.params),
        "model": model,
        "stream": bool(request.stream),
        "stream_options": None if stream_options is None else stream_options.model_dump(),
        "cache_salt": request.cache_salt,
        "priority": request.priority or 0,
    }


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=JSONRoute)

    @routes.post("/v1/chat/completions/render", summary="The tokens that a conversation would run")
    async def chat(body: ChatRequest) -> Response:
        work = Chat(service, body, service.accept(body, "generate"))
        await work.prepare()
        return json_response(rendered(work.run, body, work.model.name))

    @routes.post("/v1/completions/render", summary="The tokens that prompts would run")
    async def completions(body: CompletionRequest) -> Response:
        work = Completions(service, body, service.accept(body, "generate"))
        await work.prepare()
        return json_response([rendered(run, body, work.model.name) for run in work.runs])

    return routes
