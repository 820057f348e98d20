"""/v1/chat/completions"""

import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from octavo.client.output_processor import Chunk, TokenEntry
from octavo.errors import InvalidRequestError
from octavo.media.content import MediaPart
from octavo.server.answer_events import (
    Answer,
    CallArguments,
    CallBegin,
    CallBroken,
    CallEnd,
    Event,
    Text,
    Thought,
    collect,
)
from octavo.server.answer_reader import AnswerReaders
from octavo.server.body import JSONRoute
from octavo.server.event_stream import event_response, json_response, while_connected
from octavo.server.logprobs import LogprobsWriter
from octavo.server.model_formats import AnswerReader, model_formats
from octavo.server.protocol import ChatRequest, Conversation, NamedTool
from octavo.server.request_defaults import fill_in
from octavo.server.served_models import ServedModel
from octavo.server.service import MediaPrompt, Run, Service, sent_bytes
from octavo.server.tool_calls import call
from octavo.server.work_threads import size_of
from octavo.text.chat_prompt import chat_prompt
from octavo.text.media_chat import split_media


async def prompt_of(service: Service, request: Conversation) -> dict[str, Any] | MediaPrompt:
    """The prompt of a conversation, by the chat template."""
    fill_in(request, service.options)
    tokenizer, media = service.tokenizer, service.media
    if tokenizer is None:
        raise InvalidRequestError("this server has no tokenizer (--skip-tokenizer-init); use /v1/completions.")
    trusts = service.args.trust_remote_code or service.options.trust_request_chat_template
    if request.chat_template is not None and not trusts:
        raise InvalidRequestError("chat_template in a request needs a server with --trust-request-chat-template.")
    messages: Any = request.messages
    parts, options = list[MediaPart](), dict[str, Any]()
    if media is not None:
        messages, parts = await service.threads.run(size_of(messages), split_media, messages, media)
        options = {"mark": media.mark}
        service.admission.admit_media(sent_bytes(parts))
    tools = None if getattr(request, "tool_choice", None) == "none" else request.tools
    prompt = await service.threads.template(
        size_of([messages, request.documents, request.template_variables, request.chat_template]),
        chat_prompt,
        tokenizer,
        messages,
        template=request.chat_template or service.chat_template,
        add_generation_prompt=bool(request.add_generation_prompt),
        continue_final_message=bool(request.continue_final_message),
        tools=[t.model_dump(exclude_none=True) for t in tools] if tools else None,
        documents=request.documents,
        variables=request.template_variables,
        content_format=service.options.chat_template_content_format,
        **options,
    )
    made = {**prompt, "add_special_tokens": bool(request.add_special_tokens)}
    made["cache_salt"] = getattr(request, "cache_salt", None)
    if not parts:
        return made
    request.messages = messages  # the answer may take long, and what was sent is not needed for it
    made["mm_processor_kwargs"], made["media_io_kwargs"] = request.mm_processor_kwargs, request.media_io_kwargs
    return MediaPrompt(made, parts)


def _echoed(request: ChatRequest) -> str:
    """What the answer repeats of the last message, which it goes on."""
    last = request.messages[-1] if request.echo and request.messages else {}
    if last.get("role") != "assistant":
        return ""
    content = last.get("content") or ""
    parts = content if isinstance(content, list) else [{"text": content}]
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


EMPTY_FIELDS = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
"""Fields of a whole answer's message that are there also where nothing is in them, as clients of OpenAI's and vLLM's
expect them."""


