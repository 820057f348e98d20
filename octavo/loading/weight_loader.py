"""Fill a model with a checkpoint's weights: every one goes where the name table says, or the load fails naming it."""

import math
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count, takewhile
from typing import Protocol, cast

import torch
from torch import Tensor
from tqdm import tqdm

from octavo.errors import ConfigError
from octavo.loading.expert_stacks import num_stacked, unstacked
from octavo.loading.formats import WeightFormat
from octavo.loading.packed_copies import PackedCopy
from octavo.loading.placement import WeightSize
from octavo.loading.precision import Precision
from octavo.loading.slot_filling import Filling, HeldWeight, Place, Problems, taken_rows
from octavo.loading.tensor_source import TensorSource, TransformedTensor
from octavo.ops import Backend, PackedLinear, StoredRows
from octavo.ops.host_memory import give_back
from octavo.ops.stored_rows import FLOATS, of_floats
from octavo.parts import CausalLM, Into, Names
from octavo.parts.weight_slots import Role, Shard, WeightSlot

NO_ROOM = (
    "the GPU's memory ran out while weights were read. Load them in fewer bits (quantization='int8' or 'q4'), or share "
    "them out among several GPUs (tensor_parallel_size)."
)
PROGRESS_ABOVE = 1 << 30
"""Bytes of weights from which loading shows a progress bar."""


def load_weights(
    model: CausalLM,
    weights: WeightFormat,
    precision: Precision,
    backend: Backend,
    where: str,
    copy: PackedCopy | None = None,
) -> dict[str, HeldWeight]:
    """Fill `model`, built on the meta device, with the weights of a checkpoint: then it is ready to compute.

    Args:
        where: the checkpoint's place, for messages.
        copy: of its packed weights, which are taken from there, kept there, and may stay there.

    Returns what it holds, by path. Raises CheckpointError that names every tensor at fault, and
    ConfigError where a device has no room.
    """
    names = weights.names(model.names)
    loader = WeightLoader(model, names, precision, backend, copy)
    try:
        loader.load(weights.weights(names), where)
    except BaseException as error:
        if copy is not None:
            copy.give_up()
        if isinstance(error, torch.OutOfMemoryError):
            raise ConfigError(f"{where}: {NO_ROOM}") from error
        raise
    if copy is not None:
        copy.keep()
    weights.drop_pages()
    model.prepare(backend)
    return loader.held


_Planned = tuple[str, TensorSource, Into | Place]


class TakesCheckpoint(Protocol):
    """What a checkpoint fills: a CausalLM, or who wants some of its weights."""

    def weight_slots_in(self, dtype: torch.dtype, round_media: bool = False) -> dict[str, WeightSlot]:
        """See CausalLM."""
        ...

    def does_without(self, path: str) -> bool:
        """See CausalLM."""
        ...


