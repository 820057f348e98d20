"""Where a step's tokens are in their sequences, and what of these they see: integers, made of what the engine says."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from octavo.executor.sequences import SequenceState
from octavo.executor.step import SequenceStep
from octavo.features import ENCODER, Feature
from octavo.ops import SequenceRun


def positions_of(steps: Sequence[SequenceStep], states: Sequence[SequenceState]) -> "np.ndarray[Any, np.dtype[Any]]":
    """Positions of a step's tokens, int64 [axes, tokens]: one axis where all of a token's are alike."""
    parts = []
    for step, state in zip(steps, states, strict=True):
        end, prompt = step.start + len(step.token_ids), state.positions
        known = 0 if prompt is None else prompt.shape[1]
        after = np.arange(max(step.start, known), end, dtype=np.int64)[None] + state.offset
        if prompt is not None:
            after = np.concatenate([prompt[:, step.start : end], after.repeat(len(prompt), 0)], 1)
        parts.append(after)
    axes = max(map(len, parts))
    return np.concatenate([p if len(p) == axes else p.repeat(axes, 0) for p in parts], 1)


def cut_at_spans(runs: Sequence[SequenceRun], states: Sequence[SequenceState]) -> Sequence[SequenceRun]:
    """The runs, in which spans that see both ways are runs of their own."""
    if not any(state.start.both_ways for state in states):
        return runs
    cut = []
    for run, state in zip(runs, states, strict=True):
        end = run.start + run.num_tokens
        edges = dict.fromkeys((run.start, end), False)
        for first, after in state.start.both_ways:
            if first < end and run.start < after:  # of one whose beginning was cached, the rest
                edges[max(first, run.start)] = True
                edges.setdefault(after, False)
        starts = sorted(edges)
        for start, stop in itertools.pairwise(starts):
            row = run.first_row + start - run.start
            cut.append(replace(run, first_row=row, num_tokens=stop - start, start=start, sees_all=edges[start]))
    return cut


def encoded(step: SequenceStep, state: SequenceState) -> list[Feature]:
    """What the model's encoder reads first in a step of a sequence."""
    return [f for i in step.encodes if (f := state.start.features[i]).kind == ENCODER]


def seen_rows(features: Sequence[Feature], position: int) -> tuple[int, int]:
    """The first row and the end of those that the token at `position` sees in cross-attention; (0, 0) for none.

    Features' rows lie one after the other, and those that a token sees follow each other.
    """
    first, end, row = 0, 0, 0
    for feature in features:
        if feature.offset is not None:
            continue
        start, stop = feature.visible or (0, None)
        if start <= position and (stop is None or position < stop):
            first, end = first if end else row, row + feature.length
        row += feature.length
    return first, end


def cross_runs(runs: Sequence[SequenceRun], states: Sequence[SequenceState]) -> tuple[list[SequenceRun], list[bool]]:
    """Runs of tokens that see the same rows, put so that these end with a run's last; and which tokens see any."""
    cut, crosses = list[SequenceRun](), list[bool]()
    for run, state in zip(runs, states, strict=True):
        seen = [seen_rows(state.start.features, run.start + i) for i in range(run.num_tokens)]
        crosses += [end > 0 for _, end in seen]
        row = run.first_row
        for (first, end), alike in itertools.groupby(seen):
            count = len(list(alike))
            for i in range(0, count, end) if end else ():  # more than there are rows would begin before the first
                tokens = min(end, count - i)
                cut.append(SequenceRun(row + i, tokens, end - tokens, run.table_row, True, first))
            row += count
    return cut, crosses
