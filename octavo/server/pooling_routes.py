"""/v1/embeddings, /pooling, /classify, /score, /rerank"""

import asyncio
import time
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from octavo.client.scoring import ScoreOptions
from octavo.server.body import JSONRoute
from octavo.server.chat_completions import prompt_of
from octavo.server.completions import prompts_of
from octavo.server.embedding_bytes import as_base64, bytes_body
from octavo.server.event_stream import json_response, while_connected
from octavo.server.pooling_protocol import (
    ClassifyRequest,
    EmbeddingRequest,
    Input,
    PoolingRequest,
    RerankRequest,
    Scored,
    ScoreRequest,
    texts_of,
)
from octavo.server.served_models import ServedModel
from octavo.server.service import Service

Array = np.ndarray[Any, Any]


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


async def inputs_of(service: Service, body: Input) -> list[Any]:
    """What a request asks to be pooled: texts, token ids, or conversations by the chat template."""
    if body.messages is not None:
        return [await prompt_of(service, one) for one in body.conversations()]
    own = {"cache_salt": body.cache_salt, "add_special_tokens": body.add_special_tokens is not False}
    given: Any = body.input
    return [{**(one if isinstance(one, dict) else {"prompt": one}), **own} for one in prompts_of(given)]


async def pooled(service: Service, model: ServedModel, body: EmbeddingRequest, kind: str) -> Response:
    """The answer to /v1/embeddings (`embd`) or /pooling (`pool`)."""
    more: dict[str, Any] = {"task": body.task, "softmax": body.softmax} if isinstance(body, PoolingRequest) else {}
    params = body.params(dimensions=body.dimensions, normalize=body.normalize, prompt_name=body.prompt_name, **more)
    prompts = await inputs_of(service, body)
    results, tokens = await service.pool_all(prompts, params, model.adapter, body.priority or 0)
    dtype, order = body.embed_dtype or "float32", body.endianness or "native"
    if body.encoding_format in ("bytes", "bytes_only"):
        about = listed(service, model, kind, [], tokens) if body.encoding_format == "bytes" else None
        content, headers = bytes_body(results, dtype, order, about)
        return Response(content, headers=headers, media_type="application/octet-stream")
    named, key = ("embedding", "embedding") if kind == "embd" else ("pooling", "data")
    is_text = body.encoding_format == "base64"
    values = [as_base64(array, dtype, order) if is_text else array.tolist() for array in results]
    data = [{"index": i, "object": named, key: value} for i, value in enumerate(values)]
    return json_response(listed(service, model, kind, data, tokens))


async def classified(service: Service, model: ServedModel, body: ClassifyRequest) -> dict[str, Any]:
    prompts = await inputs_of(service, body)
    results, tokens = await service.pool_all(prompts, body.params(), model.adapter, body.priority or 0)
    labels, data = service.ready.info.labels, []
    for i, probs in enumerate(results):
        best = int(probs.argmax())
        label = labels[best] if best < len(labels) else str(best)
        data.append({"index": i, "label": label, "probs": probs.tolist(), "num_classes": len(probs)})
    return listed(service, model, "classify", data, tokens)


async def scores(
    service: Service, model: ServedModel, body: Scored, first: list[str], second: list[str]
) -> tuple[list[float], int]:
    """How well texts go together, and how many tokens were read."""
    options = ScoreOptions(
        body.params(),
        body.max_tokens_per_query or 0,
        body.max_tokens_per_doc or 0,
        service.chat_template,
        body.template_variables,
    )
    plan = await service.plan_scores(first, second, options)
    prompts = [{"prompt": p, "cache_salt": body.cache_salt} if isinstance(p, str) else p for p in plan.prompts]
    results, tokens = await service.pool_all(prompts, plan.params, model.adapter, body.priority or 0)
    return await asyncio.to_thread(plan.scores, results), tokens  # many vectors take their time


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=JSONRoute)

    @routes.post("/v1/embeddings", summary="Embed texts")
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        model = service.accept(body, "embedding")
        return await while_connected(request, pooled(service, model, body, "embd"))

    @routes.post("/pooling", summary="Pooled hidden states, rewards or scores")
    async def pooling(body: PoolingRequest, request: Request) -> Response:
        model = service.accept(body, "embedding", "reward", "classify", "token_classify")
        return await while_connected(request, pooled(service, model, body, "pool"))

    @routes.post("/classify", summary="Classes of texts")
    async def classify(body: ClassifyRequest, request: Request) -> Response:
        model = service.accept(body, "classify")
        return json_response(await while_connected(request, classified(service, model, body)))

    @routes.post("/score", summary="How well texts go together")
    @routes.post("/v1/score", summary="How well texts go together")
    async def score(body: ScoreRequest, request: Request) -> Response:
        model = service.accept(body, "embedding", "classify")
        values, tokens = await while_connected(request, scores(service, model, body, *body.pair()))
        data = [{"index": i, "object": "score", "score": s} for i, s in enumerate(values)]
        return json_response(listed(service, model, "score", data, tokens))

    @routes.post("/rerank", summary="Documents by how well they answer a query")
    @routes.post("/v1/rerank", summary="Documents by how well they answer a query")
    @routes.post("/v2/rerank", summary="Documents by how well they answer a query")
    async def rerank(body: RerankRequest, request: Request) -> Response:
        model = service.accept(body, "embedding", "classify")
        documents = texts_of(body.documents)
        values, tokens = await while_connected(request, scores(service, model, body, texts_of(body.query), documents))
        order = sorted(range(len(values)), key=lambda i: -values[i])[: body.top_n or None]
        results = [
            {
                "index": i,
                "relevance_score": values[i],
                **({"document": {"text": documents[i]}} if body.return_documents else {}),
            }
            for i in order
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        named = {"id": service.new_id("rerank"), "model": model.name}
        return json_response({**named, "results": results, "usage": usage})

    return routes