class WeightLoader:
    """Fills a model's slots tensor by tensor, and packs each weight as soon as it is whole, so that none is held twice.

    Args:
        model: says what it takes.
        names: the table from published names.
        precision: the number types that weights are held in.
        backend: what computes.
        copy: of packed weights, which need not be read.
    """

    def __init__(
        self,
        model: TakesCheckpoint,
        names: Names,
        precision: Precision,
        backend: Backend,
        copy: PackedCopy | None = None,
    ) -> None:
        self.model, self.names, self.precision, self.backend = model, names, precision, backend
        self._kinds = backend.capabilities.weight_kinds
        self._lock = threading.Lock()
        self._fillings = dict[str, Filling]()
        self.held = dict[str, HeldWeight]()
        """The weights that parts have taken, by path."""
        self._copy = copy
        for path, slot in model.weight_slots_in(precision.activations, precision.round_towers).items():
            segments: set[str | None] = {*slot.segments} or {None}
            self._fillings[path] = Filling(path, slot, segments, segments.copy())

    def load(self, tensors: Iterable[tuple[str, TensorSource]], where: str) -> None:
        """Fill the whole model. Raises CheckpointError that names every tensor at fault, most before any is read."""
        problems = Problems()
        plan = self._plan(tensors, problems)
        self._leave_out()
        problems.raise_if_any(where, self._missing([f.unclaimed for f in self._fillings.values()]))
        if self._copy is not None:
            self._copy.open([_size(filling) for filling in self._fillings.values()])
        plan = self._without_copied(self._in_order(plan))
        itemsize = self.precision.weights.itemsize
        total = sum(math.prod(f.shape) for f in self._fillings.values()) * itemsize
        bar = tqdm(
            total=total,
            unit="B",
            unit_scale=True,
            desc="Loading weights",
            disable=total < PROGRESS_ABOVE or not sys.stderr.isatty(),
        )

        def place(planned: _Planned) -> None:
            name, source, to = planned
            for each in self._of_stack(name, source, to, problems) if isinstance(to, Into) else [to]:
                if not each.filling.is_copied:
                    self._place(each)
                bar.update(math.prod(each.source.shape) * itemsize)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for _ in pool.map(place, plan):
                pass
        bar.close()
        problems.raise_if_any(where, self._missing([f.missing for f in self._fillings.values()]))
        give_back()

    def _in_order(self, plan: list[_Planned]) -> list[_Planned]:
        """A plan in which what fills one slot comes together, so that few are half full at a time."""
        places = {path: number for number, path in enumerate(self._fillings)}

        def place(planned: _Planned) -> int:
            to = planned[2]
            if isinstance(to, Place):
                return places.get(to.filling.path, 0)
            found = self._find(to.path.replace("{e}", "0"))
            return 0 if found is None else places[found[0].path]

        return sorted(plan, key=place)

    def _without_copied(self, plan: list[_Planned]) -> list[_Planned]:
        """Fill what is packed already, and leave of the plan what is to be read for the rest."""
        for path, filling in self._fillings.items():
            found = None if self._copy is None else self._copy.take(path, filling.shape, filling.slot.is_gated)
            if found is not None and self.precision.is_packed(filling.slot.role):
                filling.missing.clear()
                filling.is_copied = True
                self.held[path] = filling.held(found[1])
                filling.slot.load(found[0])

        def is_copied(to: Into | Place) -> bool:
            if isinstance(to, Place):
                return to.filling.is_copied
            experts = takewhile(bool, (self._find(to.path.replace("{e}", str(e))) for e in count()))
            return all(place is not None and place[0].is_copied for place in experts)

        return [planned for planned in plan if not is_copied(planned[2])]

    def _plan(self, tensors: Iterable[tuple[str, TensorSource]], problems: Problems) -> list[_Planned]:
        """Where each tensor goes. What goes nowhere is noted in `problems`."""
        plan = list[_Planned]()
        given = [(name, source, self.names.locate(name)) for name, source in tensors if not self.names.is_ignored(name)]
        self._cut_segments(given)
        for name, source, into in given:
            if into is not None and into.stacked:
                experts = 0
                while place := self._find(into.path.replace("{e}", str(experts))):
                    self._claim(*place)
                    experts += 1
                if not experts and self.model.does_without(into.path):
                    continue
                if num_stacked(source, into) == experts:
                    plan.append((name, source, into))
                else:
                    problems.misshapen.append(f"{name} {list(source.shape)} (expected: {experts} experts)")
            elif (located := self._locate(name, source, into, problems)) is not None:
                plan.append((name, source, located))
        return plan

    def _cut_segments(self, located: Iterable[tuple[str, TensorSource, Into | None]]) -> None:
        """Cut weights into segments as the checkpoint does, where all are there and are the whole weight together."""
        found = dict[str, dict[str, int]]()
        for _, source, into in located:
            place = self._find(into.path) if into is not None and into.cut_freely else None
            if into is not None and place is not None and place[1] is not None and source.shape:
                owner, _, leaf = into.path.rpartition(".")
                found.setdefault(f"{owner.rpartition('.')[0]}.{leaf}", {})[place[1]] = source.shape[0]
        for path, rows in found.items():
            filling = self._fillings[path]
            names = filling.slot.segments
            if rows.keys() == names.keys() and sum(rows.values()) == filling.slot.shape[0]:
                filling.slot = replace(filling.slot, segments={name: rows[name] for name in names})

    def _leave_out(self) -> None:
        """Tell parts of what the checkpoint does not have and they can do without."""
        for path, filling in list(self._fillings.items()):
            if filling.unclaimed and filling.slot.do_without is not None:
                filling.slot.do_without()
                del self._fillings[path]

    def _missing(self, segments: Iterable[set[str | None]]) -> list[str]:
        """Published names of what is not filled, each once: several segments may come from one published tensor."""
        names, missing = self.names, []
        for path, absent in zip(self._fillings, segments, strict=True):
            owner, _, leaf = path.rpartition(".")
            for segment in sorted(absent, key=str):
                part = path if segment is None else f"{owner}.{segment}.{leaf}"
                published = names.published(part)
                missing.append(names.published(path) if published == part else published)
        return list(dict.fromkeys(missing))

    def _find(self, path: str) -> tuple[Filling, str | None] | None:
        """What the tensor at `path` fills, and the segment of it that `path` names."""
        if path in self._fillings:
            return self._fillings[path], None
        owner, _, leaf = path.rpartition(".")
        owner, _, segment = owner.rpartition(".")
        filling = self._fillings.get(f"{owner}.{leaf}")
        return (filling, segment) if filling is not None and segment in filling.slot.segments else None

    @staticmethod
    def _claim(filling: Filling, segment: str | None) -> None:
        filling.unclaimed.clear() if segment is None else filling.unclaimed.discard(segment)

    def _locate(self, name: str, source: TensorSource, into: Into | None, problems: Problems) -> Place | None:
        """Where a tensor goes; None, with the problem noted, where it goes nowhere."""
        place = None if into is None else self._find(into.path)
        if into is None or place is None:
            if into is None or not self.model.does_without(into.path):
                problems.unexpected.append(name)
            return None
        filling, segment = place
        self._claim(filling, segment)
        rows = filling.slot.rows(segment)
        fits = filling.slot.shape if segment is None else (rows.stop - rows.start, *filling.slot.shape[1:])
        changed = source if into.transform is None else TransformedTensor(source, into.transform)
        if changed.shape != fits:
            # The shape as the file would have it.
            published = list(reversed(fits)) if changed.shape != source.shape and len(fits) == 2 else list(fits)
            problems.misshapen.append(f"{name} {list(source.shape)} (expected: {published})")
            filling.missing.discard(segment)
            filling.is_misshapen = True
            return None
        if filling.slot.shard is None:
            return Place(filling, segment, changed, rows)
        taken, rows = taken_rows(filling.slot, segment)
        return Place(filling, segment, changed.part(Shard(taken, filling.slot.shard.columns)), rows)

    def _of_stack(self, name: str, source: TensorSource, into: Into, problems: Problems) -> Iterator[Place]:
        """Where the parts of a tensor go that stacks one for each expert."""
        for e, own in enumerate(unstacked(source, into)):
            expert = Into(into.path.replace("{e}", str(e)))
            with self._lock:
                place = self._locate(f"{name}[{e}]", own, expert, problems)
            if place is not None:
                yield place

    def _place(self, place: Place) -> None:
        """Put one tensor where it goes. Several threads do this at a time."""
        filling, segment, source, role = place.filling, place.segment, place.source, place.filling.slot.role
        stored = rows = None
        if self._kinds and self.precision.is_packed(role) and math.prod(source.shape):
            stored = source.stored()
            rows = None if stored is None else self._without_copy(stored, role)
        if rows is None:
            with self._lock:
                if filling.floats is None:
                    dtype = self.precision.dtype_of(role)
                    filling.floats = torch.empty(filling.shape, dtype=dtype, device=self.backend.device)
                target = filling.floats[place.rows] if filling.shape else filling.floats
            if stored is not None and stored.data.is_floating_point():
                target.copy_(stored.data)
            elif target.numel():
                source.copy_to(target)
        with self._lock:
            if rows is not None:
                filling.stored[segment] = rows
            filling.missing.clear() if segment is None else filling.missing.discard(segment)
            if not filling.missing and not filling.is_misshapen:
                self._finish(filling)

    def _without_copy(self, stored: StoredRows, role: Role) -> StoredRows | None:
        """What is packed of a weight's rows, where they need not be converted to floats of another dtype first."""
        if self.precision.as_stored:
            return stored if stored.kind in self._kinds else None
        if role is Role.TABLE or stored.kind != FLOATS[self.precision.dtype_of(role)]:
            return None
        kind = self.precision.rounding_of(role)
        return stored if kind is None else self.backend.quantize(stored.data, kind)

    def _finish(self, filling: Filling) -> None:
        """Hand a slot that is whole to its part."""
        slot, role, floats, stored = filling.slot, filling.slot.role, filling.floats, filling.stored
        filling.floats, filling.stored, fine = None, {}, self.precision.is_fine(role)
        apart = self._copy is not None and self._copy.on_disk(slot.share)
        if stored:
            segments = [None] if None in stored else slot.segments
            taken = {s: taken_rows(slot, s)[1] for s in segments}
            rows = [
                stored.get(s) or self._rounded(cast(Tensor, floats)[taken[s]], role)
                for s in segments
                if taken[s].start != taken[s].stop
            ]
            self._give(filling, self.backend.stored_linear(rows, fine, apart), sum(part.data.nbytes for part in rows))
            return
        assert floats is not None
        if not self.precision.is_packed(role) or (role is Role.TABLE and floats.dtype == self.precision.activations):
            self.held[filling.path] = filling.held(floats.nbytes)
            slot.load(floats)
        elif self.precision.rounding_of(role) is None:
            self._give(filling, self.backend.linear(floats, apart), floats.nbytes)
        else:
            rounded = self._rounded(floats, role)
            self._give(filling, self.backend.stored_linear([rounded], fine, apart), rounded.data.nbytes)

    def _give(self, filling: Filling, weight: PackedLinear, size: int) -> None:
        self.held[filling.path] = filling.held(size)
        if self._copy is None or not self._copy.on_disk(filling.slot.share):
            weight = self.backend.beside_threads(weight, filling.slot.is_gated)
        kept = weight if self._copy is None else self._copy.put(filling.path, weight, size, filling.slot.share)
        filling.slot.load(kept)

    def _rounded(self, weight: Tensor, role: Role) -> StoredRows:
        kind = self.precision.rounding_of(role)
        return of_floats(weight) if kind is None else self.backend.quantize(weight, kind)


def _size(filling: Filling) -> WeightSize:
    count, of = math.prod(filling.shape), math.prod(filling.slot.shape)
    return WeightSize(filling.path, filling.slot.role, count, of, filling.slot.share)
