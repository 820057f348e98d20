"""The model in several processes, each a rank: the engine's end of them."""

import time
from collections import deque
from collections.abc import Sequence

import msgspec

from octavo.config import EngineArgs
from octavo.errors import EngineDeadError, RequestFailedError
from octavo.executor.process import Failed, Loaded, Reply, decode_reply, encode, refuse_processors, writable
from octavo.executor.rank_processes import LocalRanks, RankGroup
from octavo.executor.ray_ranks import RayRanks
from octavo.executor.step import SequenceResult, SequenceStart, Step, StepResult
from octavo.executor.store_replies import StoreReplies
from octavo.params import LogitsProcessor
from octavo.rank_place import RankPlace

GRACE = 1.0
"""Seconds that the other ranks of a failed step have to fail as well: what fails on all leaves them together."""


def load_ranks(args: EngineArgs) -> "RankExecutor":
    """Start the ranks of `args`, and have each load its part of the model.

    Raises the errors of octavo.errors for everything wrong with the model or the options.
    """
    if args.distributed_executor_backend == "ray":
        return RankExecutor(RayRanks(args), args)
    return RankExecutor(LocalRanks(args.num_ranks, args.tensor_parallel_size, args.distributed_timeout_seconds), args)


class RankExecutor:
    """An Executor whose model is computed by several ranks together.

    All of them get every step. Tokens are sampled by one of them, the output rank, which alone knows of sampling
    values, grammars and the like. If one ends, hangs or fails alone, all are ended, and what is collected after that
    is an EngineDeadError.

    Args:
        ranks: the processes, which have loaded nothing yet.
        args: the engine's options.
    """

    def __init__(self, ranks: RankGroup, args: EngineArgs) -> None:
        self._ranks, self._timeout = ranks, args.distributed_timeout_seconds
        self._places = [RankPlace(rank, ranks.size, args.tensor_parallel_size) for rank in range(ranks.size)]
        self._output = next(place.rank for place in self._places if place.is_output)
        self.max_steps, self.begins_early = self._places[0].num_stages, False
        self._replies: list[deque[Reply]] = [deque() for _ in self._places]
        """By rank, what has come and is not collected."""
        self._refused: deque[list[SequenceResult]] = deque()
        """For each step that is not collected, the sequences that could not be told of."""
        self._awaited: dict[int, set[int]] = {}
        """Of sequences with adapters, the ranks that do not have them yet."""
        self._store = StoreReplies(len(self._places))
        self._death: str | None = None
        try:
            loaded = self._load(args)
        except BaseException:
            self.close()
            raise
        self.info, self.shape = loaded[self._output].info, loaded[self._output].shape
        self.rank_weight_bytes = [each.weight_bytes for each in loaded]

    def _load(self, args: EngineArgs) -> list[Loaded]:
        for rank, load in enumerate(self._ranks.loads(args)):
            self._ranks.send(rank, encode(load))
        while not all(self._replies):  # for as long as it takes
            self._take(self._ranks.receive(None))
            for replies in self._replies:
                if replies and isinstance(replies[0], Failed):
                    raise replies[0].error()
        return [reply for replies in self._replies if isinstance(reply := replies.popleft(), Loaded)]

    def keep_processors(self, seq_id: int, processors: Sequence[LogitsProcessor]) -> None:
        refuse_processors()

    def submit(self, step: Step) -> None:
        step, refused = writable(step)
        self._refused.append(refused)
        if self._death is not None:
            return
        for start in step.starts:
            if start.adapter is not None:
                self._awaited[start.seq_id] = set(range(self._ranks.size))
        for seq_id in step.ended:
            self._awaited.pop(seq_id, None)
        messages: dict[tuple[bool, bool], bytes] = {}
        for place in self._places:
            kind = (place.is_output, place.is_last_stage) if step.starts else (True, True)
            if kind not in messages:
                starts = [_known_to(place, start) for start in step.starts]
                messages[kind] = encode(msgspec.structs.replace(step, starts=starts))
            self._ranks.send(place.rank, messages[kind])

    def collect(self) -> StepResult:
        refused = self._refused.popleft()
        self._wait()
        replies = [replies.popleft() for replies in self._replies]
        if failed := [reply for reply in replies if isinstance(reply, Failed)]:
            if len(failed) < len(replies) or any(reply.is_of_ranks for reply in failed):
                self._die(next((reply for reply in failed if not reply.is_of_ranks), failed[0]).reason)
            raise RequestFailedError(failed[-1].reason)
        results = [reply for reply in replies if isinstance(reply, StepResult)]
        result = results[self._output]
        _merge(result, results)
        result.refused = self._refusals(results) + refused
        result.ready = self._ready(results)
        result.store = self._store.join([each.store for each in results])
        return result

    def _refusals(self, results: Sequence[StepResult]) -> list[SequenceResult]:
        """What any rank refuses, each sequence once."""
        refusals = {refusal.seq_id: refusal for result in results for refusal in result.refused}
        for seq_id in refusals:
            self._awaited.pop(seq_id, None)
        return list(refusals.values())

    def _ready(self, results: Sequence[StepResult]) -> list[int]:
        """The sequences that all ranks which had to prepare something for them have called ready."""
        ready = []
        for rank, result in enumerate(results):
            for seq_id in result.ready:
                if (awaited := self._awaited.get(seq_id)) is None:
                    if rank == self._output:  # a grammar, which nobody else knows of
                        ready.append(seq_id)
                    continue
                awaited.discard(rank)
                if not awaited:
                    del self._awaited[seq_id]
                    ready.append(seq_id)
        return ready

    def _wait(self) -> None:
        """Until each rank has replied to the oldest step, or one of them will not."""
        since: float | None = None
        while self._death is None and not all(self._replies):
            if since is None and any(self._replies):
                since = time.monotonic()
            is_failed = any(replies and isinstance(replies[0], Failed) for replies in self._replies)
            limit = GRACE if is_failed else self._timeout
            came = self._ranks.receive(None if since is None else max(0.0, since + limit - time.monotonic()))
            if not came:
                missing = [str(rank) for rank, replies in enumerate(self._replies) if not replies]
                failed = next((r[0].reason for r in self._replies if r and isinstance(r[0], Failed)), None)
                self._die(failed or f"rank {', '.join(missing)} did not answer within {limit:g} seconds")
            self._take(came)
        if self._death is not None:
            raise EngineDeadError(self._death)

    def _take(self, came: Sequence[tuple[int, bytes | None]]) -> None:
        for rank, message in came:
            if message is None:
                self._die(f"rank {rank} {self._ranks.end_of(rank)}")
            else:
                self._replies[rank].append(decode_reply(message))

    def _die(self, reason: str) -> None:
        """End all ranks. Raises EngineDeadError."""
        self._death = f"the engine has stopped: {reason}."
        self.close()
        raise EngineDeadError(self._death)

    def check(self) -> None:
        """Raises EngineDeadError if a rank has ended."""
        if self._death is not None:
            raise EngineDeadError(self._death)
        self._take(self._ranks.receive(0))

    def close(self) -> None:
        self._ranks.close()


def _merge(result: StepResult, results: Sequence[StepResult]) -> None:
    """Add to the output rank's `result` what others alone know: which media could not be computed, and their time."""
    result.media_seconds = max(each.media_seconds for each in results)
    for sequence, *others in zip(result.sequences, *(each.sequences for each in results), strict=True):
        for other in others:
            if other.error is not None:  # what was chosen is of no use
                sequence.error, sequence.token_ids, sequence.logprobs = sequence.error or other.error, [], []
            if other.draft_overflowed:
                sequence.draft_overflowed = True
                sequence.token_ids, sequence.logprobs = sequence.token_ids[:1], sequence.logprobs[:1]
            sequence.non_finite = sequence.non_finite or other.non_finite


def _known_to(place: RankPlace, start: SequenceStart) -> SequenceStart:
    """What a rank is told of a sequence: how tokens are chosen is the output rank's alone, pooling the last stage's."""
    if place.is_output:
        return start
    pooling = start.pooling if place.is_last_stage else None
    return msgspec.structs.replace(start, sampling=None, stop_ids=[], bad_words=[], pooling=pooling)
