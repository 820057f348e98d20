"""The engine: requests in, outputs out, a step at a time."""

import logging
import time
from collections.abc import Iterable

import msgspec

from octavo.config import EngineArgs
from octavo.engine.bad_word_tokens import BadWordTokens
from octavo.engine.engine_request import AdapterRequest, Completion, GenerationRequest, PoolingRequest, Request
from octavo.engine.kv_cache import HashChain, KVCacheManager
from octavo.engine.kv_offload import BlockOffload
from octavo.engine.messages import Failed, Loaded, Output, Pooled, Ready
from octavo.engine.request_maker import RequestMaker
from octavo.engine.scheduler import ScheduledSequence, Scheduler
from octavo.engine.sequence import Sequence, Status
from octavo.engine.speculation import speculation
from octavo.engine.step_clock import StepClock, step_budget
from octavo.errors import ConfigError, EngineDeadError, InvalidRequestError, OctavoError, RequestFailedError, failure
from octavo.executor.executor import Executor
from octavo.executor.step import SequenceResult, SequenceStart, SequenceStep, Step, StepResult
from octavo.lora import AdapterRef
from octavo.params import PoolingParams, SamplingParams
from octavo.text.checked_prompt import CheckedPrompt
from octavo.text.tokenizer import Tokenizer

log = logging.getLogger("octavo")


