"""What requests wait for beside the model: grammars, masks, and long lists of words to be tokenized.

None of it is the engine's own work: grammars are made ready and masks found in processes beside it, long lists are
tokenized in a thread. A request enters the schedule once it is prepared. A sequence whose mask is late keeps its logits
and leaves out steps, while all others go on. Which tokens come does not depend on any of this: only when they do.
"""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from octavo.engine.request import Completion, GenerationRequest
from octavo.errors import failure
from octavo.executor.bad_words import BadWords
from octavo.executor.grammar import GrammarCompiler, GrammarSession
from octavo.params import SamplingParams
from octavo.text.inputs import InputChecker

IDLE = 0.01
"""Seconds to wait where nothing else can be computed."""
FEW_WORDS = 64
"""Bad words that are tokenized at once: a thread would take longer."""
LONGEST_WORD = 100
"""Characters that such a word has, on average at most."""


@dataclass(eq=False)
class _Prepared:
    """A request that waits for its turn, and what it waits for."""

    request: GenerationRequest
    session: GrammarSession | None
    bad_words: "Future[BadWords]"


class Preparing:
    """Requests on their way into the schedule, and sequences on their way into the next step.

    Args:
        grammars: makes grammars.
        checker: tokenizes bad words.
    """

    def __init__(self, grammars: GrammarCompiler, checker: InputChecker) -> None:
        self._grammars, self._checker = grammars, checker
        self._threads: ThreadPoolExecutor | None = None
        self._waiting: dict[str, _Prepared] = {}
        self._sessions: dict[str, GrammarSession] = {}
        self._late: dict[Completion, None] = {}

    def add(self, request: GenerationRequest) -> bool:
        """Begin with what `request` needs; whether it must wait.

        Raises InvalidRequestError where that can be said at once.
        """
        params = request.params
        bad_words = self._bad_words(params)
        session = None
        if params.structured_outputs is not None:
            session = self._grammars.compile(params.structured_outputs, len(request.completions))
            self._sessions[request.request_id] = session
            for completion, grammar in zip(request.completions, session.grammars, strict=True):
                completion.state.grammar = grammar
        prepared = _Prepared(request, session, bad_words)
        if session is None and bad_words.done():
            self._finish(prepared)
            return False
        self._waiting[request.request_id] = prepared
        return True

    def _bad_words(self, params: SamplingParams) -> "Future[BadWords]":
        words = params.bad_words or []
        if len(words) > FEW_WORDS or sum(map(len, words)) > FEW_WORDS * LONGEST_WORD:
            self._threads = self._threads or ThreadPoolExecutor(1, thread_name_prefix="octavo-words")
            return self._threads.submit(lambda: BadWords(self._checker.bad_words(params)))
        done: Future[BadWords] = Future()
        done.set_result(BadWords(self._checker.bad_words(params)))
        return done

    def _finish(self, prepared: _Prepared) -> None:
        words = prepared.bad_words.result()
        for completion in prepared.request.completions:
            completion.state.bad_words = words

    def wait_for_mask(self, completion: Completion) -> None:
        """A step went on without this sequence's mask."""
        self._late[completion] = None

    def take_on_time(self) -> list[Completion]:
        """Sequences whose mask has come since their step."""
        ready = [c for c in self._late if c.state.grammar is None or c.state.grammar.ready]
        for completion in ready:
            del self._late[completion]
        # One that was preempted meanwhile may have had its token chosen when it was computed anew.
        return [c for c in ready if c.state.late_logits is not None and c.finish_reason is None]

    def forget(self, request: GenerationRequest) -> None:
        """The request is done, or has been ended."""
        self._waiting.pop(request.request_id, None)
        if session := self._sessions.pop(request.request_id, None):
            session.close()
            for completion in request.completions:
                self._late.pop(completion, None)

    def collect(self, is_idle: bool) -> tuple[list[GenerationRequest], list[tuple[GenerationRequest, str]]]:
        """Requests that are prepared, and those that cannot be, with the reason.

        Takes what has come, and where the engine `is_idle` waits shortly for something.
        """
        if not self._waiting and not self._late:
            return [], []
        sessions = {p.session for p in self._waiting.values() if p.session is not None}
        sessions |= {c.state.grammar.session for c in self._late if c.state.grammar is not None}
        for session in sessions:
            session.slow_down()
        if sessions:
            self._grammars.wait(sessions, IDLE if is_idle else 0, until_first=True)
        elif is_idle:
            wait([p.bad_words for p in self._waiting.values()], timeout=IDLE)
        return self._prepared()

    def _prepared(self) -> tuple[list[GenerationRequest], list[tuple[GenerationRequest, str]]]:
        ready: list[GenerationRequest] = []
        refused: list[tuple[GenerationRequest, str]] = []
        for name, prepared in list(self._waiting.items()):
            session = prepared.session
            if session is not None and session.refused is not None:
                refused.append((prepared.request, session.refused))
            elif prepared.bad_words.done() and (session is None or session.is_ready):
                try:
                    self._finish(prepared)
                    ready.append(prepared.request)
                except BaseException as error:
                    refused.append((prepared.request, failure(error)))
            else:
                continue
            del self._waiting[name]
        return ready, refused
