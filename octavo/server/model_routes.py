"""/v1/models; /v1/load_lora_adapter and /v1/unload_lora_adapter, where the operator allows them."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.convertors import StringConvertor, register_url_convertor

from octavo.server.body import JSONRoute
from octavo.server.event_stream import json_response, while_connected
from octavo.server.protocol import Int
from octavo.server.request_log import add_to_request_log
from octavo.server.served_models import ServedModel
from octavo.server.service import Service


class _Name(StringConvertor):
    """The name of a model in a path: it may have slashes, and is not empty."""

    regex = ".+"


register_url_convertor("model_name", _Name())


class LoadAdapterRequest(BaseModel):
    """/v1/load_lora_adapter"""

    model_config = ConfigDict(extra="ignore")

    lora_name: str = ""
    lora_path: str = ""
    load_inplace: bool = False


class UnloadAdapterRequest(BaseModel):
    """/v1/unload_lora_adapter"""

    model_config = ConfigDict(extra="ignore")

    lora_name: str = ""
    lora_int_id: Int | None = None


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=JSONRoute)

    def card(model: ServedModel) -> dict[str, Any]:
        info, adapter = service.ready.info, model.adapter
        return {
            "id": model.name,
            "object": "model",
            "type": "model",  # this and the next two are Anthropic's names, as `has_more` of the list
            "display_name": model.name,
            "created_at": datetime.fromtimestamp(model.created, UTC).isoformat(),
            "created": model.created,
            "owned_by": "octavo",
            "root": service.args.model if adapter is None else adapter.lora_path,
            "parent": None if adapter is None else service.models.parent(adapter),
            "max_model_len": info.max_model_len,
            "task": info.task,
            "input_modalities": ["text", *service.media_kinds],
        }

    def called(name: str) -> ServedModel:
        """The model by this one of its names, or an adapter. Raises ModelUnknownError."""
        found = service.models.find(name)
        return replace(found, name=name) if found.adapter is None else found

    @routes.get("/v1/models", summary="The model by each of its names, and its adapters")
    async def models() -> Response:
        names = service.options.served_model_name or [service.args.model]
        data = [card(one) for one in (*map(called, names), *service.models.adapters)]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"], "has_more": False}
        return json_response({"object": "list", "data": data, **ends})

    @routes.get("/v1/models/{name:model_name}", summary="One of these, by its name")
    async def model(name: str) -> Response:
        return json_response(card(called(name)))

    return routes


def updating(service: Service) -> APIRouter:
    """The routes by which adapters come and go."""
    routes = APIRouter(route_class=JSONRoute)

    @routes.post("/v1/load_lora_adapter", summary="Load an adapter, which is a model of its own from then on")
    async def load(body: LoadAdapterRequest, request: Request) -> Response:
        add_to_request_log(adapter=body.lora_name[:64])
        await while_connected(request, service.models.load(body.lora_name, body.lora_path, in_place=body.load_inplace))
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @routes.post("/v1/unload_lora_adapter", summary="Serve an adapter no longer")
    async def unload(body: UnloadAdapterRequest) -> Response:
        add_to_request_log(adapter=body.lora_name[:64])
        service.models.unload(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return routes
