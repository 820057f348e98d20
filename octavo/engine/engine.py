"""The engine: requests in, outputs out, a step at a time."""

import logging
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from octavo.config import EngineArgs
from octavo.engine.kv_cache import HashChain, KVCacheManager
from octavo.engine.pooling import Pooling
from octavo.engine.preparing import Preparing
from octavo.engine.request import Completion, GenerationRequest, PoolingRequest, Request
from octavo.engine.scheduler import ScheduledSequence, Scheduler
from octavo.engine.sequence import Sequence, Status
from octavo.errors import ConfigError, InvalidRequestError, OctavoError, RequestFailedError, failure
from octavo.executor.grammar import GrammarCompiler
from octavo.executor.runner import ModelRunner
from octavo.executor.sampling_state import SamplingState, mix
from octavo.executor.step import SequenceResult, SequenceStep
from octavo.loading.model import LoadedModel, load_model
from octavo.outputs import PoolingOutput, PoolingRequestOutput, RequestMetrics, RequestOutput
from octavo.params import PoolingParams, SamplingParams
from octavo.text.detokenizer import TextStream
from octavo.text.inputs import CheckedPrompt, EncoderInput, InputChecker

log = logging.getLogger("octavo")

Output = RequestOutput | PoolingRequestOutput[PoolingOutput]


@dataclass
class FailedRequest:
    """A request that came to an end without an answer."""

    request_id: str
    error: str
    invalid: bool = False
    """Whether the request itself was wrong: an InvalidRequestError."""
    finished: bool = True


