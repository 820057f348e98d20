"""The Python interface: prompts in, outputs out, as vLLM's `LLM` has it."""

import logging
import os
from collections.abc import Sequence
from typing import Any, cast

from octavo.batch_calls import (
    Adapters,
    Priorities,
    ShowsProgress,
    each_adapter,
    each_priority,
    final_only,
    prompt_list,
)
from octavo.beam_search import beam_search
from octavo.client.transcribing import Transcriber
from octavo.config import DEFAULT_MODEL, EngineArgs, engine_args
from octavo.errors import InvalidRequestError
from octavo.llm_batches import Call
from octavo.llm_engine import LLMEngine
from octavo.llm_pooling import LLMPooling
from octavo.logs import log_to_stderr
from octavo.lora import LoRARequest
from octavo.media.fetch import MediaFetcher
from octavo.outputs import BeamSearchOutput, RequestOutput
from octavo.params import BeamSearchParams, SamplingParams
from octavo.prompts import Prompt
from octavo.text.chat_prompt import Message
from octavo.text.media_chat import media_chat_prompt
from octavo.text.template_files import given_template
from octavo.transcribe import transcribe_sounds
from octavo.transcripts import Transcript, TranscriptionParams

log = logging.getLogger("octavo")


def args_of(model: str | os.PathLike[str], options: dict[str, Any]) -> EngineArgs:
    """The arguments of LLM and AsyncLLM. What vLLM's have beside ours is said to have no effect."""
    log_to_stderr(if_unset=True)
    args, notes = engine_args(model, options)
    for note in notes:
        log.info(note)
    return args


