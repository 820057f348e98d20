"""Guesses by a smaller model of the same vocabulary (Leviathan et al. 2023, Chen et al. 2023)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from octavo.config import EngineArgs
from octavo.errors import ConfigError, OctavoError
from octavo.executor.draft_sampling import draft_sampling
from octavo.executor.runner import ModelRunner
from octavo.executor.sampling_state import SamplingState
from octavo.executor.sequences import SequenceState
from octavo.executor.step import SequenceResult, SequenceStart, SequenceStep
from octavo.loading.model import LoadedModel, load_model
from octavo.parts import Recurrent
from octavo.speculative_config import SpeculativeConfig

_OF_FILES = ("download_dir", "hub", "hf_token", "offline", "trust_remote_code")
_OF_STEPS = ("device", "threads", "ops", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
TAKEN = (*_OF_FILES, *_OF_STEPS, "block_size", "kv_cache_memory", "kv_cache_dtype")
"""Options that are the engine's own."""


@dataclass(eq=False)
class _Draft:
    """What the smaller model has of a sequence."""

    state: SequenceState
    sampling: SamplingState
    row: int
    blocks: int = 0
    """How many each of its tables has."""
    fed: list[int] = field(default_factory=list)
    """The tokens whose keys it has: those of the sequence, and then its own guesses."""
    known: int = 0
    """How many of them are the sequence's for sure: of the guesses after them it is to be seen."""
    taken: list[int] = field(default_factory=list)
    """All its blocks."""
    new_blocks: list[tuple[int, list[int]]] = field(default_factory=list)
    """Those that its tables do not have yet, and where they go."""


