"""How much memory the largest step takes, measured when a model is loaded: what its caches leave free."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from octavo.config import EngineArgs
from octavo.executor.runner import ModelRunner
from octavo.executor.sampling_state import SamplingState
from octavo.executor.sequences import SequenceState
from octavo.executor.step import SequenceResult, SequenceStart, SequenceStep
from octavo.loading.model import LoadedModel
from octavo.params import SamplingParams
from octavo.sizes import format_size

log = logging.getLogger("octavo")

SHARE = 16
"""Of the free memory, what caches of the measured steps take: one part in so many."""
LOGITS = 4
"""Bytes of a logit."""


def measured_reserve(loaded: LoadedModel, args: EngineArgs) -> int:
    """Bytes that steps take beside weights and caches, on a device whose memory caches would fill otherwise.

    Steps are computed on a few blocks that all sequences share: one of as many sequences as may run, with all tokens
    that a step may have; one of as few as can have these; and one in which each sequence takes a token behind a text
    of the greatest length. To the most of these comes what recorded steps keep of each size, and rows of features.
    Not measured are towers, and what an encoder makes. 0 where memory is not the device's own, or was asked for.
    """
    if not loaded.backend.measures_memory or args.kv_cache_bytes is not None:
        return 0
    free = loaded.backend.free_memory()
    probing = replace(args, kv_cache_memory=free // SHARE, enable_lora=False, logits_processors=[], kv_offload=None)
    runner = ModelRunner(loaded, probing)
    if runner.shape.encoder_group is not None:
        return 0
    reserve = loaded.backend.measure_peak(lambda: _largest_steps(runner, loaded, args))
    row = loaded.info.vocab_size * LOGITS + 2 * loaded.model.hidden_size * loaded.model.dtype.itemsize
    reserve += runner.recorded_rows * row * (2 if args.enable_lora else 1)
    if loaded.model.media is not None:
        reserve += args.feature_cache_bytes
    log.info("the largest steps take %s, which the KV cache leaves free", format_size(reserve))
    return reserve


def _largest_steps(runner: ModelRunner, loaded: LoadedModel, args: EngineArgs) -> None:
    longest, tokens = loaded.info.max_model_len - 1, args.max_num_batched_tokens
    most = min(runner.shape.max_sequences, tokens)
    few = min(most, -(-tokens // longest))
    for count, each in ((most, min(longest, max(1, tokens // most))), (few, min(longest, tokens // few))):
        _run(runner, loaded, [(0, each)] * count)
    _run(runner, loaded, [(longest - 1, 1)] * most)


def _run(runner: ModelRunner, loaded: LoadedModel, parts: Sequence[tuple[int, int]]) -> list[SequenceResult]:
    """A step of sequences with so many tokens each, behind so many others, that all lie in the same block."""
    shape, generates = runner.shape, loaded.info.task == "generate"
    samples = generates and loaded.backend.place.is_output
    steps, states = list[SequenceStep](), list[SequenceState]()
    for row, (start, count) in enumerate(parts):
        end = start + count
        blocks = [1] * -(-end // shape.block_size)
        step = SequenceStep(row, row, [0] * count, start, end, [(0, blocks) for _ in shape.windows], is_new=True)
        step.num_samples = int(generates)
        state = SequenceState(SequenceStart(row, [0] * end))
        if samples:
            state.sampling = SamplingState(SamplingParams(top_p=0.9, logprobs=1), row, [0] * end, frozenset())
        steps.append(step)
        states.append(state)
    return runner.execute(steps, states)
