"""Conversations with a model that runs in this process."""

import dataclasses
import gc
import time
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.cli.chat.chat_model import AnswerEnd, Message, Pieces
from octavo.cli.flags import TEMPERATURE
from octavo.cli.media_files import media_part
from octavo.client.local_client import LocalRequests
from octavo.config import MEDIA_KINDS, EngineArgs
from octavo.engine.messages import Failed
from octavo.errors import InvalidRequestError, OctavoError
from octavo.launch import launch_engine
from octavo.loading.model_files import find_model
from octavo.lora import LoRARequest
from octavo.media.fetch import MediaFetcher
from octavo.media.items import read_media
from octavo.outputs import RequestOutput
from octavo.params import RequestOutputKind, SamplingParams, recommended_sampling
from octavo.server.harmony import MARKERS, HarmonyParser
from octavo.server.markers import shown_tokens
from octavo.server.model_formats import AnswerParser, AnswerReader, ModelFormats, model_formats
from octavo.server.reasoning import SWITCHES, ReasoningParser
from octavo.server.tool_parser import ToolParser
from octavo.text.media_chat import media_chat_prompt
from octavo.text.tokenizer import Tokenizer

OF_ONE_MODEL = (
    *("mmproj", "tokenizer", "revision", "tokenizer_revision", "hf_overrides", "load_format", "quantization"),
    *("mm_processor_kwargs", "limit_mm_per_prompt", "enable_lora", "max_loras", "max_lora_rank", "max_cpu_loras"),
)
"""Options that were given for one model, and are not meant for the next."""


def fetch(args: EngineArgs) -> None:
    """Have the model's files on this machine. Raises ModelNotFoundError for one that cannot be had."""
    find_model(args)


