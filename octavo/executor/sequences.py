"""What lives in the executor by sequence, and what sequences wait for beside the model: grammars, masks, long lists.

Grammars are made ready and masks found in processes beside this one, the automata of long lists of words in a thread. A
sequence is called ready once both are there. One whose mask is late keeps its logits and leaves out steps, while all
others go on. Which tokens come does not depend on any of this: only when they do.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.errors import InvalidRequestError, OctavoError, failure
from octavo.executor.adapter_slots import Adapters
from octavo.executor.bad_words import BadWords
from octavo.executor.grammar import GrammarCompiler, GrammarSession
from octavo.executor.pooling import Pooling
from octavo.executor.sampling_state import SamplingState, mix
from octavo.executor.step import SequenceResult, SequenceStart
from octavo.params import LogitsProcessor
from octavo.parts.pooler import AnyPooler

IDLE = 0.01
"""Seconds to wait where nothing else can be computed."""
FEW_TOKENS = 2000
"""Tokens of bad words whose automaton is made at once: a thread would take longer."""


@dataclass(eq=False, slots=True)
class SequenceState:
    """One sequence, from its SequenceStart to its end."""

    start: SequenceStart
    positions: "np.ndarray[Any, np.dtype[np.int64]] | None" = None
    """[axes, tokens] of the prompt, where they are not 0, 1, 2, ..."""
    offset: int = 0
    """What is added to a later token's number to get its position, on every axis."""
    sampling: SamplingState | None = None
    pooler: AnyPooler | None = None
    has_adapter: bool = False
    """Whether its adapter is kept for it."""
    error: str | None = None
    """Why it cannot be computed."""
    length: int = 0
    """Tokens that it had in the last step that was to choose another one."""

    @property
    def waits_for_token(self) -> bool:
        """Whether that one is still to be chosen.

        It may have been already: late, when the sequence had been preempted and the step that computes it anew was on
        its way.
        """
        if self.sampling is None:
            return False
        return self.length == len(self.start.prompt_token_ids) + len(self.sampling.output_token_ids)


@dataclass(eq=False, slots=True)
class _Shared:
    """What the sequences of one request share, and those of them that have not ended."""

    session: GrammarSession | None
    bad_words: "Future[BadWords] | BadWords"
    alive: set[int]


