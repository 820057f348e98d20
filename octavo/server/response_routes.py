"""The routes of /v1/responses, and responses that go on without their client."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from octavo.server.body import BodyError, JSONRoute
from octavo.server.event_stream import event_response, json_response, while_connected
from octavo.server.inner_chat import count_tokens
from octavo.server.listing import page
from octavo.server.response_items import input_items, messages_of
from octavo.server.response_request import CountInputRequest, ResponsesRequest
from octavo.server.response_store import Kept, ResponseStore
from octavo.server.responses import ResponseWork, earlier
from octavo.server.service import Service


class Background:
    """Responses that are computed whether their client waits or not.

    Args:
        service: computes them.
        store: has them by their ids.
    """

    def __init__(self, service: Service, store: ResponseStore) -> None:
        self.service, self.store = service, store
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, work: ResponseWork) -> None:
        """Begin one. Raises as its preparation does."""
        load = self.service.admission.hold()
        try:
            await work.prepare()
        except BaseException:
            self.service.admission.release(load)
            raise
        kept = work.kept
        kept.events = [] if work.request.stream else None
        self.store.put(kept)
        task = asyncio.create_task(self._run(work))
        self._tasks[kept.id] = task

        def end(task: "asyncio.Task[None]") -> None:
            self.service.admission.release(load)
            del self._tasks[kept.id]
            kept.change()

        task.add_done_callback(end)

    async def _run(self, work: ResponseWork) -> None:
        kept = work.kept
        try:
            async with contextlib.aclosing(work.events()) as events:
                async for event in events:
                    if kept.events is not None:
                        kept.events.append(event)
                        kept.change()
        except asyncio.CancelledError:
            kept.response = {**kept.response, "status": "cancelled"}
        except Exception as error:
            work.fail(error)
        if kept.is_kept:
            self.store.put(kept)

    async def cancel(self, kept: Kept) -> None:
        """End one that has not ended. Raises BodyError for one that never was in the background."""
        if not kept.response["background"]:
            raise BodyError("only a response in the background can be cancelled.", "response_id")
        task = self._tasks.get(kept.id)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def follow(self, kept: Kept, first: int) -> AsyncGenerator[dict[str, Any], None]:
        """The events of one from the number `first` on, until the last."""
        while True:
            has_changed, has_ended = kept.has_changed, kept.id not in self._tasks
            for event in (kept.events or [])[first:]:
                first += 1
                yield event
            if has_ended:
                return
            await has_changed.wait()


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=JSONRoute)
    store = ResponseStore(service.options.response_store_bytes)
    background = Background(service, store)

    @routes.post("/v1/responses", summary="Answer by OpenAI's Responses API")
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        work = ResponseWork(service, body, service.accept(body, "generate"), store)
        if body.background:
            await background.start(work)
            if body.stream:
                return await event_response(request, background.follow(work.kept, 0), is_named=True)
            return json_response(work.kept.response)
        await work.prepare()
        if body.stream:
            return await event_response(request, work.events(), is_named=True)
        return json_response(await while_connected(request, work.whole()))

    @routes.post("/v1/responses/input_tokens", summary="How many tokens a response's input has")
    async def input_tokens(body: CountInputRequest) -> Response:
        model = service.accept(body, "generate")
        before = earlier(store, body.previous_response_id)
        items = [*(before.conversation() if before is not None else ()), *input_items(body.input or [])]
        chat = body.chat(messages_of(body.instructions, items))
        count = await count_tokens(service, chat, model)
        return json_response({"object": "response.input_tokens", "input_tokens": count})

    _add_kept(routes, store, background)
    return routes


def _add_kept(routes: APIRouter, store: ResponseStore, background: Background) -> None:
    """What is done with responses that are kept."""

    def found(id: str) -> Kept:
        kept = earlier(store, id)
        assert kept is not None
        return kept

    @routes.get("/v1/responses/{response_id}", summary="A response that is kept, or its events")
    async def retrieve(
        response_id: str,
        request: Request,
        stream: bool = False,
        starting_after: Annotated[int, Query(ge=-1, lt=2**31)] = -1,
    ) -> Response:
        kept = found(response_id)
        if not stream:
            return json_response(kept.response)
        if kept.events is None:
            raise BodyError("only a response with background=true and stream=true keeps its events.", "stream")
        return await event_response(request, background.follow(kept, starting_after + 1), is_named=True)

    @routes.delete("/v1/responses/{response_id}", summary="Keep a response no longer")
    async def delete(response_id: str) -> Response:
        kept = found(response_id)
        if kept.response["background"]:
            await background.cancel(kept)
        store.drop(response_id)
        return json_response({"id": response_id, "object": "response", "deleted": True})

    @routes.post("/v1/responses/{response_id}/cancel", summary="End a response in the background")
    async def cancel(response_id: str) -> Response:
        kept = found(response_id)
        await background.cancel(kept)
        return json_response(kept.response)

    @routes.get("/v1/responses/{response_id}/input_items", summary="What a response answers")
    async def items(
        response_id: str,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> Response:
        data = found(response_id).input()
        return page(data if order == "asc" else data[::-1], limit, after)
