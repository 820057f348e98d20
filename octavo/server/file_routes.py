"""/v1/files and /v1/batches, where --files-folder names a folder."""

import asyncio
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.types import ASGIApp

from octavo.errors import InvalidRequestError
from octavo.server.batch_lines import ENDPOINTS
from octavo.server.batches import Batches
from octavo.server.body import BodyError, JSONRoute
from octavo.server.event_stream import json_response
from octavo.server.file_store import FileStore
from octavo.server.form_data import FormPart, read_form
from octavo.server.listing import page
from octavo.server.response_request import Metadata
from octavo.server.service import Service
from octavo.server.transcriptions import check_origin

Limit = Annotated[int, Query(ge=1, le=10_000)]
EXPIRES = "expires_after[seconds]"


class BatchRequest(BaseModel):
    """/v1/batches"""

    model_config = ConfigDict(extra="ignore")

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"] = "24h"
    metadata: Metadata | None = None


def router(service: Service, folder: Path, app: ASGIApp) -> APIRouter:
    """The routes over a folder. Raises ConfigError for one that cannot be used."""
    routes = APIRouter(route_class=JSONRoute)
    files = service.files = FileStore(folder, service.options.files_bytes)
    batches = Batches(
        files, lambda: app, service.options.body_bytes(bool(service.media_kinds)), lambda: not service.accepting
    )
    batches.begin()
    _file_routes(routes, service, files, batches)
    _batch_routes(routes, batches)
    return routes


def _file_routes(routes: APIRouter, service: Service, files: FileStore, batches: Batches) -> None:
    one_at_a_time = asyncio.Lock()

    @routes.post("/v1/files", summary="Keep a file", openapi_extra=FORM)
    async def upload(request: Request) -> Response:
        check_origin(service, request)
        async with one_at_a_time:  # each is in memory as a whole
            form = read_form(request.headers.get("content-type", ""), await request.body())
            file, purpose = form.get("file"), _text(form, "purpose")
            if file is None or not file.is_file:
                raise BodyError("send it as a file.", "file")
            if purpose != "batch":
                raise BodyError(f"{purpose!r:.60} is not supported; files here are for batch.", "purpose")
            seconds = _text(form, EXPIRES) if EXPIRES in form else None
            if seconds is not None and not (seconds.isdecimal() and 3600 <= int(seconds[:9]) <= 30 * 86400):
                raise BodyError("it must be a number of seconds from an hour to 30 days.", EXPIRES)
            name = file.filename.replace("\\", "/").rpartition("/")[2][:255] or "file"
            expires = None if seconds is None else int(seconds)
            made = await asyncio.to_thread(files.add, file.data, name, purpose, expires)
        return json_response(made.as_object())

    @routes.get("/v1/files", summary="The files that are kept")
    async def listed(
        limit: Limit = 10_000,
        after: str | None = None,
        order: Literal["asc", "desc"] = "desc",
        purpose: str | None = None,
    ) -> Response:
        found = [file.as_object() for file in files.all() if purpose in (None, file.purpose)]
        return page(found if order == "asc" else found[::-1], limit, after)

    @routes.get("/v1/files/{file_id}", summary="What is known of a file")
    async def retrieve(file_id: str) -> Response:
        return json_response(files.get(file_id).as_object())

    @routes.get("/v1/files/{file_id}/content", summary="A file's bytes")
    async def content(file_id: str) -> Response:
        headers = {"Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff"}
        path = files.path(files.get(file_id).id)
        return FileResponse(path, media_type="application/octet-stream", headers=headers)

    @routes.delete("/v1/files/{file_id}", summary="Keep a file no longer")
    async def delete(file_id: str) -> Response:
        files.get(file_id)
        if batches.uses(file_id):
            raise InvalidRequestError("a batch needs this file. Cancel it, or wait for its end.")
        files.delete(file_id)
        return json_response({"id": file_id, "object": "file", "deleted": True})


def _batch_routes(routes: APIRouter, batches: Batches) -> None:
    @routes.post("/v1/batches", summary="Answer a file of requests")
    async def create(body: BatchRequest) -> Response:
        if body.endpoint not in ENDPOINTS:
            raise BodyError(f"{body.endpoint!r:.60} is not one of {', '.join(ENDPOINTS)}.", "endpoint")
        made = batches.add(body.input_file_id, body.endpoint, body.completion_window, body.metadata)
        return json_response(made.as_object())

    @routes.get("/v1/batches", summary="The batches that are known")
    async def listed(limit: Limit = 20, after: str | None = None) -> Response:
        return page([batch.as_object() for batch in batches.all()], limit, after)

    @routes.get("/v1/batches/{batch_id}", summary="How far a batch is")
    async def retrieve(batch_id: str) -> Response:
        return json_response(batches.get(batch_id).as_object())

    @routes.post("/v1/batches/{batch_id}/cancel", summary="End a batch")
    async def cancel(batch_id: str) -> Response:
        return json_response(batches.cancel(batch_id).as_object())


def _text(form: dict[str, FormPart], name: str) -> str:
    """A field of a form. Raises BodyError where it is missing."""
    if name not in form:
        raise BodyError("it is missing.", name)
    return form[name].text(name)


_FIELDS = {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string"}, EXPIRES: {"type": "integer"}}
_SCHEMA = {"type": "object", "required": ["file", "purpose"], "properties": _FIELDS}
FORM = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _SCHEMA}}}}
"""What the schema of the API says of an upload."""
