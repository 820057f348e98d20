"""/v1/chat/completions"""

import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from octavo.client.output_processor import Chunk, TokenEntry
from octavo.errors import InvalidRequestError
from octavo.media.content import MediaPart
from octavo.server.body import JSONRoute
from octavo.server.event_stream import event_response, json_response, while_connected
from octavo.server.logprobs import LogprobsWriter
from octavo.server.protocol import ChatRequest, Conversation, StreamOptions
from octavo.server.reasoning import ReasoningParser, reasoning_markers
from octavo.server.served_models import ServedModel
from octavo.server.service import MediaPrompt, Run, Service, sent_bytes
from octavo.server.tool_calls import Calls, call
from octavo.server.tools import ToolParser, choose_parser, forced, read_forced
from octavo.server.work_threads import size_of
from octavo.text.chat_prompt import chat_prompt
from octavo.text.media_chat import split_media


async def prompt_of(service: Service, request: Conversation) -> dict[str, Any] | MediaPrompt:
    """The prompt of a conversation, by the chat template."""
    tokenizer, media = service.tokenizer, service.media
    if tokenizer is None:
        raise InvalidRequestError("this server has no tokenizer (--skip-tokenizer-init); use /v1/completions.")
    if request.chat_template is not None and not service.args.trust_remote_code:
        raise InvalidRequestError("chat_template in a request needs a server with --trust-remote-code.")
    messages: Any = request.messages
    parts, options = list[MediaPart](), dict[str, Any]()
    if media is not None:
        messages, parts = await service.threads.run(size_of(messages), split_media, messages, media)
        options = {"mark": media.mark}
        service.admission.admit_media(sent_bytes(parts))
    tools = None if getattr(request, "tool_choice", None) == "none" else request.tools
    prompt = await service.threads.template(
        size_of([messages, request.documents, request.chat_template_kwargs, request.chat_template]),
        chat_prompt,
        tokenizer,
        messages,
        template=request.chat_template or service.chat_template,
        add_generation_prompt=bool(request.add_generation_prompt),
        continue_final_message=bool(request.continue_final_message),
        tools=[t.model_dump(exclude_none=True) for t in tools] if tools else None,
        documents=request.documents,
        variables=request.chat_template_kwargs,
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


class Chat:
    """One request of /v1/chat/completions."""

    def __init__(self, service: Service, request: ChatRequest, model: ServedModel) -> None:
        self.service, self.request, self.model = service, request, model
        self.id, self.created = service.new_id("chatcmpl"), int(time.time())
        self.writer = LogprobsWriter(service.tokenizer, bool(request.return_tokens_as_token_ids))
        self.forced = forced(request)
        self.echoed = _echoed(request)
        self.parser: type[ToolParser] | None = None
        own = list(service.tokenizer.chat_templates.values()) if service.tokenizer else []
        self.markers = reasoning_markers(service.options.reasoning_parser, [service.chat_template or "", *own])
        self.prompt_text = ""
        if request.tools and request.tool_choice in (None, "auto"):
            templates = list(service.tokenizer.chat_templates.values()) if service.tokenizer else []
            self.parser = choose_parser(service.options.tool_parser, [service.chat_template or "", *templates])
            if self.parser is None and request.tool_choice == "auto":
                raise InvalidRequestError(
                    'tool_choice="auto": the format of this model\'s tool calls is unknown. Start the server with '
                    "--tool-parser, or use required or a tool's name."
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
        if self.forced is not None:
            params.structured_outputs = self.forced
        service.admission.admit(1, params.n)
        prompt = await prompt_of(service, request)
        self.prompt_text = str((prompt.prompt if isinstance(prompt, MediaPrompt) else prompt).get("prompt", ""))
        self.run = Run(self.id, await service.check(prompt, params, self.model.adapter), params)
        if self.parser is not None and service.tokenizer is not None:
            self.run.shown = self.parser.shown_tokens(service.tokenizer)

    def new_reasoning(self) -> ReasoningParser | None:
        """What reads the thought of one answer. A forced answer has none."""
        if self.markers is None or self.forced is not None:
            return None
        return ReasoningParser(self.markers, self.prompt_text)

    def new_parser(self) -> ToolParser | None:
        """What reads the tool calls of one answer."""
        if self.parser is None:
            return None
        tools = [tool.function.name for tool in self.request.tools or []]
        return self.parser(tools, max_calls=1 if self.request.parallel_tool_calls is False else None)

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

    def _prompt_logprobs(self) -> dict[str, Any]:
        if "prompt_logprobs" not in self.request.given():
            return {}
        return {"prompt_logprobs": self.writer.prompt(self.run.prompt_logprobs)}

    async def whole(self) -> dict[str, Any]:
        answers = await self.service.whole(self.run, self.request.priority or 0)
        choices = [self._choice(i, a) for i, a in enumerate(answers)]
        return {**self.chunk("chat.completion", choices), "usage": self.run.usage(), **self._prompt_logprobs()}

    def _choice(self, index: int, answer: Chunk) -> dict[str, Any]:
        thought, content, calls = "", answer.text, Calls()
        if reasoning := self.new_reasoning():
            thought, content = reasoning.feed(content, finished=True)
        if self.forced is not None:
            calls = read_forced(self.request, answer.text)
            content = "" if calls else content
        elif parser := self.new_parser():
            content, calls = parser.feed(content, finished=True)
        content = self.echoed + content
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if thought:
            message |= {"reasoning": thought, "reasoning_content": thought}
        finish = answer.finish_reason
        if calls:
            message["content"] = content or None
            message["tool_calls"] = [call(name, arguments) for name, arguments in calls]
            finish = "tool_calls" if finish == "stop" else finish
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(answer.entries),
            "finish_reason": finish,
            "stop_reason": answer.stop_reason,
        }

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a stream."""
        kind, options = "chat.completion.chunk", self.request.stream_options or StreamOptions()
        parsers = [self.new_parser() for _ in range(self.run.params.n)]
        reasonings = [self.new_reasoning() for _ in parsers]
        texts: list[list[str]] = [[] for _ in parsers]
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
                    about_prompt = self._prompt_logprobs() if len(started) == 1 else {}
                    yield {**choice(index, {"role": "assistant", "content": self.echoed}), **about_prompt}
                content, calls, parser = piece.text, Calls(), parsers[index]
                if (reasoning := reasonings[index]) is not None:
                    thought, content = reasoning.feed(content, finished)
                    if thought:
                        yield choice(index, {"reasoning": thought, "reasoning_content": thought})
                if self.forced is not None:
                    texts[index].append(content)
                    whole = "".join(texts[index]) if finished else ""
                    calls = read_forced(self.request, whole) if finished else calls
                    content = "" if calls else whole
                elif parser is not None:
                    content, calls = parser.feed(content, finished)
                logprobs = self._logprobs(piece.entries) if piece.entries else None
                if content or logprobs:
                    yield choice(index, {"content": content}, logprobs=logprobs)
                if calls:
                    first = parser.num_calls - len(calls) if parser is not None else 0
                    tool_calls = [call(name, arguments, first + i) for i, (name, arguments) in enumerate(calls)]
                    yield choice(index, {"tool_calls": tool_calls})
                if finished:
                    called = bool(calls) or (parser is not None and parser.num_calls > 0)
                    reason = "tool_calls" if called and piece.finish_reason == "stop" else piece.finish_reason
                    yield choice(index, {}, finish_reason=reason, stop_reason=piece.stop_reason)
        if options.include_usage:
            yield {**self.chunk(kind, []), "usage": self.run.usage()}


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
