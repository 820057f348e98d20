"""The model in this process."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NoReturn

from octavo.config import EngineArgs
from octavo.executor.block_store import BlockStore, NoStore
from octavo.executor.drafting import HiddenDrafter, drafter_of, propose
from octavo.executor.grammar import GrammarCompiler
from octavo.executor.guessing_ranks import GuessingRanks
from octavo.executor.pooling import Pooling
from octavo.executor.runner import ModelRunner
from octavo.executor.sequences import SequenceState, SequenceStates
from octavo.executor.step import SequenceResult, Step, StepResult
from octavo.executor.step_reserve import measured_reserve
from octavo.executor.step_work import step_work
from octavo.executor.stores import store_of
from octavo.loading.model import LoadedModel
from octavo.ops.host_memory import forget
from octavo.params import LogitsProcessor

log = logging.getLogger("octavo")


class LocalExecutor:
    """An Executor that computes in this process: a processor when a step is collected, a device from `submit` on.

    Args:
        loaded: the model.
        args: the engine's options.
    """

    def __init__(self, loaded: LoadedModel, args: EngineArgs) -> None:
        self.info, self.max_steps, self.begins_early = loaded.info, 1, loaded.backend.runs_aside
        self.rank_weight_bytes = [loaded.weight_bytes]
        self.work, self.weights_dtype = step_work(loaded, args.block_size), loaded.precision.weights
        self.runner = ModelRunner(loaded, args, measured_reserve(loaded, args))
        if self.runner.caches.summary:
            log.info(self.runner.caches.summary)
        self.store: BlockStore | NoStore | None = store_of(loaded, args, self.runner.caches)
        self.shape = replace(self.runner.shape, offloads=self.store is not None)
        grammars = GrammarCompiler(loaded.tokenizer, self.info.vocab_size, self.info.eos_token_ids)
        self.sequences = SequenceStates(
            grammars, Pooling(self.info.task, loaded.model, self.info.pooling), self.runner.adapters
        )
        self.drafter = drafter_of(loaded, args, self.runner)
        self._guessing = GuessingRanks(loaded.backend)
        self._begun: deque[Callable[[], StepResult]] = deque()
        """What gives the results of the steps that are on their way."""
        self._processors: dict[int, Sequence[LogitsProcessor]] = {}

    def keep_processors(self, seq_id: int, processors: Sequence[LogitsProcessor]) -> None:
        self._processors[seq_id] = processors

    def submit(self, step: Step) -> None:
        if not self.begins_early:
            self._begun.append(lambda: self._begin(step)())
            return
        try:
            self._begun.append(self._begin(step))
        except BaseException as error:
            self._begun.append(partial(_raise, error))

    def collect(self) -> StepResult:
        return self._begun.popleft()()

    def _begin(self, step: Step) -> Callable[[], StepResult]:
        """Compute a step as far as it need not wait for the device; what is returned does the rest."""
        if self.store is not None and step.store is not None:
            self.store.begin(step.store)
        if step.dropped_adapters and self.runner.adapters is not None:
            self.runner.adapters.drop(step.dropped_adapters)
        refused = self._start(step) if step.starts else []
        if step.ended:
            self.sequences.end(step.ended)
            if self.drafter is not None:
                self.drafter.end(step.ended)
            for seq_id in step.ended if self._processors else ():
                self._processors.pop(seq_id, None)
        self.runner.feature_rows.drop(step.dropped)
        states = [self.sequences[s.seq_id] for s in step.sequences]
        rest = self.runner.begin(step.sequences, states) if states else list[SequenceResult]

        def finish() -> StepResult:
            result = self._finish(step, states, rest(), refused)
            if self.store is not None:
                result.store = self.store.news(is_idle=not step.sequences)
            return result

        return finish

    def _finish(
        self,
        step: Step,
        states: Sequence[SequenceState],
        results: list[SequenceResult],
        refused: list[SequenceResult],
    ) -> StepResult:
        """What a step gives whose tokens are there: guesses at the next ones, and what has become ready."""
        draft_seconds = 0.0
        if step.sequences:
            told = results
            if isinstance(self.drafter, HiddenDrafter):
                told = self._guessing.told(step.sequences, results)
                self.drafter.read(step.sequences, states, told, self.runner.hidden)
            if self.drafter is not None:
                start = time.perf_counter()
                propose(self.drafter, self.info.vocab_size, step.sequences, states, told)
                draft_seconds = time.perf_counter() - start
            self.sequences.keep_late(states)
        seconds, self.runner.feature_rows.seconds = self.runner.feature_rows.seconds, 0.0
        if not self.sequences.waits:
            return StepResult(results, refused=refused, media_seconds=seconds, draft_seconds=draft_seconds)
        ready, more = self.sequences.collect(not step.sequences)
        late = self.sequences.take_on_time()
        return StepResult(
            results,
            self.runner.chooser.choose_late(late) if late else [],
            ready,
            refused + more,
            seconds,
            draft_seconds,
        )

    def _start(self, step: Step) -> list[SequenceResult]:
        started = (self.sequences.start(s, self._processors.pop(s.seq_id, ())) for s in step.starts)
        return [refusal for refusal in started if refusal is not None]

    def forget_caches(self) -> None:
        """Give back the memory of caches that no sequence has a row of: it is taken again as they fill."""
        caches = self.runner.caches
        for paged in caches.paged:
            if paged is not None:
                forget(paged.keys)
                forget(paged.values)
        for named in caches.recurrent:
            for state in (named or {}).values():
                forget(state)

    def check(self) -> None:
        """It ends with this process only."""

    def close(self) -> None:
        if self.store is not None:
            self.store.close()
        self.runner.backend.leave()
        if self.runner.adapters is not None:
            self.runner.adapters.close()


def _raise(error: BaseException) -> NoReturn:
    raise error