class Engine:
    """Continuous batching over one model. Not safe to call from several threads at a time.

    Raises the errors of octavo.errors at construction for everything wrong with the model or the options.
    """

    def __init__(self, args: EngineArgs) -> None:
        self.args = args
        loaded = load_model(args)
        self.tokenizer = loaded.tokenizer
        self.generates = loaded.task == "generate"
        self.eos_token_ids = loaded.eos_token_ids
        self.generation_config = loaded.generation_config
        self.task, self.labels = loaded.task, loaded.labels
        self.pooling = Pooling(loaded.task, loaded.model, args.override_pooler_config, loaded.pooling)
        self.vocab_size: int = loaded.model.vocab_size
        self._long_rope_threshold = loaded.model.long_rope_threshold
        self.runner = ModelRunner(loaded, args)
        self.cache = KVCacheManager(self.runner.shape, self._prefix_caching())
        self.scheduler = Scheduler(self.cache, self.runner.shape.max_sequences, args.max_num_batched_tokens)
        self.max_model_len = min(loaded.max_model_len, self.cache.longest_sequence(args.max_num_batched_tokens))
        if self.max_model_len < 2:
            raise ConfigError("kv_cache_memory is too little for a single token; give more.")
        if self.max_model_len < loaded.max_model_len:
            log.warning(
                "requests are limited to %d tokens, not the model's %d, by the KV cache; set kv_cache_memory to more",
                self.max_model_len,
                loaded.max_model_len,
            )
        self.checker = InputChecker(
            self.tokenizer, self.vocab_size, self.max_model_len, args.max_logprobs, self._encoder_input(loaded)
        )
        grammars = GrammarCompiler(self.tokenizer, self.vocab_size, self.eos_token_ids)
        self.preparing = Preparing(grammars, self.checker)
        self._requests: dict[str, Request] = {}
        self._owner: dict[int, tuple[Request, Completion | None]] = {}
        self._last_seq_id = 0
        self._random = random.Random(args.seed)

    def _encoder_input(self, loaded: LoadedModel) -> EncoderInput | None:
        if loaded.model.encoder is None:
            return None
        return EncoderInput(self.max_model_len, loaded.decoder_start_token_id)

    def _prefix_caching(self) -> bool:
        wanted, shape = self.args.enable_prefix_caching, self.runner.shape
        possible = not shape.recurrent and bool(shape.windows)
        if wanted and not possible:
            raise ConfigError(
                "enable_prefix_caching=True: this model keeps a state of fixed size per request, which a prefix cache "
                "cannot serve. Leave the argument out."
            )
        return possible if wanted is None else wanted

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def add_request(
        self, request_id: str, prompt: Any, params: SamplingParams | PoolingParams, priority: int = 0
    ) -> None:
        """Queue a request, of a prompt or one that `checker.prompt` has checked.

        Raises InvalidRequestError, before anything runs, for one that cannot be served, and RequestFailedError for
        one that something unexpected happened to; then nothing of it stays. What takes time to be found out, such as
        whether a grammar can be used, comes as a FailedRequest from `step`.
        """
        if request_id in self._requests:
            raise InvalidRequestError(f"request id {request_id!r} is already in use.")
        if isinstance(params, SamplingParams) and not self.generates:
            raise InvalidRequestError(f"this engine was started for task={self.task!r} and generates no text.")
        try:
            request = self._request(request_id, prompt, params, priority)
            waits = isinstance(request, GenerationRequest) and self.preparing.add(request)
        except OctavoError:
            raise
        except BaseException as error:
            raise RequestFailedError(f"the request could not be prepared: {failure(error)}") from error
        self._requests[request_id] = request
        completions: list[Completion | None] = (
            [*request.completions] if isinstance(request, GenerationRequest) else [None]
        )
        for sequence, completion in zip(request.sequences, completions, strict=True):
            self._owner[sequence.seq_id] = (request, completion)
            if waits:
                sequence.status = Status.PREPARING
            else:
                self.scheduler.add(sequence)

    def _request(self, request_id: str, prompt: Any, params: SamplingParams | PoolingParams, priority: int) -> Request:
        """All that may fail of adding a request; nothing else knows of it yet."""
        checked = prompt if isinstance(prompt, CheckedPrompt) else self.checker.prompt(prompt, params)
        self.checker.length(checked.token_ids, params)  # who checked it may not know this engine's memory
        priority = priority if self.args.scheduling_policy == "priority" else 0
        if isinstance(params, SamplingParams):
            return self._generation(request_id, checked, params, priority)
        return self._pooling(request_id, checked, params, priority)

    def _sequence(self, checked: CheckedPrompt, priority: int, read_prefix_cache: bool, chain: HashChain) -> Sequence:
        self._last_seq_id += 1
        return Sequence(
            self._last_seq_id,
            list(checked.token_ids),
            priority,
            read_prefix_cache,
            checked.encoder_token_ids,
            replace(chain, hashes=list(chain.hashes)),
        )

    def _chain(self, checked: CheckedPrompt) -> HashChain:
        """The prompt's hashes for the prefix cache, computed once for all of a request's sequences."""
        chain = HashChain(checked.cache_salt, self._is_long(checked.token_ids), checked.encoder_token_ids)
        if self.cache.prefix_caching:
            chain.extend(checked.token_ids, self.cache.block_size)
        return chain

    def _generation(
        self, request_id: str, checked: CheckedPrompt, params: SamplingParams, priority: int
    ) -> GenerationRequest:
        self.checker.sampling(params)
        params = params.clone()
        if params.num_sequences > params.n and params.logprobs is None:
            params.logprobs = 0  # best_of ranks by log-probability
        eos = frozenset() if params.ignore_eos else self.eos_token_ids
        room = self.max_model_len - len(checked.token_ids)
        read = params.prompt_logprobs is None and not params.skip_reading_prefix_cache
        seed = self._random.getrandbits(64) if params.seed is None else params.seed
        request = GenerationRequest(request_id, checked, params, [], RequestMetrics(arrival_time=time.time()))
        if params.prompt_logprobs is not None:
            request.prompt_logprobs = [None]
        chain = self._chain(checked)
        for index in range(params.num_sequences):
            sequence = self._sequence(checked, priority, read, chain)
            state = SamplingState(
                params,
                mix(seed, index),
                checked.token_ids,
                eos | set(params.stop_token_ids or []),
            )
            stream = (
                TextStream(self.tokenizer, checked.token_ids, params)
                if params.detokenize and self.tokenizer is not None
                else None
            )
            request.completions.append(Completion(index, sequence, state, min(params.max_tokens or room, room), stream))
        return request

    def _pooling(self, request_id: str, checked: CheckedPrompt, params: PoolingParams, priority: int) -> PoolingRequest:
        pooler = self.pooling.pooler(params)
        sequence = self._sequence(checked, priority, not pooler.needs_every_token, self._chain(checked))
        return PoolingRequest(
            request_id, checked.token_ids, params, sequence, pooler, RequestMetrics(arrival_time=time.time())
        )

    def abort(self, request_ids: Iterable[str]) -> list[Output | FailedRequest]:
        """End requests now and free what they hold. Unknown ids are ignored. Their last outputs."""
        outputs: list[Output | FailedRequest] = []
        for request_id in request_ids:
            request = self._requests.get(request_id)
            if request is None:
                continue
            if isinstance(request, GenerationRequest):
                for completion in request.completions:
                    completion.finish_reason = completion.finish_reason or "abort"
                if output := self._generated(request):
                    outputs.append(output)
            self._forget(request)
        return outputs

    def _forget(self, request: Request) -> None:
        if isinstance(request, GenerationRequest):
            self.preparing.forget(request)
        for sequence in request.sequences:
            self.scheduler.finish(sequence)
            self._owner.pop(sequence.seq_id, None)
        self._requests.pop(request.request_id, None)

    def step(self) -> list[Output | FailedRequest]:
        """Compute one step, and the outputs that are due after it.

        An exception here is of the model or the machine, not of a request: no cached block is trusted after it.
        """
        failed: list[Output | FailedRequest] = list(self._prepare())
        touched: dict[str, Request] = {}
        self._take_late(touched)
        scheduled = self.scheduler.schedule()
        try:
            results = self.runner.execute([self._to_step(entry) for entry in scheduled]) if scheduled else []
        except BaseException:
            self.cache.pool.reset()
            raise
        if any(r.non_finite for r in results):  # nobody may find in the caches what was taken out
            self.cache.pool.reset()
        now = time.time()
        for entry, result in zip(scheduled, results, strict=True):
            request, completion = self._owner[entry.sequence.seq_id]
            start = entry.sequence.num_computed
            entry.sequence.num_computed += entry.num_tokens
            if request.metrics.first_scheduled_time is None:
                request.metrics.first_scheduled_time = now
            if completion is None:
                assert isinstance(request, PoolingRequest)
                request.error, request.done = result.error, result.pooled is not None or result.error is not None
                if request.done:
                    touched[request.request_id] = request
            elif self._take(request, completion, result, start, now):
                touched[request.request_id] = request
            elif result.is_late:
                self.preparing.wait_for_mask(completion)
        pooled = {self._owner[s.sequence.seq_id][0].request_id: r for s, r in zip(scheduled, results, strict=True)}
        return failed + [o for r in touched.values() if (o := self._output(r, pooled.get(r.request_id))) is not None]

    def _prepare(self) -> list[FailedRequest]:
        """Let requests into the schedule that are ready for it; those that cannot be."""
        ready, refused = self.preparing.collect(not self.scheduler.can_go_on)
        for request in ready:
            for sequence in request.sequences:
                self.scheduler.add(sequence)
        for request, _ in refused:
            self._forget(request)
        return [FailedRequest(request.request_id, reason, invalid=True) for request, reason in refused]

    def _take_late(self, touched: dict[str, Request]) -> None:
        """Add the tokens that waited for a mask which is there now."""
        completions = self.preparing.take_on_time()
        if not completions:
            return
        now = time.time()
        results = self.runner.sample_late([c.state for c in completions])
        for completion, result in zip(completions, results, strict=True):
            request, _ = self._owner[completion.sequence.seq_id]
            if self._take(request, completion, result, 0, now):
                touched[request.request_id] = request

    def _to_step(self, entry: ScheduledSequence) -> SequenceStep:
        sequence = entry.sequence
        request, completion = self._owner[sequence.seq_id]
        assert sequence.blocks is not None
        start, end = sequence.num_computed, sequence.num_computed + entry.num_tokens
        done = end == len(sequence.tokens)
        step = SequenceStep(
            row=sequence.row,
            token_ids=sequence.tokens[start:end],
            start=start,
            length=len(sequence.tokens),
            new_blocks=self.cache.take_new_blocks(sequence.blocks),
            is_new=entry.is_new,
            encoder_tokens=sequence.encoder_tokens,
        )
        if isinstance(request, PoolingRequest):
            if entry.is_new and sequence.num_preemptions:
                request.pooler.restart()
            step.pooler, step.pool_finishes = request.pooler, done
            return step
        assert completion is not None
        step.sampling = completion.state if done else None
        # Only the first sequence reports the prompt, and not again what it reported before a preemption.
        if request.prompt_logprobs is not None and completion.index == 0 and end >= len(request.prompt_logprobs):
            step.prompt_logprobs = request.params.prompt_logprobs
            step.prompt_targets = request.prompt_token_ids[start + 1 : end + 1]
        return step

    def _take(self, request: Request, completion: Completion, result: SequenceResult, start: int, now: float) -> bool:
        """Add the result of a step that began at position `start`; whether there is something new to tell."""
        assert isinstance(request, GenerationRequest)
        if result.error is None:
            try:
                if not self._append(request, completion, result, start):
                    return False
            except BaseException as error:  # the grammar's, the tokenizer's or the text's: of this sequence alone
                result.error = failure(error)
        if result.error is not None:
            completion.finish_reason, completion.stop_reason = "error", result.error
            completion.is_invalid = result.is_invalid
        request.metrics.first_token_time = request.metrics.first_token_time or now
        request.metrics.last_token_time = now
        sequence = completion.sequence
        if completion.finish_reason is not None:
            self.scheduler.finish(sequence)
        elif self._long_rope_threshold is not None and len(sequence.tokens) == self._long_rope_threshold + 1:
            sequence.chain = replace(sequence.chain, long_rope=True, hashes=[])
            self.scheduler.preempt(sequence)  # all of its keys turn anew
        return True

    def _append(self, request: GenerationRequest, completion: Completion, result: SequenceResult, start: int) -> bool:
        """Add a step's log-probabilities of the prompt and its token; whether there was a token."""
        decodes = self.tokenizer is not None and request.params.detokenize
        if result.prompt_logprobs and request.prompt_logprobs is not None:
            known = len(request.prompt_logprobs) - (start + 1)
            for entries in result.prompt_logprobs[max(0, known) :]:
                if self.tokenizer is not None and decodes:
                    request.decode_logprobs(self.tokenizer, entries)
                request.prompt_logprobs.append(entries)
        if result.token_id is None:
            return False
        if result.logprobs is not None and self.tokenizer is not None and decodes:
            request.decode_logprobs(self.tokenizer, result.logprobs)
        completion.append(result.token_id, result.logprobs, self.eos_token_ids)
        return True

    def _is_long(self, tokens: list[int]) -> bool:
        """Whether a sequence of these tokens is computed with the long table of LongRoPE."""
        return self._long_rope_threshold is not None and len(tokens) > self._long_rope_threshold

    def _output(self, request: Request, result: SequenceResult | None) -> Output | FailedRequest | None:
        if isinstance(request, GenerationRequest):
            output = self._generated(request)
            if request.finished:
                self._forget(request)
            return output
        self._forget(request)
        if request.error is not None or result is None or result.pooled is None:
            return FailedRequest(request.request_id, request.error or "no result")
        return PoolingRequestOutput(
            request_id=request.request_id,
            outputs=PoolingOutput(result.pooled),
            prompt_token_ids=request.prompt_token_ids,
            num_cached_tokens=request.sequence.num_cached,
        )

    def _generated(self, request: GenerationRequest) -> RequestOutput | FailedRequest | None:
        """The output that is due now; a request whose output cannot be made has failed, and is forgotten."""
        try:
            return request.output()
        except BaseException as error:
            self._forget(request)
            return FailedRequest(request.request_id, failure(error))
