"""/v2/embed: Cohere's embeddings."""

import base64
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from octavo.params import PoolingParams
from octavo.server.body import BodyError, JSONRoute
from octavo.server.event_stream import json_response, while_connected
from octavo.server.protocol import Int, Many
from octavo.server.protocol import Request as Body
from octavo.server.served_models import ServedModel
from octavo.server.service import Service

Kind = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]


class CohereEmbedRequest(Body):
    """/v2/embed"""

    texts: Many[str] | None = None
    inputs: Many[dict[str, Any]] | None = None
    input_type: str | None = None
    embedding_types: Many[Kind] | None = None
    output_dimension: Int | None = None
    max_tokens: Int | None = Field(None, ge=1)
    truncate: Literal["NONE", "START", "END"] = "END"

    def prompts(self) -> list[str]:
        """The texts. Raises BodyError for none, and for inputs that are more than text."""
        if (self.texts is None) == (self.inputs is None):
            raise BodyError("give texts, or inputs of text.", "texts")
        texts = list(self.texts or ())
        for i, given in enumerate(self.inputs or ()):
            content = given.get("content")
            parts = [_text(part) for part in content] if isinstance(content, list) else [None]
            known = [text for text in parts if text is not None]
            if len(known) < len(parts):
                raise BodyError("only content of text is supported; for pictures see /v1/embeddings.", f"inputs[{i}]")
            texts.append("\n".join(known))
        if not texts:
            raise BodyError("there are none.", "texts")
        return texts


def _text(part: Any) -> str | None:
    """What a part of text says."""
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    return text if isinstance(text, str) else None


def as_kind(vectors: np.ndarray[Any, Any], kind: str) -> list[Any]:
    """Embeddings `[texts, size]` as Cohere has them. int8 and uint8 are of values from -1 to 1; bits of their signs."""
    if kind == "float":
        return vectors.tolist()  # type: ignore[no-any-return]
    if kind == "base64":
        return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    if kind in ("binary", "ubinary"):
        packed = np.packbits(vectors >= 0, axis=-1)
        return (packed if kind == "ubinary" else packed.astype(np.int16) - 128).tolist()  # type: ignore[no-any-return]
    scaled = np.clip(np.rint(vectors * 127), -128, 127).astype(np.int16)
    return (scaled if kind == "int8" else scaled + 128).tolist()  # type: ignore[no-any-return]


async def embedded(service: Service, model: ServedModel, body: CohereEmbedRequest) -> dict[str, Any]:
    """The answer. Raises InvalidRequestError for texts that are too long where nothing may be cut."""
    texts = body.prompts()
    cut: dict[str, Any] = {}
    if body.truncate != "NONE":
        side = "left" if body.truncate == "START" else "right"
        cut = {"truncate_prompt_tokens": body.max_tokens or -1, "truncation_side": side}
    name = body.input_type if body.input_type in service.ready.info.prompts.texts else None
    params = PoolingParams(dimensions=body.output_dimension, prompt_name=name, **cut)
    results, tokens = await service.pool_all(list(texts), params, model.adapter)
    vectors = np.stack([result.astype(np.float32) for result in results])
    kinds = list(dict.fromkeys(body.embedding_types or ["float"]))
    units = {"input_tokens": tokens}
    return {
        "id": service.new_id("embd"),
        "embeddings": {kind: as_kind(vectors, kind) for kind in kinds},
        "texts": texts,
        "meta": {"api_version": {"version": "2"}, "billed_units": units},
        "response_type": "embeddings_by_type",
    }


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=JSONRoute)

    @routes.post("/v2/embed", summary="Embed texts, by Cohere's API")
    async def embed(body: CohereEmbedRequest, request: Request) -> Response:
        model = service.accept(body, "embedding")
        return json_response(await while_connected(request, embedded(service, model, body)))

    return routes
