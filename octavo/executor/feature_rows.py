"""The rows that a model's tower makes of features, and where they stand in a step."""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.errors import failure
from octavo.executor.sequences import SequenceState
from octavo.executor.step import SequenceStep
from octavo.features import ENCODER, Feature
from octavo.media.feature import unpack
from octavo.ops import Backend
from octavo.parts import CausalLM, MediaData, PlacedRows

EMBEDDINGS = "embeddings"
"""The name of rows that a feature brings itself."""


class FeatureRows:
    """Rows of features by digest, from when the engine has them computed until it has them dropped.

    Args:
        model: has the tower.
        backend: where tensors are.
    """

    def __init__(self, model: CausalLM, backend: Backend) -> None:
        self._model, self._backend = model, backend
        self._rows: dict[bytes, Tensor] = {}
        """[rows, hidden_size] each."""
        self._errors: dict[bytes, str] = {}
        """Why there are none, of features that the last steps were to compute."""
        self.seconds = 0.0
        """How long towers took since somebody set this to zero."""

    def drop(self, digests: Iterable[bytes]) -> None:
        for digest in digests:
            self._rows.pop(digest, None)
            self._errors.pop(digest, None)

    def compute(self, features: Sequence[Feature]) -> None:
        """Make the rows of features, those of a kind together. What goes wrong with one is kept for who needs it."""
        start, kinds = time.perf_counter(), defaultdict[str, list[tuple[Feature, MediaData]]](list)
        for feature in features:
            assert isinstance(feature.data, bytes)
            self._errors.pop(feature.digest, None)
            data = {n: torch.from_numpy(a.copy()).to(self._backend.device) for n, a in unpack(feature.data).items()}
            if EMBEDDINGS in data:
                self._keep(feature, data[EMBEDDINGS].to(self._model.dtype))
            else:
                kinds[feature.kind].append((feature, data))
        for kind, items in kinds.items():
            self._make(kind, items)
        self.seconds += time.perf_counter() - start

    def _make(self, kind: str, items: Sequence[tuple[Feature, MediaData]]) -> None:
        assert self._model.media is not None
        try:
            rows = self._model.media(kind, [data for _, data in items])
        except BaseException as error:
            if len(items) > 1:  # find out whose fault it is
                for item in items:
                    self._make(kind, [item])
                return
            self._errors[items[0][0].digest] = f"the {kind} could not be computed: {failure(error)}"
            return
        for (feature, _), each in zip(items, rows, strict=True):
            self._keep(feature, each)

    def _keep(self, feature: Feature, rows: Tensor) -> None:
        expected = num_rows(feature)
        if rows.shape != (expected, self._model.hidden_size):
            given = f"{tuple(rows.shape)}, and its places in the prompt take {(expected, self._model.hidden_size)}"
            self._errors[feature.digest] = f"the {feature.kind}'s rows have the shape {given}"
        elif not self._backend.finite(rows):
            self._errors[feature.digest] = f"the {feature.kind}'s rows are not finite; try dtype='float32'"
        else:
            self._rows[feature.digest] = rows

    def once(self, features: Sequence[Feature]) -> Tensor | str:
        """The rows of features, one after the other, which are not kept; or why one of them has none."""
        self.compute(features)
        found = [self._rows.get(feature.digest) for feature in features]
        errors = [self._errors[f.digest] for f, rows in zip(features, found, strict=True) if rows is None]
        self.drop(feature.digest for feature in features)
        return errors[0] if errors else torch.cat([rows for rows in found if rows is not None])

    def error(self, step: SequenceStep, state: SequenceState) -> str | None:
        """Why a step of a sequence cannot be computed: a feature in its tokens has no rows. None if it can."""
        for feature in _in_step(step, state):
            if feature.digest not in self._rows:
                return self._errors.get(feature.digest, f"the {feature.kind}'s rows are not there")
        return None

    def place(self, steps: Sequence[SequenceStep], states: Sequence[SequenceState]) -> PlacedRows | None:
        """What stands in the place of a step's tokens; None where nothing does.

        On later stages, which get them with the stream, the rows are zeros.
        """
        index, rows, first = [], [], 0
        for step, state in zip(steps, states, strict=True):
            for feature in _in_step(step, state):
                offset = feature.offset or 0
                takes = np.ones(feature.length, bool)
                if feature.takes is not None:
                    takes = np.frombuffer(feature.takes, bool)
                begin, end = max(0, step.start - offset), step.start + len(step.token_ids) - offset
                before = int(takes[:begin].sum())
                index.append(np.flatnonzero(takes[begin:end]) + (first + offset + begin - step.start))
                found = self._rows.get(feature.digest)
                # Where there are none, which is that sequence's error, zeros: placeholders need not be in the table.
                size = self._model.hidden_size
                zeros = torch.zeros(len(index[-1]), size, dtype=self._model.dtype, device=self._backend.device)
                rows.append(zeros if found is None else found[before : before + len(index[-1])])
            first += len(step.token_ids)
        if not index:
            return None
        places = torch.from_numpy(np.concatenate(index)).to(self._backend.device)
        return PlacedRows(places, torch.cat(rows), self._model.media is not None and self._model.media.adds)


def num_rows(feature: Feature) -> int:
    """How many rows a feature has: one for each place that takes one."""
    return feature.length if feature.takes is None else sum(feature.takes)


def _in_step(step: SequenceStep, state: SequenceState) -> Iterable[Feature]:
    """The features that have a place among the tokens of a step."""
    end = step.start + len(step.token_ids)
    for feature in state.start.features:
        offset = feature.offset
        if offset is not None and offset < end and step.start < offset + feature.length:
            yield feature


def in_place(steps: Sequence[SequenceStep], states: Sequence[SequenceState]) -> list[Feature]:
    """The features in place of tokens that a step computes first."""
    return [
        feature
        for step, state in zip(steps, states, strict=True)
        for feature in (state.start.features[i] for i in step.encodes)
        if feature.kind != ENCODER and feature.offset is not None
    ]