class LLM(LLMPooling):
    """A model that answers prompts.

    Args:
        model: a folder, a .gguf file, a hub name, or `pypi:PACKAGE`; SmolLM2-135M-Instruct if left out.
        chat_template: what `chat` takes instead of the model's own: a file, Jinja text, or the name of one of its own.
        options: every field of octavo.EngineArgs. vLLM's others are accepted and said once to have no effect.

    With data_parallel_size above 1 it runs in processes of its own, which end with this object, or this process.

    Raises ConfigError, ModelNotFoundError or CheckpointError, each saying what to do.
    """

    chat_template: str | None = None
    """What `chat` takes instead of the model's own template."""

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        chat_template: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        if chat_template is not None:
            self.chat_template = given_template(chat_template)
        self._start(args_of(model, options))

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> "LLM":
        """As `from_args`."""
        return cls.from_args(engine_args)

    @classmethod
    def from_args(cls, args: EngineArgs) -> "LLM":
        """An LLM of options that are already an EngineArgs."""
        llm = cls.__new__(cls)
        llm._start(args)
        return llm

    def _start(self, args: EngineArgs) -> None:
        self.llm_engine = LLMEngine(args)
        self.requests, self.engine = self.llm_engine.requests, self.llm_engine.engine
        self._fetcher = MediaFetcher.of_options(args)
        self._begin_calls()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        prompt_token_ids: list[int] | list[list[int]] | None = None,
        use_tqdm: ShowsProgress = True,
        priority: Priorities = None,
        lora_request: Adapters = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers to prompts, in their order.

        Args:
            prompts: one or many: text, token ids, or dicts with `prompt` or `prompt_token_ids`.
            sampling_params: one for all, or one each; the model's defaults if None.
            prompt_token_ids: the older way to give token ids.
            use_tqdm: show progress, with input and output tokens a second; or what makes the bar, as tqdm does.
            priority: for all or one each, with scheduling_policy="priority"; smaller goes first.
            lora_request: an adapter for all, or for each prompt one or None. Start the engine with enable_lora=True.
            tokenization_kwargs: how texts are tokenized: add_special_tokens, truncation, max_length and so on.
            mm_processor_kwargs: settings of the model's media processor for prompts that have none of their own.

        Raises InvalidRequestError, before anything runs, if any prompt or value cannot be served.
        """
        if prompts is not None and prompt_token_ids is not None:
            raise InvalidRequestError("give prompts or prompt_token_ids, not both.")
        call = self._call(
            prompts if prompts is not None else prompt_token_ids,
            self._params_list(sampling_params),
            lora_request,
            priority,
            tokenization_kwargs,
            mm_processor_kwargs,
        )
        return cast(list[RequestOutput], self._run(call, use_tqdm, "Generating"))

    def enqueue(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: Adapters = None,
        priority: Priorities = None,
        use_tqdm: ShowsProgress = True,
        tokenization_kwargs: dict[str, Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
    ) -> list[str]:
        """Queue prompts, as `generate` has them, without computing anything; their ids. `wait_for_completion` computes.

        `use_tqdm` has no effect.
        """
        params = self._params_list(sampling_params)
        return self._enqueue(
            self._call(prompts, params, lora_request, priority, tokenization_kwargs, mm_processor_kwargs)
        )

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: ShowsProgress = True,
        lora_request: Adapters = None,
        priority: Priorities = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers to one conversation, or to each of a list of them, by the model's chat template.

        Contents may be lists of parts: {"type": "text", "text": ...} and, where the model takes them, media:
        {"type": "image_url", "image_url": {"url": ...}} (also audio_url, video_url; the URL is data:, or what
        allowed_media_domains and allowed_local_media_path let be fetched), {"type": "image_pil", "image_pil": picture},
        {"type": "input_audio", "input_audio": {"data": base64}}, and {"type": "image_embeds", "image_embeds": tensor}.
        `chat_template_content_format` says how the template gets contents: auto (as it takes them), string or openai.
        """
        prompts = self._chat_prompts(
            messages,
            template=chat_template or self.chat_template,
            content_format=chat_template_content_format,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            variables=chat_template_kwargs,
        )
        return self.generate(
            prompts,
            sampling_params,
            use_tqdm=use_tqdm,
            priority=priority,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
            mm_processor_kwargs=mm_processor_kwargs,
        )

    def enqueue_chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        **options: Any,
    ) -> list[str]:
        """Queue conversations, with the options of `chat`, without computing anything; their ids."""
        for_template = {
            "template": options.pop("chat_template", None) or self.chat_template,
            "content_format": options.pop("chat_template_content_format", "auto"),
            "variables": options.pop("chat_template_kwargs", None),
        }
        for name in ("add_generation_prompt", "continue_final_message", "tools"):
            if name in options:
                for_template[name] = options.pop(name)
        return self.enqueue(self._chat_prompts(messages, **for_template), sampling_params, **options)

    def _chat_prompts(self, messages: Any, **options: Any) -> list[Prompt]:
        """A prompt for each conversation, of one or of many, by the options of `render_chat`."""
        single = not messages or not isinstance(messages[0], (list, tuple))
        return [
            cast(
                Prompt,
                media_chat_prompt(
                    self._own_tokenizer(), conversation, self.engine.checker.media, self._fetcher, **options
                ),
            )
            for conversation in ([messages] if single else messages)
        ]

    def transcribe(
        self,
        audio: Any,
        params: TranscriptionParams | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[Transcript]:
        """What is said in one sound, or in each of a list, of any length. Needs a model that transcribes, as Whisper.

        Args:
            audio: paths, bytes of files (of films, their sound), or pairs (samples, rate).
            params: how; openai-whisper's defaults if None.
            use_tqdm: show how many seconds are done.
            lora_request: an adapter for all.

        Raises InvalidRequestError for a sound or a value that cannot be used, and for a model that does not transcribe.
        """
        sounds = list(audio) if isinstance(audio, list) else [audio]
        transcriber = Transcriber(self.engine.info, self.engine.checker)
        made = transcribe_sounds(self.requests, transcriber, sounds, params, lora_request, use_tqdm)
        return list(made.values())

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: BeamSearchParams,
        lora_request: Adapters = None,
        use_tqdm: bool = False,
        concurrency_limit: int | None = None,
        priority: Priorities = None,
    ) -> list[BeamSearchOutput]:
        """The best beams for each prompt, best first.

        Args:
            prompts: one or many, as `generate` has them.
            params: how.
            lora_request: an adapter for all, or for each prompt one or None.
            use_tqdm: show progress.
            concurrency_limit: most prompts that are searched at a time; all if None.
            priority: for all or one each, with scheduling_policy="priority"; smaller goes first.
        """
        batch = prompt_list(prompts)
        each = list(zip(batch, each_adapter(lora_request, batch), each_priority(priority, batch), strict=True))
        size = len(each) if concurrency_limit is None else concurrency_limit
        if each and (not isinstance(size, int) or size < 1):
            raise InvalidRequestError(f"concurrency_limit={concurrency_limit!r} must be a whole number of at least 1.")
        found = list[BeamSearchOutput]()
        for first in range(0, len(each), size or 1):
            found += beam_search(self.engine, self._next_tokens, each[first : first + size], params, use_tqdm)
        return found

    def _next_tokens(
        self, prompts: Sequence[Any], params: SamplingParams, priorities: Sequence[int]
    ) -> list[RequestOutput]:
        """What comes after prompts that are checked already."""
        call = Call(prompts, [final_only(params)] * len(prompts), [None] * len(prompts), priorities)
        return cast(list[RequestOutput], self._run(call, False, ""))
