"""The Python interface: prompts in, outputs out, as vLLM's `LLM` has it."""

import functools
import itertools
import logging
import os
from collections.abc import Sequence
from typing import Any, cast

from tqdm import tqdm

from octavo.batch_calls import Adapters, as_tensor, each_adapter, final_only, prompt_list, same_length, with_value
from octavo.beam_search import beam_search
from octavo.client.scoring import pair_up, plan_scores
from octavo.client.transcribing import Transcriber
from octavo.config import DEFAULT_MODEL, EngineArgs, engine_args
from octavo.engine.messages import Failed
from octavo.errors import InvalidRequestError
from octavo.launch import start_requests
from octavo.logs import log_to_stderr
from octavo.lora import AdapterRef, LoRARequest
from octavo.media.fetch import MediaFetcher
from octavo.outputs import (
    BeamSearchOutput,
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    RequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)
from octavo.params import BeamSearchParams, PoolingParams, SamplingParams, recommended_sampling
from octavo.prompts import Prompt
from octavo.text.chat_prompt import Message
from octavo.text.media_chat import media_chat_prompt
from octavo.text.tokenizer import Tokenizer
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


class LLM:
    """A model that answers prompts.

    Args:
        model: a folder, a .gguf file, a hub name, or `pypi:PACKAGE`; SmolLM2-135M-Instruct if left out.
        options: every field of octavo.EngineArgs. vLLM's others are accepted and said once to have no effect.

    With data_parallel_size above 1 it runs in processes of its own, which end with this object, or this process.

    Raises ConfigError, ModelNotFoundError or CheckpointError, each saying what to do.
    """

    def __init__(self, model: str | os.PathLike[str] = DEFAULT_MODEL, **options: Any) -> None:
        self._start(args_of(model, options))

    @classmethod
    def from_args(cls, args: EngineArgs) -> "LLM":
        """An LLM of options that are already an EngineArgs."""
        llm = cls.__new__(cls)
        llm._start(args)
        return llm

    def _start(self, args: EngineArgs) -> None:
        self.requests = start_requests(args)
        self.engine = self.requests.engine
        self._fetcher = MediaFetcher.of_options(args)
        self._ids = itertools.count()
        self._added_adapters: dict[int, AdapterRef] = {}

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises InvalidRequestError with skip_tokenizer_init."""
        if self.engine.tokenizer is None:
            raise InvalidRequestError("skip_tokenizer_init=True: there is no tokenizer.")
        return self.engine.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """Sampling values that the model's generation_config.json recommends."""
        return SamplingParams(**recommended_sampling(self.engine.info.generation_config))

    def rank_weight_bytes(self) -> list[int]:
        """Bytes of weights in each process that computes the model."""
        return list(self.engine.ready.rank_weight_bytes)

    def add_lora(self, lora_request: LoRARequest) -> bool:
        """Load an adapter before a prompt needs it. It stays as long as there is room, as those of prompts do.

        Raises InvalidRequestError for one that cannot be used.
        """
        self._added_adapters[lora_request.lora_int_id] = self.requests.load_adapter(lora_request)
        return True

    def remove_lora(self, lora_id: int) -> bool:
        """Give back the memory of an adapter that `add_lora` has loaded; False for another number."""
        ref = self._added_adapters.pop(lora_id, None)
        if ref is not None:
            self.requests.client.drop_adapter(ref)
        return ref is not None

    def list_loras(self) -> set[int]:
        """The numbers of adapters that `add_lora` has loaded, and `remove_lora` has not removed."""
        return set(self._added_adapters)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        prompt_token_ids: list[int] | list[list[int]] | None = None,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
        lora_request: Adapters = None,
    ) -> list[RequestOutput]:
        """Answers to prompts, in their order.

        Args:
            prompts: one or many: text, token ids, or dicts with `prompt` or `prompt_token_ids`.
            sampling_params: one for all, or one each; the model's defaults if None.
            prompt_token_ids: the older way to give token ids.
            use_tqdm: show progress, with input and output tokens a second.
            priority: one each, with scheduling_policy="priority"; smaller goes first.
            lora_request: an adapter for all, or for each prompt one or None. Start the engine with enable_lora=True.

        Raises InvalidRequestError, before anything runs, if any prompt or value cannot be served.
        """
        if prompts is not None and prompt_token_ids is not None:
            raise InvalidRequestError("give prompts or prompt_token_ids, not both.")
        batch = prompt_list(prompts if prompts is not None else prompt_token_ids)
        params = self._params_list(sampling_params, len(batch))
        finals = [final_only(p) for p in params]
        outputs = self._run(batch, finals, each_adapter(lora_request, batch), use_tqdm, "Generating", priority)
        return cast(list[RequestOutput], outputs)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
        lora_request: Adapters = None,
    ) -> list[RequestOutput]:
        """Answers to one conversation, or to each of a list of them, by the model's chat template.

        Contents may be lists of parts: {"type": "text", "text": ...} and, where the model takes them, media:
        {"type": "image_url", "image_url": {"url": ...}} (also audio_url, video_url; the URL is data:, or what
        allowed_media_domains and allowed_local_media_path let be fetched), {"type": "image_pil", "image_pil": picture},
        {"type": "input_audio", "input_audio": {"data": base64}}, and {"type": "image_embeds", "image_embeds": tensor}.
        """
        tokenizer = self.get_tokenizer()
        single = not messages or not isinstance(messages[0], (list, tuple))
        conversations = [messages] if single else messages
        prompts = [
            media_chat_prompt(
                tokenizer,
                cast(Sequence[Message], conversation),
                self.engine.checker.media,
                self._fetcher,
                template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                variables=chat_template_kwargs,
            )
            for conversation in conversations
        ]
        for prompt in prompts if mm_processor_kwargs else ():
            prompt["mm_processor_kwargs"] = mm_processor_kwargs
        return self.generate(cast(list[Prompt], prompts), sampling_params, use_tqdm=use_tqdm, lora_request=lora_request)

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
        use_tqdm: bool = False,
        lora_request: Adapters = None,
    ) -> list[BeamSearchOutput]:
        """The best beams for each prompt, best first."""
        generate, batch = functools.partial(self.generate, use_tqdm=False), prompt_list(prompts)
        return beam_search(self.engine, generate, batch, params, use_tqdm, each_adapter(lora_request, batch))

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: Adapters = None,
        pooling_task: str | None = None,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """Pooled hidden states, scores or rewards of prompts, as tensors; `pooling_task` as PoolingParams.task."""
        pooling_params = with_value(pooling_params, task=pooling_task)
        return [as_tensor(output) for output in self._pool(prompts, pooling_params, use_tqdm, lora_request)]

    def _pool(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None,
        use_tqdm: bool,
        lora_request: Adapters,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """What `encode` gives, as arrays."""
        batch = prompt_list(prompts)
        params = pooling_params or PoolingParams()
        each = [params] * len(batch) if isinstance(params, PoolingParams) else list(params)
        same_length("pooling_params", each, batch)
        outputs = self._run(batch, each, each_adapter(lora_request, batch), use_tqdm, "Pooling")
        return cast(list[PoolingRequestOutput[PoolingOutput]], outputs)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: Adapters = None,
        prompt_name: str | None = None,
    ) -> list[EmbeddingRequestOutput]:
        """Embeddings of prompts. Start the engine with task="embedding".

        `prompt_name` says which of the model's own prompts stands before each text, as in PoolingParams.
        """
        self._need_task("embedding")
        pooling_params = with_value(pooling_params, prompt_name=prompt_name)
        return [
            EmbeddingRequestOutput(
                o.request_id,
                EmbeddingOutput(o.outputs.data.tolist()),
                o.prompt_token_ids,
                o.finished,
                o.num_cached_tokens,
            )
            for o in self._pool(prompts, pooling_params, use_tqdm, lora_request)
        ]

    def classify(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: Adapters = None,
    ) -> list[ClassificationRequestOutput]:
        """Probabilities of each class, for each prompt, or for each of its tokens. Needs a model that classifies."""
        self._need_task("classify", "token_classify")
        return [
            ClassificationRequestOutput(
                o.request_id,
                ClassificationOutput(o.outputs.data.tolist()),
                o.prompt_token_ids,
                o.finished,
                o.num_cached_tokens,
            )
            for o in self._pool(prompts, pooling_params, use_tqdm, lora_request)
        ]

    def score(
        self,
        text_1: Prompt | Sequence[Prompt],
        text_2: Prompt | Sequence[Prompt],
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[ScoringRequestOutput]:
        """How well texts go together: one with each of many, or each of many with its partner.

        An embedding engine gives the cosine of their embeddings. A classifier of one or two classes reads both texts
        as one input and gives the probability of its last class.
        """
        pairs = pair_up(prompt_list(text_1), prompt_list(text_2))
        if self.engine.info.task != "classify":
            self._need_task("embedding")
        plan = plan_scores(pairs, self.engine.ready, self.engine.checker)
        outputs = self._pool(plan.prompts, plan.params, use_tqdm, lora_request)
        scores = plan.scores([output.outputs.data for output in outputs])
        return [
            ScoringRequestOutput(
                "-".join(outputs[place].request_id for place in places),
                ScoringOutput(score),
                [token for place in places for token in outputs[place].prompt_token_ids],
                num_cached_tokens=sum(outputs[place].num_cached_tokens for place in places),
            )
            for score, places in zip(scores, plan.places, strict=True)
        ]

    def _need_task(self, *tasks: str) -> None:
        if self.engine.info.task not in tasks:
            raise InvalidRequestError(
                f'this needs LLM(..., task="{tasks[0]}") and a model for it; this engine serves '
                f"{self.engine.info.task!r}."
            )

    def _params_list(
        self, params: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if params is None:
            return [self.get_default_sampling_params()] * count
        if isinstance(params, SamplingParams):
            return [params] * count
        each = list(params)
        if len(each) != count:
            raise InvalidRequestError(
                f"there are {count} prompts but {len(each)} sampling_params; give one, or one each."
            )
        return each

    def _run(
        self,
        prompts: list[Prompt],
        params: Sequence[SamplingParams | PoolingParams],
        adapters: Sequence[LoRARequest | None],
        use_tqdm: bool,
        label: str,
        priority: Sequence[int] | None = None,
    ) -> list[Any]:
        if priority is not None:
            same_length("priority", priority, prompts)
        ids = [str(next(self._ids)) for _ in prompts]
        try:
            for i, (request_id, prompt) in enumerate(zip(ids, prompts, strict=True)):
                try:
                    self.requests.add(request_id, prompt, params[i], priority[i] if priority else 0, adapters[i])
                except InvalidRequestError as error:
                    where = f"prompt {i}: " if len(prompts) > 1 else ""
                    raise InvalidRequestError(f"{where}{error}") from error
            return self._finish(ids, use_tqdm, label)
        except BaseException:
            # Nothing of a call that failed is left behind in the engine.
            self.requests.abort(ids)
            raise

    def _finish(self, ids: list[str], use_tqdm: bool, label: str) -> list[Any]:
        bar = tqdm(total=len(ids), desc=label, disable=not use_tqdm, unit="request", dynamic_ncols=True)
        done: dict[str, Any] = {}
        read = written = 0
        while len(done) < len(ids):
            for output in self.requests.step():
                if isinstance(output, Failed):
                    where = f"prompt {ids.index(output.request_id)}: " if len(ids) > 1 else ""
                    raise output.exception(where)
                if not output.finished:
                    continue
                done[output.request_id] = output
                read += len(output.prompt_token_ids or [])
                if isinstance(output, RequestOutput):
                    written += sum(len(c.token_ids) for c in output.outputs)
                if use_tqdm:
                    elapsed = bar.format_dict["elapsed"] or 1e-9
                    bar.set_postfix_str(
                        f"in {read / elapsed:.0f} tok/s, out {written / elapsed:.0f} tok/s", refresh=False
                    )
                    bar.update(1)
        bar.close()
        return [done[i] for i in ids]
