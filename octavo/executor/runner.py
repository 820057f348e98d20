"""Runs a model's steps in this process: the engine's integers to tensors, the model, the sampler."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from octavo.config import EngineArgs
from octavo.errors import failure
from octavo.executor.adapter_slots import Adapters
from octavo.executor.batch_logits import batch_logits
from octavo.executor.caches import Caches, allocate_caches
from octavo.executor.choosing import Chooser, Sampled
from octavo.executor.feature_rows import FeatureRows, in_place, num_rows
from octavo.executor.overflows import Overflows
from octavo.executor.sampler import describe, likeliest
from octavo.executor.sequences import SequenceState
from octavo.executor.shape import CacheShape
from octavo.executor.step import Pooled, SequenceResult, SequenceStep
from octavo.executor.step_batches import StepBatches
from octavo.executor.step_runs import encoded, seen_rows
from octavo.executor.token_scores import TokenScores
from octavo.features import ENCODER, Feature
from octavo.loading.model import LoadedModel
from octavo.ops import BlockTables, DecodeInputs, Likeliest, SequenceRun, sent
from octavo.outputs import PackedLogprobs
from octavo.parts import Batch, CrossBatch
from octavo.parts.pooler import SCORED_ROWS

CROSS_BLOCKS = 4096
"""Most blocks of cross-attention's rows that a sequence's table has room for, if it has no more for tokens."""
LOGITS_ROWS = 64
"""Rows of logits held at a time for log-probabilities of a prompt."""


class ModelRunner:
    """A loaded model, its caches and block tables.

    Args:
        loaded: the model.
        args: the engine's options.
        reserve: bytes that the largest step takes of the device's memory, which caches leave.
    """

    def __init__(self, loaded: LoadedModel, args: EngineArgs, reserve: int = 0) -> None:
        self.model, self.backend, self.device = loaded.model, loaded.backend, loaded.backend.device
        model, info, dtype = loaded.model, loaded.info, loaded.precision.cache
        self.caches: Caches = allocate_caches(
            model.states, args, dtype, self.backend, info.max_model_len, model.all_states, reserve
        )
        self.feature_rows = FeatureRows(loaded.model, loaded.backend)
        shape, width = self.caches.shape, -(-loaded.info.max_model_len // self.caches.shape.block_size) + 1
        cross = max(width, min(shape.num_blocks, CROSS_BLOCKS))
        rows = cross * shape.block_size
        shape = self._shape = replace(shape, max_cross_rows=rows, max_feature_rows=self._feature_rows(args))
        self._tables = [
            torch.zeros(
                shape.max_sequences,
                cross if group == shape.encoder_group else width,
                dtype=torch.int64,
                device=self.device,
            )
            for group in range(len(shape.windows))
        ]
        self.batches = StepBatches(self.backend, self.caches, self._tables, shape, self.feature_rows)
        tables = BlockTables(self._tables, shape.block_size, shape.windows, shape.encoder_group)
        self._decode_batch: Batch | None = None
        """The largest of recorded steps: all of them read the same buffers."""
        speculation = args.speculation
        drafts = 0 if speculation is None else speculation.num_speculative_tokens
        # The last token of a cached beginning is computed again for a head that keeps keys.
        reads_again = speculation is not None and speculation.keeps_keys
        self._overflows = Overflows(self.backend, self.caches, self._tables, shape, reads_again)
        most_rows = shape.max_sequences * (1 + drafts)
        self._recorded = self.backend.record_decode(self._decode, tables, most_rows)
        self.adapters = Adapters(loaded, args) if args.enable_lora else None
        self._shows_logits = bool(args.logits_processors)
        self._scores = TokenScores(self.backend, args.logprobs_mode)
        processors = batch_logits(args, loaded.info, self.backend, shape.num_blocks)
        self.chooser = Chooser(self.backend, processors, self._scores)
        self.hidden = torch.empty(0, self.model.hidden_size)
        """`[rows, values]` that a head reads of the last step's tokens."""
        self._kept: dict[int, list[Tensor]] = {}
        """By row, the states of fixed size before its last step, if that had drafts."""
        self._recorded_with_adapters = (
            None
            if self.adapters is None
            else self.backend.record_decode(self._decode, tables, most_rows, adapters=True)
        )

    @property
    def recorded_rows(self) -> int:
        """Of how many rows recorded steps keep their results."""
        return 0 if self._recorded is None else self._recorded.kept_rows

    @property
    def shape(self) -> CacheShape:
        return self._shape

    def _feature_rows(self, args: EngineArgs) -> int:
        """How many rows of features there is memory for."""
        row = self.model.hidden_size * torch.empty(0, dtype=self.model.dtype).element_size()
        return args.feature_cache_bytes // row

    def execute(self, steps: Sequence[SequenceStep], states: Sequence[SequenceState]) -> list[SequenceResult]:
        """Compute one step of sequences in these states. The results are in the order of `steps`."""
        return self.begin(steps, states)()

    def begin(
        self, steps: Sequence[SequenceStep], states: Sequence[SequenceState]
    ) -> Callable[[], list[SequenceResult]]:
        """`execute` as far as it need not wait for the device; what is returned does the rest, before the next step."""
        with torch.inference_mode(), self.backend.computing():
            finish = self._begin(steps, states)

        def rest() -> list[SequenceResult]:
            with torch.inference_mode(), self.backend.computing():
                return finish()

        return rest

    def _begin(
        self, steps: Sequence[SequenceStep], states: Sequence[SequenceState]
    ) -> Callable[[], list[SequenceResult]]:
        self._take_blocks(steps)
        slots = self._adapter_slots(states)
        if any(s.encodes for s in steps):
            self._encode(steps, states, slots)
        recorded = self._run_recorded(steps, states, slots)
        if recorded is not None and self._decode_batch is not None:
            batch, (hidden, projected, *read) = self._decode_batch, recorded
        else:
            projected = None
            batch = self.batches.decoder_batch(steps, states, slots)
            hidden = self.model(batch)
            read = [*self.model.read_rows(hidden, batch)]
        results = [SequenceResult(s.seq_id, error=state.error) for s, state in zip(steps, states, strict=True)]
        if self.model.media is not None:
            self._fail_without_rows(steps, states, results)
        count = sum(len(s.token_ids) for s in steps)
        self.hidden = read[0][:count] if len(read) == 1 else torch.cat([rows[:count] for rows in read], 1)
        check = self._overflows.of_step(
            hidden[:count], lambda: self.batches.decoder_batch(steps, states, slots), steps, states, results
        )
        if self._checks_first(steps, states):
            check()
        takes = list[Callable[[], None]]()
        if self.model.stage.is_last:
            takes = self._begin_tokens(hidden, projected, batch, steps, states, results, slots, check)

        def finish() -> list[SequenceResult]:
            for take in (*takes, check):
                take()
            return results

        return finish

    def _checks_first(self, steps: Sequence[SequenceStep], states: Sequence[SequenceState]) -> bool:
        """Whether something is told of hidden states, or a caller's code is shown them, before tokens are waited for.

        All ranks say the same, since they go on with the same sequences.
        """
        return self._shows_logits or any(
            step.prompt_logprobs
            or state.pooler is not None
            or (state.sampling is not None and state.sampling.params.logits_processors)
            for step, state in zip(steps, states, strict=True)
        )

    def _begin_tokens(
        self,
        hidden: Tensor,
        projected: Tensor | None,
        batch: Batch,
        steps: Sequence[SequenceStep],
        states: Sequence[SequenceState],
        results: list[SequenceResult],
        slots: list[int] | None,
        check: Callable[[], None],
    ) -> list[Callable[[], None]]:
        """Put into `results` what sequences want of a step's hidden states; their tokens by what is returned.

        `check`: see Chooser.begin.
        """
        first, sampled = 0, list[Sampled]()
        for i, step in enumerate(steps):
            last = first + len(step.token_ids)
            if results[i].error is None:
                if step.num_samples:
                    states[i].length = step.length
                    drafts = step.token_ids[len(step.token_ids) - step.num_drafts :]
                    sampled.append(Sampled(i, last - 1 - len(drafts), drafts))
                try:
                    if step.prompt_logprobs or states[i].pooler is not None:
                        slot = None if slots is None else slots[i]
                        self._read(hidden[first:last], _of_one(batch, slot), step, states[i], results[i], slot)
                except BaseException as error:  # of this sequence alone, such as no memory for what it asks for
                    results[i].error = failure(error)
            first = last
        return [
            self._begin_sample(hidden, projected, batch, some, states, results, slot, check)
            for slot, some in self._by_vocabulary(sampled, slots)
        ]

    def _by_vocabulary(self, sampled: list[Sampled], slots: list[int] | None) -> list[tuple[int | None, list[Sampled]]]:
        """`sampled` in groups of one vocabulary: the model's (None), and those of adapters (their slots) with more."""
        groups: dict[int | None, list[Sampled]] = {}
        for one in sampled:
            slot = None if slots is None or not self.model.has_more_tokens(slots[one.place]) else slots[one.place]
            groups.setdefault(slot, []).append(one)
        return list(groups.items())

    def _adapter_slots(self, states: Sequence[SequenceState]) -> list[int] | None:
        """The slots of a step's adapters, -1 for none; None where no sequence has one."""
        refs = [state.start.adapter for state in states]
        if self.adapters is None or not any(ref is not None for ref in refs):
            return None
        return self.adapters.slots(refs)

    def _fail_without_rows(
        self, steps: Sequence[SequenceStep], states: Sequence[SequenceState], results: list[SequenceResult]
    ) -> None:
        """Fail the sequences whose tokens have a feature that could not be computed."""
        for step, state, result in zip(steps, states, results, strict=True):
            result.error = result.error or self.feature_rows.error(step, state)
            result.non_finite = result.error is not None and bool(step.encodes)  # nothing of it may be found again

    def _decode(self, inputs: DecodeInputs) -> tuple[Tensor, ...]:
        """Hidden states `[rows, hidden_size]`, what the head makes of them, `[rows, vocab]`, if it is here, and what
        a head that guesses reads of the step."""
        states = self.batches.views(inputs.attention, inputs.recurrent if self.shape.recurrent else None)
        rows, adapters = len(inputs.tokens), inputs.adapters
        batch = Batch(
            inputs.tokens, inputs.positions, inputs.lengths, rows, states, adapters=adapters, only_tables=True
        )
        if self._decode_batch is None or rows > len(self._decode_batch.tokens):
            self._decode_batch = batch
        hidden = self.model(batch)
        projected = self.model.project(hidden, batch) if self.model.stage.is_last else hidden
        return hidden, projected, *self.model.read_rows(hidden, batch)

    def _encode(self, steps: Sequence[SequenceStep], states: Sequence[SequenceState], slots: list[int] | None) -> None:
        """Make the rows of features that are new in a step, those of sequences of one adapter together."""
        by_adapter: dict[int | None, tuple[list[SequenceStep], list[SequenceState]]] = {}
        for i, step in enumerate(steps):
            own = by_adapter.setdefault(None if slots is None or slots[i] < 0 else slots[i], ([], []))
            own[0].append(step)
            own[1].append(states[i])
        for slot, (own_steps, own_states) in by_adapter.items():
            with self.model.media_adapter(slot):
                self._encode_alike(own_steps, own_states, slot)

    def _encode_alike(self, steps: Sequence[SequenceStep], states: Sequence[SequenceState], slot: int | None) -> None:
        """`_encode` of sequences with the adapter in `slot`."""
        if self.model.stage.is_first and (features := in_place(steps, states)):
            self.feature_rows.compute(features)
        for step, state in zip(steps, states, strict=True):
            features = [state.start.features[i] for i in step.encodes]
            if features and features[0].offset is None and features[0].kind != ENCODER:
                self._write_media(step, state, features, slot)
        if any(f.kind == ENCODER for s, state in zip(steps, states, strict=True) for f in encoded(s, state)):
            self.model.encode(self.batches.encoder_batch(steps, states, slot))

    def _write_media(
        self, step: SequenceStep, state: SequenceState, features: Sequence[Feature], slot: int | None
    ) -> None:
        """Have cross-attention store what it keeps of one sequence's pictures."""
        count, rows = sum(map(num_rows, features)), None
        if self.model.stage.is_first:
            made = self.feature_rows.once(features)
            if isinstance(made, str):
                state.error = made
                if not self.model.stage.passes_cross_rows:
                    return
                # Later stages wait for rows, whatever these are.
                made = torch.zeros(count, self.model.hidden_size, dtype=self.model.dtype, device=self.device)
            rows = made
        run, group = SequenceRun(0, count, 0, step.row), self.shape.encoder_group
        assert group is not None
        plan = self.backend.plan_attention([run], self._tables[group], self.shape.block_size, None, count)
        cross_kv = self.batches.views([plan] * len(self.shape.windows), None)
        batch = CrossBatch([(0, count)], cross_kv=cross_kv, adapter=slot)
        self.model.write_cross_kv(rows, batch, count)

    def _run_recorded(
        self, steps: Sequence[SequenceStep], states: Sequence[SequenceState], slots: list[int] | None
    ) -> tuple[Tensor, ...] | None:
        """What `_decode` gives for a step in which every sequence takes one token, and drafts; None for other steps.

        A draft is a row as if it were of a sequence of its own: each operation is done for all rows before the next, so
        that what a row sees of those before it is stored by then.
        """
        recording = self._recorded if slots is None else self._recorded_with_adapters
        if recording is None or sum(len(s.token_ids) for s in steps) > recording.max_rows:
            return None
        if slots is not None and self.adapters is not None:
            refs = [state.start.adapter for state in states]
            if not all(self.adapters.of(ref).only_tables for ref in refs if ref is not None):
                return None
        if any(len(s.token_ids) != 1 + s.num_drafts or s.is_new or not s.num_samples for s in steps):
            return None
        if self.shape.recurrent and any(s.num_drafts for s in steps):
            return None  # a row's state is of one token
        rows = [(i, after) for i, step in enumerate(steps) for after in range(len(step.token_ids))]
        first_keys, crosses = [0] * len(rows), self.shape.encoder_group is not None
        if crosses:
            seen = [seen_rows(states[i].start.features, steps[i].start + after) for i, after in rows]
            if any(end == 0 for _, end in seen):
                return None
            first_keys = [first for first, _ in seen]
        return recording.run(
            [steps[i].token_ids[after] for i, after in rows],
            [steps[i].row for i, _ in rows],
            [steps[i].start + after for i, after in rows],
            [steps[i].start + after + states[i].offset for i, after in rows],
            [steps[i].length + after for i, after in rows],
            [steps[i].num_cross_rows for i, _ in rows] if not crosses else [end for _, end in seen],
            first_keys,
            () if slots is None else [slots[i] for i, _ in rows],
        )

    def _read(
        self,
        rows: Tensor,
        batch: Batch,
        step: SequenceStep,
        state: SequenceState,
        result: SequenceResult,
        slot: int | None,
    ) -> None:
        """What a sequence wants of its hidden states, `[tokens, hidden_size]`, beside its next token."""
        prompt, end = state.start.prompt_token_ids, step.start + len(step.token_ids)
        if step.prompt_logprobs:
            count = 0 if state.sampling is None else state.sampling.params.prompt_logprobs or 0
            targets = prompt[step.start + 1 : end + 1]
            result.prompt_logprobs = self._prompt_logprobs(rows, batch, targets, slot, count)
        if state.pooler is not None:
            if step.is_new:
                state.pooler.restart()
            state.pooler.add(rows, torch.tensor(step.token_ids, device=self.device))
            if end == len(prompt):
                pooled = state.pooler.result(batch).cpu().contiguous()
                result.pooled = Pooled(tuple(pooled.shape), pooled.numpy().tobytes())

    def _begin_sample(
        self,
        hidden: Tensor,
        projected: Tensor | None,
        batch: Batch,
        sampled: list[Sampled],
        states: Sequence[SequenceState],
        results: list[SequenceResult],
        slot: int | None,
        check: Callable[[], None],
    ) -> Callable[[], None]:
        """Choose the next tokens of `sampled`; `slot` is of the adapter whose vocabulary they have."""
        rows, wanted = hidden if projected is None else projected, [row for one in sampled for row in one.rows]
        if len(wanted) < rows.shape[0]:
            places = sent(wanted, torch.int64, self.device)
            rows, batch = rows[places], batch.of_rows(places)
        logits = self.model.process_logits(self.model.project(rows, batch, slot) if projected is None else rows)
        return self.chooser.begin(logits, sampled, states, results, check)

    def _prompt_logprobs(
        self, hidden: Tensor, batch: Batch, targets: list[int], slot: int | None, count: int
    ) -> list[PackedLogprobs]:
        found, problem = list[tuple[Likeliest, list[int]]](), None
        for first in range(0, len(targets), LOGITS_ROWS):
            part = targets[first : first + LOGITS_ROWS]
            logits = self.model.logits(hidden[first : first + len(part)], batch, slot)
            if problem is not None or not self.backend.place.is_output:
                continue  # the other ranks compute all logits, and need this one for it
            try:
                chosen = sent(part, torch.int64, self.device)
                told = likeliest(self._scores.of_prompt(logits), chosen, [count], self.backend)
                found.append((told, part))
            except BaseException as error:
                problem = error
        if problem is not None:
            raise problem
        return [entry for told, part in found for entry in describe(told, part, [count] * len(part))]

    def _take_blocks(self, steps: Sequence[SequenceStep]) -> None:
        """Enter new blocks in the tables, and clear the fixed-size states of what begins."""
        for step in steps:
            if step.new_blocks:
                for table, (at, blocks) in zip(self._tables, step.new_blocks, strict=True):
                    table[step.row, at : at + len(blocks)] = sent(blocks, torch.int64, self.device)
            if step.is_new:
                self._overflows.zero(step.row)
            if self.shape.recurrent:
                self._keep_states(step)

    def _keep_states(self, step: SequenceStep) -> None:
        """Fixed-size states as they were before drafts that turned out wrong; and those before a step with drafts."""
        tensors = [tensor for named in self.caches.recurrent for tensor in (named or {}).values()]
        kept = self._kept.pop(step.row, None)
        if step.rewinds and kept is not None:
            for tensor, before in zip(tensors, kept, strict=True):
                tensor[step.row] = before
        if step.num_drafts:
            self._kept[step.row] = [tensor[step.row].clone() for tensor in tensors]


def _of_one(batch: Batch, slot: int | None) -> Batch:
    """What a head needs to know of any rows of one sequence, whose adapter is in `slot`."""
    if batch.adapters is None or slot is None:
        return batch
    return replace(batch, adapters=torch.full((max(LOGITS_ROWS, SCORED_ROWS),), slot, device=batch.adapters.device))