class Engine:
    """Continuous batching over one model. Not safe to call from several threads at a time.

    Args:
        args: the engine's options.
        executor: where the model runs.
        tokenizer: the model's; None with skip_tokenizer_init.

    Raises ConfigError for options that this model cannot follow.
    """

    def __init__(self, args: EngineArgs, executor: Executor, tokenizer: Tokenizer | None) -> None:
        self.args, self.executor, self.tokenizer = args, executor, tokenizer
        self.cache = KVCacheManager(executor.shape, self._prefix_caching())
        shape = executor.shape
        self.scheduler = Scheduler(
            self.cache,
            shape.max_sequences,
            args.max_num_batched_tokens,
            shape.max_feature_rows,
            args.max_loras,
            executor.max_steps,
            step_budget(args, executor.max_steps),
            shape.recurrent,
        )
        self.offload = self.scheduler.offload = self._offload()
        self.speculation = speculation(args)
        self.cache.most_tokens = executor.info.max_model_len
        self.cache.num_reread = int(self.speculation is not None and self.speculation.config.keeps_keys)
        self.step_clock = StepClock(self.scheduler.step_budget, self.speculation)
        max_model_len = min(executor.info.max_model_len, self.cache.longest_sequence(args.max_num_batched_tokens))
        if max_model_len < 2:
            raise ConfigError("kv_cache_memory is too little for a single token; give more.")
        if max_model_len < executor.info.max_model_len:
            log.warning(
                "requests are limited to %d tokens, not the model's %d, by the KV cache; set kv_cache_memory to more",
                max_model_len,
                executor.info.max_model_len,
            )
        self.info = msgspec.structs.replace(executor.info, max_model_len=max_model_len)
        prefix_block_size = executor.shape.block_size if self.cache.prefix_caching else 0
        self.ready = Ready(self.info, executor.shape.num_blocks, prefix_block_size, executor.rank_weight_bytes)
        self.checker = self.ready.checker(tokenizer, args.max_logprobs)
        self._new = RequestMaker(args, self.info, self.cache, self.checker)
        self._bad_words = BadWordTokens(self.checker)
        self._requests: dict[str, Request] = {}
        self._owner: dict[int, tuple[Request, Completion | None]] = {}
        self._starts: list[SequenceStart] = []
        self._ended: list[int] = []
        self._dropped_adapters: list[bytes] = []
        """What the executor does not know yet."""
        self._death: str | None = None
        self.media_seconds = 0.0
        """How long towers took so far."""

    @property
    def max_model_len(self) -> int:
        """Most tokens of a sequence that is added from now on."""
        return self._new.max_model_len

    @max_model_len.setter
    def max_model_len(self, length: int) -> None:
        self._new.max_model_len = length

    def _prefix_caching(self) -> bool:
        enabled, shape = self.args.enable_prefix_caching, self.executor.shape
        possible = not shape.recurrent and bool(shape.windows)
        if enabled and not possible:
            kept = "a state of fixed size per request, which a prefix cache cannot serve"
            kept = "nothing between steps" if self.executor.info.reads_whole else kept
            raise ConfigError(f"enable_prefix_caching=True: this model keeps {kept}. Leave the argument out.")
        return possible if enabled is None else enabled

    def _offload(self) -> BlockOffload | None:
        """What `kv_offload` and its likes ask for, where the prefix cache could find it."""
        if self.args.offload is None:
            return None
        if not self.cache.prefix_caching:
            kept = "states of fixed size" if self.executor.shape.recurrent else "nothing between steps"
            log.warning("blocks are not kept outside of the KV cache: this model keeps %s, which cannot be found", kept)
            return None
        if not self.executor.shape.offloads:
            return None
        blocks = -(-self.args.max_num_batched_tokens // self.cache.block_size) + self.scheduler.max_sequences
        return BlockOffload(self.cache, 2 * blocks * len(self.cache.windows))

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def add_request(
        self, request_id: str, prompt: CheckedPrompt, params: SamplingParams | PoolingParams, priority: int = 0
    ) -> None:
        """Queue a request, of a prompt that `checker.prompt` has checked.

        Raises InvalidRequestError, before anything runs, for one that cannot be served, and RequestFailedError for
        one that something unexpected happened to; then nothing of it stays. What takes time to be found out, such as
        whether a grammar can be used, comes as a Failed from `step`.
        """
        if request_id in self._requests:
            raise InvalidRequestError(f"request id {request_id!r} is already in use.")
        if isinstance(params, SamplingParams) and self.info.task != "generate":
            raise InvalidRequestError(f"this engine was started for task={self.info.task!r} and generates no text.")
        starts: list[SequenceStart] = []
        try:
            request = self._new.make(request_id, prompt, params, priority, starts)
            waits = isinstance(params, SamplingParams) and self._hand_over(request_id, params, starts)
        except BaseException as error:
            self._ended += [start.seq_id for start in starts]
            if isinstance(error, OctavoError):
                raise
            raise RequestFailedError(f"the request could not be prepared: {failure(error)}") from error
        self._requests[request_id] = request
        completions: list[Completion | None] = (
            [*request.completions] if isinstance(request, GenerationRequest) else [None]
        )
        for sequence, completion in zip(request.sequences, completions, strict=True):
            self._owner[sequence.seq_id] = (request, completion)
            sequence.status = Status.PREPARING
        if not waits:
            self._start(request, starts)

    def load_adapter(self, request_id: str, adapter: AdapterRef) -> None:
        """Have an adapter loaded beside the steps: a Loaded or a Failed comes from `step`. `abort` ends the waiting.

        Raises InvalidRequestError where no adapters are served, and for an id that is in use.
        """
        if request_id in self._requests:
            raise InvalidRequestError(f"request id {request_id!r} is already in use.")
        if not self.info.serves_adapters:
            raise InvalidRequestError(
                f"the adapter {adapter.name!r} cannot be loaded: start the engine with enable_lora=True."
            )
        sequence = self._new.sequence(CheckedPrompt(None, [], adapter=adapter), 0, False, HashChain())
        request = AdapterRequest(request_id, sequence, adapter.name)
        self._requests[request_id] = request
        self._owner[sequence.seq_id] = (request, None)
        sequence.status = Status.PREPARING
        self._starts.append(SequenceStart(sequence.seq_id, [], adapter=adapter))

    def drop_adapter(self, adapter: AdapterRef) -> None:
        """Give back an adapter's memory, once no request needs it any more. An unknown one is ignored."""
        self._dropped_adapters.append(adapter.digest)
        if not self._requests:  # there may be no further step for long
            self._flush()

    def adapter_names(self) -> tuple[list[str], list[str]]:
        """Names of the adapters of requests that run, and of those of which no sequence runs yet."""
        names: dict[bool, set[str]] = {True: set(), False: set()}
        for request in self._requests.values() if self.info.serves_adapters else ():
            if request.adapter_name is not None:
                names[any(s.status is Status.RUNNING for s in request.sequences)].add(request.adapter_name)
        return sorted(names[True]), sorted(names[False])

    def _hand_over(self, request_id: str, params: SamplingParams, starts: list[SequenceStart]) -> bool:
        """What of sampling values is not in a SequenceStart yet; whether the request must wait for it."""
        for start in starts if params.logits_processors else ():
            self.executor.keep_processors(start.seq_id, params.logits_processors or ())
        return self._bad_words.add(request_id, params, starts)

    def _start(self, request: Request, starts: list[SequenceStart]) -> None:
        """Tell the executor of a request's sequences; those that it need not prepare enter the schedule."""
        self._starts += starts
        if not starts[0].waits:
            for sequence in request.sequences:
                self.scheduler.add(sequence)

    def abort(self, request_ids: Iterable[str]) -> list[Output]:
        """End requests now and free what they hold. Unknown ids are ignored. The last messages of their sequences."""
        outputs: list[Output] = []
        for request_id in request_ids:
            request = self._requests.get(request_id)
            if request is None:
                continue
            if isinstance(request, GenerationRequest):
                for completion in request.completions:
                    if completion.finish_reason is None:
                        completion.finish_reason = "abort"
                        outputs.append(request.message(completion, [], []))
            self._forget(request)
        return outputs

    def finish(self, request_id: str, index: int) -> None:
        """End one of a request's sequences, whose stop string has come. Unknown ones are ignored."""
        request = self._requests.get(request_id)
        if isinstance(request, GenerationRequest) and index < len(request.completions):
            completion = request.completions[index]
            completion.finish_reason = completion.finish_reason or "stop"
            self._finish(completion.sequence)
            if request.finished:
                self._forget(request)

    def _forget(self, request: Request) -> None:
        self._bad_words.forget(request.request_id)
        for sequence in request.sequences:
            self._finish(sequence)
            self._owner.pop(sequence.seq_id, None)
        self._requests.pop(request.request_id, None)
        if not self._requests:  # there may be no further step for long
            self._flush()

    def _finish(self, sequence: Sequence) -> None:
        """A sequence is done: give back what it holds, here and in the executor."""
        if sequence.status is not Status.FINISHED:
            self.scheduler.finish(sequence)
            self._ended.append(sequence.seq_id)

    def step(self) -> list[Output]:
        """Wait for one step, have others computed meanwhile as far as the executor can, and what is new after it.

        Where steps begin early, the next is on its way when this returns, and computed while its caller tells others.

        An exception here is of the model or the machine, not of a request: no cached block is trusted after it.
        """
        outputs: list[Output] = []
        in_flight = self.scheduler.in_flight
        while len(in_flight) < self.executor.max_steps:
            scheduled = self.scheduler.schedule()
            is_idle = not scheduled and not in_flight
            complete, refused = self._bad_words.collect(is_idle) if self._bad_words.waits else ([], [])
            for starts in complete:
                self._start(self._owner[starts[0].seq_id][0], starts)
            outputs += [self._refuse(self._requests[name], reason, True) for name, reason in refused]
            if not scheduled and in_flight:
                break
            self._submit(scheduled)
        if in_flight:
            outputs += self._take_step(*self._collect())
        begins = self.executor.begins_early and len(in_flight) < self.executor.max_steps
        if begins and (scheduled := self.scheduler.schedule()):
            self._submit(scheduled)
        return outputs

    def _take_step(self, scheduled: list[ScheduledSequence], done: StepResult) -> list[Output]:
        """What is new after a step."""
        outputs: list[Output] = []
        is_sound = not any(result.non_finite for result in done.sequences)
        if self.offload is not None:
            if not is_sound:  # nothing of this step may be saved, whatever becomes of its requests
                self.cache.pool.reset()
            if done.store is not None:
                self.scheduler.loaded(self.offload.take(done.store))
        for refusal in done.refused:
            if owner := self._owner.get(refusal.seq_id):
                outputs.append(self._refuse(owner[0], refusal.error or "", refusal.is_invalid))
        for seq_id in done.ready:
            if owner := self._owner.get(seq_id):
                outputs += self._ready(owner[0], seq_id)
        outputs += self._take_results(scheduled, done)
        if not is_sound:
            outputs += self._distrust(scheduled, done.sequences)
        return outputs

    def _ready(self, request: Request, seq_id: int) -> list[Output]:
        """A sequence that was waited for enters the schedule, or has nothing more to do."""
        if isinstance(request, AdapterRequest):
            self._forget(request)
            return [Loaded(request.request_id)]
        self.scheduler.add(next(s for s in request.sequences if s.seq_id == seq_id))
        return []

    def _distrust(self, scheduled: list[ScheduledSequence], results: list[SequenceResult]) -> list[Output]:
        """Values were not finite, and were taken out of the caches: nobody may find them there, or go on with them.

        Others may have them already: blocks of a prompt that began in the same step, or rows that all layers attend to.
        Those that a step on its way computes with zeros by now have failed.
        """
        self.cache.pool.reset()
        roots = {e.sequence.chain.root for e, r in zip(scheduled, results, strict=True) if r.non_finite}
        sharing = {e.sequence.seq_id for e in scheduled if e.is_new and e.start}
        outputs: list[Output] = []
        for sequence in list(self.scheduler.running):
            if sequence.seq_id not in sharing and not (
                any(f.offset is None for f in sequence.chain.features) and sequence.chain.root in roots
            ):
                continue
            if sequence.status is not Status.RUNNING:
                continue  # refused with another of its request
            if not sequence.num_in_flight:
                self.scheduler.preempt(sequence)
            elif owner := self._owner.get(sequence.seq_id):
                reason = "a request with the same beginning computed values that are not finite; try again"
                outputs.append(self._refuse(owner[0], reason, False))
        return outputs

    def _flush(self) -> None:
        """Have the executor hear of what has ended. No request is left to which a step could give anything.

        What may be saved is, as far as there is room for it.
        """
        left: int | None = None
        while left is None or (self.offload is not None and self.offload.num_unsaved < left):
            left = 1 << 62 if self.offload is None else self.offload.num_unsaved
            self._submit([])
            while self.scheduler.in_flight:
                self._take_step(*self._collect())

    def _submit(self, scheduled: list[ScheduledSequence]) -> None:
        """Have the executor compute a step, which hears of what has started and ended too."""
        if self._death is not None:
            raise EngineDeadError(self._death)
        dropped = self.scheduler.features.take_dropped()
        steps = [self._to_step(entry) for entry in scheduled]
        work = None if self.offload is None else self.offload.take_work()
        step = Step(self._starts, steps, self._ended, dropped, self._dropped_adapters, work)
        self._starts, self._ended, self._dropped_adapters = [], [], []
        self.scheduler.submitted(scheduled)
        self.step_clock.submitted(len(self.scheduler.in_flight))
        try:
            self.executor.submit(step)
        except BaseException:
            self._lose_steps()
            if self.offload is not None:
                self.scheduler.loaded(self.offload.lost(work))
            raise

    def _collect(self) -> tuple[list[ScheduledSequence], StepResult]:
        """The oldest step that is on its way, and what it gave."""
        try:
            done = self.executor.collect()
        except BaseException as error:
            if len(self.scheduler.in_flight) > 1:  # what these give would be taken for results of later ones
                reason = f"the engine has stopped: a step failed while others were on their way: {error}"
                self._death = str(error) if isinstance(error, EngineDeadError) else reason
            self._lose_steps()
            if self._death is not None and isinstance(error, Exception):
                raise EngineDeadError(self._death) from error
            raise
        self.media_seconds += done.media_seconds
        scheduled = self.scheduler.collected()
        self.step_clock.collected(scheduled, done.media_seconds, done.draft_seconds)
        if self.speculation is not None:
            self.speculation.drafted(sum(len(result.drafts) for result in done.sequences), done.draft_seconds)
        return scheduled, done

    def _lose_steps(self) -> None:
        """The steps on their way are not computed."""
        while self.scheduler.in_flight:
            for entry in self.scheduler.collected():
                if entry.sequence.status is Status.RUNNING:
                    entry.sequence.num_computed = min(entry.sequence.num_computed, entry.start)
        self.cache.pool.reset()
        self.scheduler.features.reset()

    def _refuse(self, request: Request, reason: str, invalid: bool) -> Failed:
        self._forget(request)
        return Failed(request.request_id, reason, invalid)

    def _take_results(self, scheduled: list[ScheduledSequence], done: StepResult) -> list[Output]:
        """Hand each sequence what a step gave for it; what is new."""
        now = time.time()
        outputs: list[Output] = []
        for entry, result in zip(scheduled, done.sequences, strict=True):
            for i in entry.encodes if result.error is not None else ():
                self.scheduler.features.distrust(entry.sequence.chain.features[i])
            if (owner := self._owner.get(result.seq_id)) is not None:
                if owner[0].scheduled_time is None:
                    owner[0].scheduled_time = now
                if (message := self._take(*owner, result, entry.start)) is not None:
                    outputs.append(message)
                if self.speculation is not None and owner[1] is not None:
                    self.speculation.take(self.scheduler, entry, owner[1], result)
        for result in done.late:
            owner = self._owner.get(result.seq_id)
            if owner is not None and (message := self._take(*owner, result, 0)) is not None:
                outputs.append(message)
        return outputs

    def _to_step(self, entry: ScheduledSequence) -> SequenceStep:
        sequence = entry.sequence
        request, completion = self._owner[sequence.seq_id]
        assert sequence.blocks is not None
        start, end = entry.start, entry.start + entry.num_tokens
        chooses = completion is not None and end == len(sequence.tokens)
        next_drafts = 0
        if chooses and completion is not None and self.speculation is not None:
            next_drafts = self.speculation.next_drafts(self.scheduler, entry, completion)
        step = SequenceStep(
            seq_id=sequence.seq_id,
            row=sequence.row,
            token_ids=sequence.tokens[start:end] + entry.drafts,
            start=start,
            length=len(sequence.tokens),
            new_blocks=self.cache.take_new_blocks(sequence.blocks),
            num_cross_rows=sequence.blocks.num_cross_rows,
            is_new=entry.is_new,
            encodes=entry.encodes,
            num_drafts=len(entry.drafts),
            rewinds=sequence.rewinds,
        )
        if isinstance(request, GenerationRequest) and completion is not None:
            step.num_samples, step.next_drafts = int(chooses), next_drafts
            # Only the first sequence reports the prompt, and not again what it reported before a preemption.
            reported = request.prompt_logprobs
            step.prompt_logprobs = reported is not None and completion.index == 0 and end >= len(reported)
        return step

    def _take(
        self, request: Request, completion: Completion | None, result: SequenceResult, start: int
    ) -> Output | None:
        """Add the result of a step that began at position `start`; what is new, if anything is."""
        if isinstance(request, PoolingRequest):
            return self._pooled(request, result)
        assert completion is not None
        assert isinstance(request, GenerationRequest)
        if completion.finish_reason is not None:
            return None  # it was ended while the step was on its way
        if result.prompt_logprobs and request.prompt_logprobs is not None:
            known = len(request.prompt_logprobs) - (start + 1)
            request.prompt_logprobs += result.prompt_logprobs[max(0, known) :]
        if result.error is None and not result.token_ids:
            return None
        token_ids, last = list[int](), len(result.token_ids) - 1
        try:
            for place, token_id in enumerate(result.token_ids):
                completion.append(token_id, self.info.eos_token_ids, result.ended and place == last)
                token_ids.append(token_id)
                if completion.finish_reason is not None:
                    break  # what was chosen after a draft that ends the answer
        except BaseException as error:  # of this sequence alone
            result.error = failure(error)
        if result.error is not None and completion.finish_reason is None:
            completion.finish_reason, completion.stop_reason = "error", result.error
            completion.is_invalid = result.is_invalid
        message = request.message(completion, token_ids, result.logprobs[: len(token_ids)])
        sequence = completion.sequence
        if completion.finish_reason is not None:
            self._finish(sequence)
            if request.finished:
                self._forget(request)
        elif sequence.recompute_beyond is not None:
            self.scheduler.recompute_if_grown(sequence)
        return message

    def _pooled(self, request: PoolingRequest, result: SequenceResult) -> Output | None:
        if result.pooled is None and result.error is None:
            return None  # more of the prompt is to come
        self._forget(request)
        if result.pooled is None:
            return Failed(request.request_id, result.error or "", invalid=False)
        return Pooled(request.request_id, result.pooled.shape, result.pooled.data, request.sequence.num_cached)
