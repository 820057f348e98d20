"""Routes for who develops or operates: what vLLM has where VLLM_SERVER_DEV_MODE is set. They end others' requests."""

import dataclasses
import os
import platform
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from octavo.server.body import BodyError, JSONRoute
from octavo.server.event_stream import json_response
from octavo.server.protocol import Many
from octavo.server.service import Service
from octavo.version import __version__

SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")
"""What names of environment variables have whose values are not told."""


class AbortRequest(BaseModel):
    """/abort_requests"""

    model_config = ConfigDict(extra="ignore")

    request_ids: Many[str] | None = None


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=JSONRoute)
    requests, client = service.requests, service.client

    @routes.get("/server_info", summary="How the server was started")
    async def server_info(config_format: Literal["text", "json"] = "text") -> Response:
        args = {f.name: getattr(service.args, f.name) for f in dataclasses.fields(service.args)}
        args = {name: value for name, value in args.items() if not any(word in name.upper() for word in SECRET)}
        told: Any = {name: _plain(value) for name, value in args.items()}
        if config_format == "text":
            told = ", ".join(f"{name}={value!r}" for name, value in told.items())
        environment = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("VLLM_", "OCTAVO_")) and not any(word in name for word in SECRET)
        }
        system = {
            "octavo_version": __version__,
            "python_version": platform.python_version(),
            "os": platform.platform(),
            "cpu_count": os.cpu_count(),
        }
        return json_response({"vllm_config": told, "vllm_env": environment, "system_env": system})

    @routes.post("/abort_requests", summary="End requests by the ids of their answers")
    async def abort(body: AbortRequest) -> Response:
        if body.request_ids is None:
            raise BodyError("it is missing.", "request_ids")
        requests.abort_those(client, body.request_ids)
        return Response(status_code=200)

    @routes.post("/reset_prefix_cache", summary="Find nothing of earlier prompts in the KV cache")
    async def reset_prefix_cache() -> Response:
        requests.forget_prompts()
        return Response(status_code=200)

    @routes.post("/sleep", summary="Compute nothing; requests wait until /wake_up")
    async def sleep(level: Annotated[int, Query(ge=0, le=2)] = 1, mode: Literal["abort", "wait"] = "abort") -> Response:
        requests.pause()
        if mode == "abort":
            requests.abort_those(client, None)
        await requests.idle()
        if level > 0:
            requests.forget_prompts()
        return Response(status_code=200)

    @routes.post("/wake_up", summary="Let requests run again")
    async def wake_up(tags: Annotated[list[str] | None, Query()] = None) -> Response:
        if tags is None or {"scheduling", "kv_cache"} & set(tags):
            requests.resume()
        return Response(status_code=200)

    @routes.get("/is_sleeping", summary="Whether requests wait for /wake_up")
    async def is_sleeping() -> Response:
        return json_response({"is_sleeping": requests.is_paused})

    return routes


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else str(value)