class SequenceStates:
    """All sequences that the executor knows.

    Args:
        grammars: makes grammars.
        pooling: makes the pooler of each request.
        adapters: has those of sequences; None where none are served.
    """

    def __init__(self, grammars: GrammarCompiler, pooling: Pooling, adapters: Adapters | None = None) -> None:
        self._grammars, self._pooling, self._adapters = grammars, pooling, adapters
        self._states: dict[int, SequenceState] = {}
        self._shared: dict[int, _Shared] = {}
        """By the id of a request's first sequence."""
        self._waiting: dict[int, SequenceState] = {}
        self._late: dict[int, SequenceState] = {}
        self._threads: ThreadPoolExecutor | None = None

    def __getitem__(self, seq_id: int) -> SequenceState:
        return self._states[seq_id]

    def start(self, start: SequenceStart, processors: Sequence[LogitsProcessor] = ()) -> SequenceResult | None:
        """Begin with a sequence; the reason if it cannot be computed."""
        state = self._states[start.seq_id] = SequenceState(start)
        if start.positions is not None:
            state.positions = np.frombuffer(start.positions.data, np.int64).reshape(start.positions.axes, -1)
            state.offset = int(state.positions.max()) + 1 - len(start.prompt_token_ids)
        try:
            self._prepare(state, processors)
        except BaseException as error:  # of this request alone
            reason = failure(error)
            state.error = reason if isinstance(error, OctavoError) else f"the request could not be prepared: {reason}"
            return SequenceResult(start.seq_id, error=state.error, is_invalid=isinstance(error, InvalidRequestError))
        return None

    def _prepare(self, state: SequenceState, processors: Sequence[LogitsProcessor]) -> None:
        start = state.start
        if start.adapter is not None:
            if self._adapters is None:
                raise InvalidRequestError("adapters are not served; start the engine with enable_lora=True.")
            self._adapters.begin(start.adapter)
            state.has_adapter = True
            self._waiting[start.seq_id] = state
        if start.pooling is not None:
            state.pooler = self._pooling.pooler(start.pooling, start.unpooled)
        if start.sampling is None:
            return
        params = start.sampling
        if processors:
            params = params.clone()
            params.logits_processors = list(processors)
        sampling = SamplingState(
            params, mix(start.seed, start.index), start.prompt_token_ids, frozenset(start.stop_ids)
        )
        if start.is_constrained:
            shared = self._share(start)
            if shared.session is not None:
                sampling.grammar = shared.session.grammars[start.index]
            self._waiting[start.seq_id] = state
        state.sampling = sampling

    def _share(self, start: SequenceStart) -> _Shared:
        first = start.seq_id - start.index
        shared = self._shared.get(first)
        if shared is None:
            asked = None if start.sampling is None else start.sampling.structured_outputs
            session = None if asked is None else self._grammars.compile(asked, start.count)
            shared = self._shared[first] = _Shared(session, self._automaton(start.bad_words), set())
        shared.alive.add(start.seq_id)
        return shared

    def _automaton(self, words: list[list[int]]) -> "Future[BadWords] | BadWords":
        if sum(map(len, words)) <= FEW_TOKENS:
            return BadWords(words)
        self._threads = self._threads or ThreadPoolExecutor(1, thread_name_prefix="octavo-words")
        return self._threads.submit(BadWords, words)

    def end(self, seq_ids: Iterable[int]) -> None:
        """Forget sequences; unknown ones are ignored."""
        for seq_id in seq_ids:
            if (state := self._states.pop(seq_id, None)) is None:
                continue
            self._waiting.pop(seq_id, None)
            self._late.pop(seq_id, None)
            if state.sampling is not None:
                state.sampling.ended = True
            if self._adapters is not None and state.has_adapter and state.start.adapter is not None:
                self._adapters.end(state.start.adapter)
            first = seq_id - state.start.index
            if shared := self._shared.get(first):
                shared.alive.discard(seq_id)
                if not shared.alive:
                    del self._shared[first]
                    if shared.session is not None:
                        shared.session.close()

    def keep_late(self, states: Iterable[SequenceState]) -> None:
        """Of the sequences of a step, note those whose mask was not there, and whose logits are kept."""
        if self._shared:
            late = (s for s in states if s.sampling is not None and s.sampling.late_logits is not None)
            self._late |= {s.start.seq_id: s for s in late}

    @property
    def waits(self) -> bool:
        """Whether a sequence waits for something."""
        return bool(self._waiting or self._late)

    def collect(self, is_idle: bool) -> tuple[list[int], list[SequenceResult]]:
        """Sequences that have become ready, and those that cannot be computed.

        Takes what has come, and where the executor `is_idle` waits shortly for something.
        """
        shared = {id(s): s for state in self._waiting.values() if (s := self._shared_of(state))}
        sessions = {s.session for s in shared.values() if s.session is not None}
        samplings = [state.sampling for state in self._late.values() if state.sampling is not None]
        sessions |= {s.grammar.session for s in samplings if s.grammar is not None}
        for session in sessions:
            session.slow_down()
        if sessions:
            self._grammars.wait(sessions, IDLE if is_idle else 0, until_first=True)
        elif is_idle and shared:
            wait([s.bad_words for s in shared.values() if isinstance(s.bad_words, Future)], timeout=IDLE)
        elif is_idle and self._adapters is not None:
            self._adapters.wait([a for s in self._waiting.values() if (a := s.start.adapter) is not None], IDLE)
        return self._prepared()

    def _shared_of(self, state: SequenceState) -> _Shared | None:
        return self._shared.get(state.start.seq_id - state.start.index)

    def _prepared(self) -> tuple[list[int], list[SequenceResult]]:
        ready: list[int] = []
        refused: list[SequenceResult] = []
        for seq_id, state in list(self._waiting.items()):
            try:
                if not self._is_prepared(state):
                    continue
                ready.append(seq_id)
            except BaseException as error:
                reason = str(error) if isinstance(error, OctavoError) else failure(error)
                refused.append(SequenceResult(seq_id, error=reason, is_invalid=True))
            del self._waiting[seq_id]
        return ready, refused

    def _is_prepared(self, state: SequenceState) -> bool:
        """Whether all that a sequence waits for is there. Raises where it cannot be had."""
        shared = self._shared_of(state)
        if shared is not None and shared.session is not None and shared.session.refused is not None:
            raise InvalidRequestError(shared.session.refused)
        if self._adapters is not None and state.has_adapter and not self._adapters.is_ready(state.start):
            return False
        if shared is None:
            return True
        if shared.session is not None and not shared.session.is_ready:
            return False
        if isinstance(shared.bad_words, Future):
            if not shared.bad_words.done():
                return False
            shared.bad_words = shared.bad_words.result()
        assert state.sampling is not None
        state.sampling.bad_words = shared.bad_words
        return True

    def take_on_time(self) -> list[SequenceState]:
        """Sequences whose mask has come since their step."""
        ready = [s for s in self._late.values() if s.sampling and (not s.sampling.grammar or s.sampling.grammar.ready)]
        for state in ready:
            del self._late[state.start.seq_id]
        # One that was preempted meanwhile may have had its token chosen when it was computed anew.
        return [s for s in ready if s.sampling is not None and s.sampling.late_logits is not None]