class DraftModel:
    """A Drafter with a model and caches of its own, on the rank that chooses tokens.

    It reads what it lacks of a sequence whenever it is asked: so it need not be told of chunks, cached prefixes or
    preemption.

    Args:
        target: whose tokens are guessed.
        args: the engine's options.
        config: which model guesses.

    Raises ConfigError for a model that cannot guess for `target`, or cannot be loaded.
    """

    def __init__(self, target: LoadedModel, args: EngineArgs, config: SpeculativeConfig) -> None:
        assert config.model is not None
        options = {name: getattr(args, name) for name in TAKEN}
        options |= {"revision": config.revision, "quantization": config.quantization, "dtype": config.dtype}
        options |= {key: value for key, value in (config.draft_load_config or {}).items() if value is not None}
        options["max_model_len"] = config.max_model_len or args.max_model_len
        args = EngineArgs(model=config.model, language_model_only=True, skip_tokenizer_init=True, **options)
        try:
            loaded = load_model(args)
        except OctavoError as error:
            raise ConfigError(f"speculative_config: {error}") from error
        _check(loaded, target, config.model)
        self._runner = ModelRunner(loaded, args)
        self._max_length, self._max_tokens = loaded.info.max_model_len, args.max_num_batched_tokens
        self._num_embeddings = loaded.info.num_embeddings or loaded.info.vocab_size
        shape = self._runner.shape
        self._free_blocks = list(range(shape.num_blocks, 0, -1))
        self._free_rows = list(range(shape.max_sequences))[::-1]
        self._drafts: dict[int, _Draft | None] = {}
        """None for sequences that it cannot read."""

    def propose(self, states: Sequence[SequenceState], counts: Sequence[int]) -> list[list[int]]:
        """See Drafter."""
        made: list[list[int]] = [[] for _ in states]
        steps: dict[int, SequenceStep] = {}
        for place, (state, count) in enumerate(zip(states, counts, strict=True)):
            if (draft := self._draft(state)) is not None and (step := self._step(draft, state, count)) is not None:
                steps[place] = step
        while steps:
            drafts = {place: self._drafts[step.seq_id] for place, step in steps.items()}
            results = self._run(list(steps.values()), [draft.state for draft in drafts.values() if draft is not None])
            going = dict[int, SequenceStep]()
            for (place, draft), step, result in zip(drafts.items(), steps.values(), results, strict=True):
                assert draft is not None
                draft.fed += step.token_ids
                if not result.token_ids:  # its numbers overflowed
                    self._lose(step.seq_id)
                    continue
                made[place].append(result.token_ids[0])
                if len(made[place]) < counts[place]:
                    going[place] = self._to_step(draft, result.token_ids, step.length + 1)
            steps = going
        return made

    def _run(self, steps: list[SequenceStep], states: list[SequenceState]) -> list[SequenceResult]:
        """Compute steps, long ones in chunks."""
        while any(len(step.token_ids) > self._max_tokens for step in steps):
            chunks, owners = list[SequenceStep](), list[SequenceState]()
            for i, step in enumerate(steps):
                if len(step.token_ids) > self._max_tokens:
                    first, rest = step.token_ids[: self._max_tokens], step.token_ids[self._max_tokens :]
                    draft = self._drafts[step.seq_id]
                    assert draft is not None
                    draft.fed += first
                    chunks.append(SequenceStep(step.seq_id, step.row, first, step.start, step.length, step.new_blocks))
                    owners.append(states[i])
                    steps[i] = self._to_step(draft, rest, step.length)
            self._runner.execute(chunks, owners)
        return self._runner.execute(steps, states)

    def _draft(self, state: SequenceState) -> _Draft | None:
        """What there is of a sequence, begun if need be; None for one that cannot be read."""
        start = state.start
        if start.seq_id in self._drafts:
            return self._drafts[start.seq_id]
        if state.sampling is None or not self._free_rows:
            return None
        if max(start.prompt_token_ids, default=0) >= self._num_embeddings:
            self._drafts[start.seq_id] = None
            return None
        sampling = draft_sampling(state)
        told = SequenceStart(start.seq_id, start.prompt_token_ids, sampling=sampling.params)
        own = SequenceState(told, sampling=sampling)
        draft = self._drafts[start.seq_id] = _Draft(own, sampling, self._free_rows.pop())
        return draft

    def _step(self, draft: _Draft, state: SequenceState, count: int) -> SequenceStep | None:
        """The step that reads all tokens of a sequence that were not read yet; None where there is no room."""
        assert state.sampling is not None
        prompt, answer = state.start.prompt_token_ids, state.sampling.output_token_ids
        length = len(prompt) + len(answer)
        if length + count > self._max_length or max(answer, default=0) >= self._num_embeddings:
            return None
        if not self._take_blocks(draft, length + count):
            return None
        draft.sampling.output_token_ids = answer.copy()
        tokens, most = prompt + answer, min(len(draft.fed), length - 1)
        right = min(draft.known, most)
        while right < most and draft.fed[right] == tokens[right]:
            right += 1
        del draft.fed[right:]
        draft.known = length
        return self._to_step(draft, tokens[right:], length)

    def _to_step(self, draft: _Draft, tokens: list[int], length: int) -> SequenceStep:
        new_blocks, draft.new_blocks = draft.new_blocks, []
        start = len(draft.fed)
        seq_id = draft.state.start.seq_id
        return SequenceStep(seq_id, draft.row, tokens, start, length, new_blocks, is_new=start == 0, num_samples=1)

    def _take_blocks(self, draft: _Draft, length: int) -> bool:
        """Room for so many tokens in each of a sequence's tables, if there is."""
        shape = self._runner.shape
        missing = -(-length // shape.block_size) - draft.blocks
        groups = len(shape.windows)
        if missing <= 0:
            return True
        if missing * groups > len(self._free_blocks):
            return False
        taken = [[self._free_blocks.pop() for _ in range(missing)] for _ in range(groups)]
        draft.new_blocks = [(draft.blocks, blocks) for blocks in taken]
        draft.taken += [block for blocks in taken for block in blocks]
        draft.blocks += missing
        return True

    def _lose(self, seq_id: int) -> None:
        """Guess no more for a sequence."""
        self.end([seq_id])
        self._drafts[seq_id] = None

    def end(self, seq_ids: Iterable[int]) -> None:
        """See Drafter."""
        for seq_id in seq_ids:
            if (draft := self._drafts.pop(seq_id, None)) is not None:
                self._free_rows.append(draft.row)
                self._free_blocks += draft.taken


def _check(loaded: LoadedModel, target: LoadedModel, name: str) -> None:
    """Raises ConfigError unless the model can guess for `target`."""
    where, info = f"speculative_config: model={name!r}", loaded.info
    if info.task != "generate" or info.has_encoder:
        raise ConfigError(f"{where} is no decoder that generates text, and cannot draft.")
    if any(isinstance(state, Recurrent) for state in loaded.model.states):
        raise ConfigError(f"{where} keeps a state of fixed size, from which it cannot go back; draft with another.")
    if info.vocab_size != target.info.vocab_size:
        raise ConfigError(
            f"{where} has a vocabulary of {info.vocab_size:,} tokens, and the model one of "
            f"{target.info.vocab_size:,}: draft with a smaller model of the same family."
        )
