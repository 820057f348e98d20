"""Bad words as tokens. Long lists are tokenized in a thread, so that nobody else waits for them."""

from concurrent.futures import Future, ThreadPoolExecutor, wait

from octavo.errors import failure
from octavo.executor.step import SequenceStart
from octavo.params import SamplingParams
from octavo.text.inputs import InputChecker

IDLE = 0.01
"""Seconds to wait where nothing else can be computed."""
FEW_WORDS = 64
"""Bad words that are tokenized at once: a thread would take longer."""
LONGEST_WORD = 100
"""Characters that such a word has, on average at most."""


class BadWordTokens:
    """Fills in the bad words of requests.

    Args:
        checker: tokenizes them.
    """

    def __init__(self, checker: InputChecker) -> None:
        self._checker = checker
        self._threads: ThreadPoolExecutor | None = None
        self._waiting: dict[str, tuple[list[SequenceStart], Future[list[list[int]]]]] = {}

    @property
    def waits(self) -> bool:
        """Whether a request waits for its words."""
        return bool(self._waiting)

    def add(self, request_id: str, params: SamplingParams, starts: list[SequenceStart]) -> bool:
        """Fill in the bad words of a request's sequences; whether that takes time, and `collect` says when it is done.

        Raises InvalidRequestError for words that cannot be tokenized, where that can be said at once.
        """
        words = params.bad_words or []
        if len(words) > FEW_WORDS or sum(map(len, words)) > FEW_WORDS * LONGEST_WORD:
            self._threads = self._threads or ThreadPoolExecutor(1, thread_name_prefix="octavo-words")
            self._waiting[request_id] = starts, self._threads.submit(self._checker.bad_words, params)
            return True
        tokens = self._checker.bad_words(params)
        for start in starts:
            start.bad_words = tokens
        return False

    def forget(self, request_id: str) -> None:
        """The request is done, or has been ended."""
        self._waiting.pop(request_id, None)

    def collect(self, is_idle: bool) -> tuple[list[list[SequenceStart]], list[tuple[str, str]]]:
        """Requests that are complete, and the ids of those that cannot be, with the reason.

        Where the engine `is_idle` this waits shortly for one.
        """
        complete: list[list[SequenceStart]] = []
        refused: list[tuple[str, str]] = []
        if is_idle:
            wait([future for _, future in self._waiting.values()], timeout=IDLE)
        for request_id, (starts, future) in list(self._waiting.items()):
            if not future.done():
                continue
            del self._waiting[request_id]
            try:
                for start in starts:
                    start.bad_words = future.result()
                complete.append(starts)
            except BaseException as error:
                refused.append((request_id, failure(error)))
        return complete, refused
