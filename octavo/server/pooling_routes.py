"""/v1/embeddings, /pooling, /classify, /score, /rerank"""

import base64
import time
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from octavo.params import PoolingParams
from octavo.server.body import JSONRoute
from octavo.server.chat_completions import prompt_of
from octavo.server.completions import prompts_of
from octavo.server.event_stream import json_response, while_connected
from octavo.server.protocol import ClassifyRequest, EmbeddingRequest, PoolingRequest, RerankRequest, ScoreRequest
from octavo.server.served_models import ServedModel
from octavo.server.service import Service

Array = np.ndarray[Any, Any]


def _values(array: Array, encoding: str | None) -> Any:
    if encoding == "base64":
        return base64.b64encode(np.ascontiguousarray(array, dtype="<f4").tobytes()).decode()
    return array.tolist()


def listed(service: Service, model: ServedModel, kind: str, data: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {
        "id": service.new_id(kind),
        "object": "list",
        "created": int(time.time()),
        "model": model.name,
        "data": data,
        "usage": usage,
    }


async def pooled(
    service: Service, model: ServedModel, body: EmbeddingRequest | PoolingRequest, kind: str
) -> dict[str, Any]:
    params = PoolingParams(
        dimensions=body.dimensions,
        normalize=body.normalize,
        prompt_name=body.prompt_name,
        truncate_prompt_tokens=body.truncate_prompt_tokens,
        task=body.task if isinstance(body, PoolingRequest) else None,
        softmax=body.softmax if isinstance(body, PoolingRequest) else None,
    )
    prompts = [await prompt_of(service, body)] if body.messages is not None else prompts_of(body.input or [])
    results, tokens = await service.pool_all(prompts, params, model.adapter)
    key = "embedding" if kind == "embd" else "data"
    named = "embedding" if kind == "embd" else "pooling"
    data = [{"index": i, "object": named, key: _values(r, body.encoding_format)} for i, r in enumerate(results)]
    return listed(service, model, kind, data, tokens)


async def classified(service: Service, model: ServedModel, body: ClassifyRequest) -> dict[str, Any]:
    params = PoolingParams(truncate_prompt_tokens=body.truncate_prompt_tokens)
    results, tokens = await service.pool_all(prompts_of(body.input), params, model.adapter)
    labels, data = service.ready.info.labels, []
    for i, probs in enumerate(results):
        best = int(probs.argmax())
        label = labels[best] if best < len(labels) else str(best)
        data.append({"index": i, "label": label, "probs": probs.tolist(), "num_classes": len(probs)})
    return listed(service, model, "classify", data, tokens)


async def scores(
    service: Service, model: ServedModel, first: list[str], second: list[str], truncate: int | None
) -> tuple[list[float], int]:
    """How well texts go together, and how many tokens were read."""
    plan = await service.plan_scores(first, second, truncate)
    results, tokens = await service.pool_all(plan.prompts, plan.params, model.adapter)
    return plan.scores(results), tokens


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=JSONRoute)

    @routes.post("/v1/embeddings", summary="Embed texts")
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        model = service.accept(body, "embedding")
        return json_response(await while_connected(request, pooled(service, model, body, "embd")))

    @routes.post("/pooling", summary="Pooled hidden states, rewards or scores")
    async def pooling(body: PoolingRequest, request: Request) -> Response:
        model = service.accept(body, "embedding", "reward", "classify")
        return json_response(await while_connected(request, pooled(service, model, body, "pool")))

    @routes.post("/classify", summary="Classes of texts")
    async def classify(body: ClassifyRequest, request: Request) -> Response:
        model = service.accept(body, "classify")
        return json_response(await while_connected(request, classified(service, model, body)))

    @routes.post("/score", summary="How well texts go together")
    @routes.post("/v1/score", summary="How well texts go together")
    async def score(body: ScoreRequest, request: Request) -> Response:
        model = service.accept(body, "embedding", "classify")
        first = [body.text_1] if isinstance(body.text_1, str) else body.text_1
        second = [body.text_2] if isinstance(body.text_2, str) else body.text_2
        work = scores(service, model, first, second, body.truncate_prompt_tokens)
        values, tokens = await while_connected(request, work)
        data = [{"index": i, "object": "score", "score": s} for i, s in enumerate(values)]
        return json_response(listed(service, model, "score", data, tokens))

    @routes.post("/rerank", summary="Documents by how well they answer a query")
    @routes.post("/v1/rerank", summary="Documents by how well they answer a query")
    @routes.post("/v2/rerank", summary="Documents by how well they answer a query")
    async def rerank(body: RerankRequest, request: Request) -> Response:
        model = service.accept(body, "embedding", "classify")
        work = scores(service, model, [body.query], body.documents, body.truncate_prompt_tokens)
        values, tokens = await while_connected(request, work)
        order = sorted(range(len(values)), key=lambda i: -values[i])[: body.top_n]
        results = [
            {
                "index": i,
                "relevance_score": values[i],
                **({"document": {"text": body.documents[i]}} if body.return_documents else {}),
            }
            for i in order
        ]
        usage = {"total_tokens": tokens}
        named = {"id": service.new_id("rerank"), "model": model.name}
        return json_response({**named, "results": results, "usage": usage})

    return routes