class Chat:
    """One request of /v1/chat/completions."""

    def __init__(self, service: Service, request: ChatRequest, model: ServedModel) -> None:
        fill_in(request, service.options)
        self.service, self.request, self.model = service, request, model
        self.id, self.created = service.new_id("chatcmpl"), int(time.time())
        self.writer = LogprobsWriter(service.tokenizer, bool(request.return_tokens_as_token_ids))
        self.echoed = _echoed(request)
        own = list(service.tokenizer.chat_templates.values()) if service.tokenizer else []
        options, templates = service.options, (service.chat_template or "", *own)
        formats = model_formats(options.reasoning_parser, options.tool_parser, templates)
        self.readers = AnswerReaders(formats, request)
        self.forced = self.readers.forced()
        self.prompt_text = ""
        if request.tools and request.tool_choice == "auto" and options.tool_parser == "none":
            raise InvalidRequestError(
                'tool_choice="auto": this server does not look for tool calls (--tool-call-parser none). Use required '
                "or a tool's name, or start it with the format of the model's calls."
            )

    async def prepare(self) -> None:
        """Check everything before anything runs. Raises InvalidRequestError."""
        request, service = self.request, self.service
        top = request.top_logprobs or 0
        if top and not request.logprobs:
            raise InvalidRequestError("top_logprobs needs logprobs=true.")
        values: dict[str, Any] = {"logprobs": top if request.logprobs else None}
        if request.max_completion_tokens is not None and "max_tokens" not in request.given():
            values["max_tokens"] = request.max_completion_tokens
        params = request.sampling_params(service.recommended, **values)
        service.check_max_tokens(values.get("max_tokens", request.given().get("max_tokens")))
        if self.forced is not None:
            params.structured_outputs = self.forced
        service.admission.admit(1, params.n)
        prompt = await prompt_of(service, request)
        self.prompt_text = str((prompt.prompt if isinstance(prompt, MediaPrompt) else prompt).get("prompt", ""))
        if params.structured_outputs is not None and service.tokenizer is not None:
            variables = request.template_variables
            preamble = self.readers.preamble(self.prompt_text, variables, service.tokenizer)
            params.structured_outputs = dataclasses.replace(params.structured_outputs, preamble=preamble)
        self.run = Run(self.id, await service.check(prompt, params, self.model.adapter), params)
        if service.tokenizer is not None:
            self.run.shown = self.readers.shown_tokens(service.tokenizer)

    def new_reader(self) -> AnswerReader:
        """What reads one answer."""
        return self.readers.new(self.prompt_text, self.request.template_variables)

    def chunk(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model.name,
            "choices": choices,
        }

    def _logprobs(self, entries: list[TokenEntry]) -> dict[str, Any] | None:
        return self.writer.chat(entries, self.request.top_logprobs or 0) if self.request.logprobs else None

    def _about_prompt(self) -> dict[str, Any]:
        """What the request asks to be told of the prompt."""
        told = dict[str, Any]()
        if "prompt_logprobs" in self.request.given():
            told["prompt_logprobs"] = self.writer.prompt(self.run.prompt_logprobs)
        if self.request.return_token_ids:
            told["prompt_token_ids"] = self.run.prompt.token_ids
        return told

    def _ids(self, token_ids: list[int]) -> list[int] | None:
        return token_ids if self.request.return_token_ids else None

    async def whole(self) -> dict[str, Any]:
        answers = await self.service.whole(self.run, self.request.priority or 0)
        choices = [self._choice(i, a) for i, a in enumerate(answers)]
        about = {"prompt_logprobs": None, "prompt_token_ids": None, **self._about_prompt()}
        return {**self.chunk("chat.completion", choices), "usage": self.run.usage(), **about}

    def _choice(self, index: int, chunk: Chunk) -> dict[str, Any]:
        answer = collect(self.new_reader().feed(chunk.text, finished=True))
        return {
            "index": index,
            "message": self._message(answer),
            "logprobs": self._logprobs(chunk.entries),
            "finish_reason": self.finish_reason(chunk.finish_reason, bool(answer.calls)),
            "stop_reason": chunk.stop_reason,
            "token_ids": self._ids(chunk.token_ids),
        }

    def finish_reason(self, reason: str | None, has_calls: bool) -> str | None:
        """As OpenAI tells it: a tool that tool_choice names is called and has stopped, a cut stays a cut."""
        is_named = isinstance(self.request.tool_choice, NamedTool)
        return "tool_calls" if has_calls and reason == "stop" and not is_named else reason

    def _message(self, answer: Answer) -> dict[str, Any]:
        content = self.echoed + answer.content
        message: dict[str, Any] = {"role": self.service.options.response_role, "content": content, **EMPTY_FIELDS}
        if answer.thought and self.request.include_reasoning is not False:
            message |= {"reasoning": answer.thought, "reasoning_content": answer.thought}
        if answer.calls:
            message["content"] = content or None
            message["tool_calls"] = [
                call(one.name, one.arguments, one.id or self.readers.call_id(one.name, i))
                for i, one in enumerate(answer.calls)
            ]
        return message

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a stream."""
        kind, options = "chat.completion.chunk", self.request.streams
        answers = [StreamedAnswer(self) for _ in range(self.run.params.n)]
        started: set[int] = set()

        def choice(index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
            entry = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
            usage = {"usage": self.run.usage()} if options.continuous_usage_stats else {}
            return {**self.chunk(kind, [entry]), **usage}

        async with contextlib.aclosing(self.service.generate(self.run, self.request.priority or 0)) as pieces:
            async for piece in pieces:
                index, finished = piece.index, piece.finish_reason is not None
                if index not in started:
                    started.add(index)
                    about_prompt = self._about_prompt() if len(started) == 1 else {}
                    first = {"role": self.service.options.response_role, "content": self.echoed}
                    yield {**choice(index, first), **about_prompt}
                deltas = answers[index].deltas(piece.text, finished)
                logprobs, ids = self._logprobs(piece.entries) if piece.entries else None, self._ids(piece.token_ids)
                if (logprobs or ids) and not deltas:
                    deltas = [{"content": ""}]
                for i, delta in enumerate(deltas):
                    own = {} if i or ids is None else {"token_ids": ids}
                    yield choice(index, delta, logprobs=None if i else logprobs, **own)
                if finished:
                    reason = self.finish_reason(piece.finish_reason, answers[index].num_calls > 0)
                    yield choice(index, {}, finish_reason=reason, stop_reason=piece.stop_reason)
        if options.include_usage:
            yield {**self.chunk(kind, []), "usage": self.run.usage()}


class StreamedAnswer:
    """One answer of a stream, told as its parts become certain."""

    def __init__(self, chat: Chat) -> None:
        self.chat, self.reader = chat, chat.new_reader()
        self.num_calls = 0
        """Calls that are complete."""
        self._num_begun = 0

    def deltas(self, text: str, finished: bool) -> list[dict[str, Any]]:
        """What is new with this text."""
        told = (self._delta(event) for event in self.reader.feed(text, finished))
        return [delta for delta in told if delta is not None]

    def _delta(self, event: Event) -> dict[str, Any] | None:
        match event:
            case Thought(text):
                if self.chat.request.include_reasoning is False:
                    return None
                return {"reasoning": text, "reasoning_content": text}
            case Text(text):
                return {"content": text}
            case CallBegin(name, id):
                index, self._num_begun = self._num_begun, self._num_begun + 1
                return {"tool_calls": [call(name, "", id or self.chat.readers.call_id(name, index), index)]}
            case CallArguments(text):
                return {"tool_calls": [{"index": self._num_begun - 1, "function": {"arguments": text}}]}
            case CallEnd():
                self.num_calls += 1
            case CallBroken(_, rest) if rest:  # what was told of it stays
                return {"content": rest}
        return None


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=JSONRoute)

    @routes.post("/v1/chat/completions", summary="Answer a conversation")
    async def chat(body: ChatRequest, request: Request) -> Response:
        work = Chat(service, body, service.accept(body, "generate"))
        await work.prepare()
        if body.stream:
            return await event_response(request, work.events())
        return json_response(await while_connected(request, work.whole()))

    return routes
