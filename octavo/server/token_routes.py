"""/tokenize and /detokenize."""

from fastapi import APIRouter
from fastapi.responses import Response

from octavo.errors import InvalidRequestError
from octavo.params import SamplingParams
from octavo.server import chat_completions
from octavo.server.body import JSONRoute
from octavo.server.event_stream import json_response
from octavo.server.protocol import DetokenizeRequest, TokenizeRequest
from octavo.server.service import MediaPrompt, Service


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=JSONRoute)

    @routes.post("/tokenize", summary="A text's token ids")
    async def tokenize(body: TokenizeRequest) -> Response:
        model = service.accept(body, service.ready.info.task)
        tokenizer = service.tokenizer
        if tokenizer is None:
            raise InvalidRequestError("this server has no tokenizer (--skip-tokenizer-init).")
        if body.messages is not None and body.prompt is not None:
            raise InvalidRequestError("give a prompt or messages, not both.")
        if body.messages is not None:
            prompt = await chat_completions.prompt_of(service, body)
        elif body.prompt is not None:
            prompt = {"prompt": body.prompt, "add_special_tokens": body.add_special_tokens is not False}
        else:
            raise InvalidRequestError("give a prompt or messages.")

        def work(ids: list[int] | None, text: str, special: bool) -> tuple[list[int], list[str | None] | None]:
            ids = tokenizer.encode(text, special) if ids is None else ids
            return ids, [tokenizer.token(i) for i in ids] if body.return_token_strs else None

        if isinstance(prompt, MediaPrompt):
            checked = await service.check(prompt, SamplingParams(max_tokens=1), model.adapter)
            ids, strings = await service.threads.run(len(checked.token_ids), work, checked.token_ids, "", False)
        else:
            text = prompt["prompt"]
            ids, strings = await service.threads.run(len(text), work, None, text, prompt["add_special_tokens"])
        answer = {"count": len(ids), "max_model_len": service.ready.info.max_model_len, "tokens": ids}
        return json_response({**answer, "token_strs": strings})

    @routes.post("/detokenize", summary="The text of token ids")
    async def detokenize(body: DetokenizeRequest) -> Response:
        service.accept(body, service.ready.info.task)
        tokenizer, size = service.tokenizer, service.ready.info.vocab_size
        if tokenizer is None:
            raise InvalidRequestError("this server has no tokenizer (--skip-tokenizer-init).")

        def work() -> str:
            for token in body.tokens:
                if not 0 <= token < size and tokenizer.token(token) is None:
                    raise InvalidRequestError(
                        f"tokens holds {token}, outside this model's vocabulary (0 to {size - 1})."
                    )
            return tokenizer.decode(body.tokens, skip_special_tokens=False)

        return json_response({"prompt": await service.threads.run(len(body.tokens), work)})

    return routes


def tokenizer_info(service: Service) -> APIRouter:
    """The route that tells of the tokenizer, under the names of tokenizer_config.json."""
    routes = APIRouter(route_class=JSONRoute)

    @routes.get("/tokenizer_info", summary="What the tokenizer is, and its chat template")
    async def info() -> Response:
        tokenizer = service.tokenizer
        if tokenizer is None:
            raise InvalidRequestError("this server has no tokenizer (--skip-tokenizer-init).")
        templates = tokenizer.chat_templates
        known = {
            "tokenizer_class": type(tokenizer).__name__,
            "vocab_size": tokenizer.vocab_size,
            "model_max_length": service.ready.info.max_model_len,
            "chat_template": service.chat_template or templates.get("default"),
            **getattr(tokenizer, "special_tokens", {}),
        }
        return json_response(known)

    return routes