class LocalChat:
    """A ChatModel of an engine that is computed here.

    Args:
        args: the engine's options. A conversation has one request at a time, so it is one replica.
        adapters: those that may answer, the first of which does.

    Raises the errors of octavo.errors for a model that cannot be loaded, or has no chat template.
    """

    is_polled = True

    def __init__(self, args: EngineArgs, adapters: Sequence[LoRARequest] = ()) -> None:
        self._args = dataclasses.replace(args, data_parallel_size=1)
        self._adapters = {adapter.lora_name: adapter for adapter in adapters}
        self.adapter: str | None = next(iter(self._adapters), None)
        self._start(self._args)

    def _start(self, args: EngineArgs) -> None:
        engine = launch_engine(args)
        if engine.tokenizer is None or not engine.tokenizer.chat_templates:
            engine.executor.close()
            raise InvalidRequestError(
                f"{args.model} has no chat template; use `octavo generate --raw`, or a model that was made for chats."
            )
        self._args, self._engine = args, engine
        self._tokenizer: Tokenizer = engine.tokenizer
        self._requests = LocalRequests(engine)
        self._formats = model_formats("auto", "auto", tuple(engine.tokenizer.chat_templates.values()))
        self._shown = shown_tokens(self._tokenizer, markers_of(self._formats))

    @property
    def name(self) -> str:
        return self._args.model

    @property
    def context_length(self) -> int:
        return self._engine.max_model_len

    @property
    def media_kinds(self) -> Sequence[str]:
        media = self._engine.checker.media
        return () if media is None else media.info.open_kinds

    @property
    def defaults(self) -> Mapping[str, Any]:
        return {"temperature": TEMPERATURE, **recommended_sampling(self._engine.info.generation_config)}

    @property
    def adapters(self) -> Mapping[str, str]:
        return {name: adapter.lora_path for name, adapter in self._adapters.items()}

    def choose_adapter(self, name: str | None) -> None:
        self.adapter = name

    def facts(self) -> dict[str, str]:
        info = self._engine.info
        return {
            "vocabulary": f"{info.vocab_size:,} tokens",
            "weights": f"{sum(self._engine.ready.rank_weight_bytes) / 1e6:,.0f} MB",
            "takes": ", ".join(("text", *self.media_kinds)),
            "thoughts": "as the model's template tells" if self._formats.is_harmony or self._formats.reasoning else "-",
        }

    def check_media(self, paths: Mapping[str, Sequence[str]]) -> None:
        assert self._engine.checker.media is not None
        self._engine.checker.media.check({kind: list(of_kind) for kind, of_kind in paths.items()})
        for kind, of_kind in paths.items():
            read_media({kind: [media_part(kind, of_kind[-1])[kind]]})

    def answer(self, messages: Sequence[Message], values: Mapping[str, Any], thinks: bool | None) -> Pieces:
        begun = time.perf_counter()
        variables = {} if thinks is None else dict.fromkeys(SWITCHES, thinks)
        prompt = media_chat_prompt(
            self._tokenizer,
            [_with_bytes(message) for message in messages],
            self._engine.checker.media,
            MediaFetcher(),
            variables=variables,
        )
        params = SamplingParams(**{"max_tokens": None, **self.defaults, **values})
        params.output_kind = RequestOutputKind.DELTA
        adapter = None if self.adapter is None else self._adapters[self.adapter]
        checked = self._engine.checker.prompt(prompt, params, adapter)
        reader = new_reader(self._formats, str(prompt.get("prompt", "")), variables)
        self._requests.add("answer", checked, params, shown=self._shown)
        count, reason = 0, None
        try:
            while self._requests.has_work:
                for output in self._requests.step():
                    if isinstance(output, Failed):
                        raise output.exception()
                    assert isinstance(output, RequestOutput)
                    for one in output.outputs:
                        count, reason = count + len(one.token_ids), one.finish_reason
                        yield from reader.feed(one.text, one.finish_reason is not None)
                        if reason == "error":
                            raise OctavoError(str(one.stop_reason))
                yield None
        finally:
            self._requests.abort(["answer"])
        yield AnswerEnd(reason, count, time.perf_counter() - begun, len(checked.encoder_token_ids or checked.token_ids))

    def load(self, name: str) -> None:
        unchanged = {option: getattr(EngineArgs(model=name), option) for option in OF_ONE_MODEL}
        args = dataclasses.replace(self._args, model=name, **unchanged)
        fetch(args)  # what is not there is told before anything is given up
        before, adapter, adapters = self._args, self.adapter, self._adapters
        self.close()
        try:
            self._start(args)
            self.adapter, self._adapters = None, {}
        except OctavoError:
            self._start(before)
            self.adapter, self._adapters = adapter, adapters
            raise

    def close(self) -> None:
        """Give the model's memory back."""
        self._engine.executor.close()
        del self._engine, self._requests, self._tokenizer
        gc.collect()


def markers_of(formats: ModelFormats) -> list[str]:
    """What the readers of a chat without tools look for."""
    if formats.is_harmony:
        return list(MARKERS)
    tools = None if formats.is_guess else formats.tools
    return [*(formats.reasoning.markers if formats.reasoning else ()), *(tools.markers if tools else ())]


def new_reader(formats: ModelFormats, prompt: str, variables: Mapping[str, Any]) -> AnswerReader:
    """What tells thoughts, text and calls apart. No tools are offered; a model that calls one all the same is shown to.

    Args:
        prompt: the text that the chat template has made, with `variables`.
    """
    parsers: list[AnswerParser] = []
    if formats.is_harmony:
        parsers.append(HarmonyParser(prompt))
    elif formats.reasoning is not None:
        parsers.append(ReasoningParser(formats.reasoning, prompt, variables))
    if not formats.is_harmony and formats.tools is not None and not formats.is_guess:
        parsers.append(ToolParser(formats.tools, {}))
    return AnswerReader(parsers)


def _with_bytes(message: Message) -> Message:
    """A message with its files' bytes."""
    if isinstance(message["content"], str):
        return message
    parts = [media_part(p["type"], p["path"]) if p["type"] in MEDIA_KINDS else p for p in message["content"]]
    return {**message, "content": parts}
