"""/v1/load_lora_adapter and /v1/unload_lora_adapter, where the operator allows them."""

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict

from octavo.server.body import JSONRoute
from octavo.server.event_stream import while_connected
from octavo.server.protocol import Int
from octavo.server.request_log import add_to_request_log
from octavo.server.service import Service


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
