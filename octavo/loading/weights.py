"""Fill a model with a checkpoint's tensors: every one goes where the name table says, or the load fails naming it."""

import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from octavo.errors import CheckpointError, shorten
from octavo.loading.checkpoint import ChangedSource, PlainSource, TensorSource, stored_rows
from octavo.loading.precision import Precision
from octavo.ops import Backend, large_pages
from octavo.ops.stored_rows import StoredRows, of_floats
from octavo.parts import CausalLM, Embedding, Linear
from octavo.parts.names import Into, Transform

OPTIONAL_MODULES = ("head",)
"""Parts that a build may leave out though the checkpoint has their weights: a head for embeddings, a tied head."""
SHOWN = 6
PROGRESS_ABOVE = 1 << 30
"""Parameters' bytes from which loading shows a progress bar."""


@dataclass
class _Slot:
    """One parameter, and which of its segments are still to be filled."""

    module: nn.Module
    name: str
    shape: tuple[int, ...]
    missing: set[str | None]
    unclaimed: set[str | None] = field(default_factory=set)
    """Which of them no tensor's name or shape says it fills."""


_Place = tuple[_Slot, str | None, Transform | None, slice]
"""A parameter, which segment of it a tensor fills, what is done to the tensor first, and the segment's rows."""


@dataclass
class _Problems:
    """What is wrong with a checkpoint, gathered so that one error tells all."""

    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def raise_if_any(self, where: str, missing: list[str]) -> None:
        parts = []
        for label, names in (
            ("tensors missing", missing),
            ("tensors that the model has no place for", self.unexpected),
            ("tensors of a wrong shape", self.misshapen),
        ):
            if names:
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                shown = ", ".join(shorten(name, 200) for name in names[:SHOWN])
                parts.append(f"{len(names)} {label}: {shown}{more}")
        if parts:
            raise CheckpointError(
                f"{where} does not fit its config: {'; '.join(parts)}. "
                "Is the download complete, and config.json its own?"
            )


class WeightLoader:
    """Fills `model` (built on the meta device) tensor by tensor, and lays each layer out as soon as it is whole.

    Args:
        model: its parameters are created here, one by one, so that nothing is held twice.
        precision: the number types that it is held in.
        backend: what computes.
    """

    def __init__(self, model: CausalLM, precision: Precision, backend: Backend) -> None:
        self.model, self.precision, self.backend = model, precision, backend
        model.dtype = precision.activations
        self._lock = threading.Lock()
        self.slots: dict[str, _Slot] = {}
        self.tables: dict[nn.Module, StoredRows] = {}
        for prefix, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                segments = module.segments if isinstance(module, Linear) else {}
                path = f"{prefix}.{name}" if prefix else name
                if not (model.tied and path == "head.weight"):
                    left: set[str | None] = {*segments} or {None}
                    self.slots[path] = _Slot(module, name, tuple(parameter.shape), left, left.copy())

    def load(self, tensors: Iterable[tuple[str, TensorSource]], where: str) -> None:
        """Fill and prepare the whole model. Raises CheckpointError that names every tensor at fault.

        By their names and shapes, all are held against the model before any is read.
        """
        problems = _Problems()
        plan = self._plan(tensors, problems)
        problems.raise_if_any(where, self._missing(before=True))
        itemsize = self.precision.weights.itemsize
        total = sum(p.numel() for p in self.model.parameters()) * itemsize
        bar = tqdm(
            total=total,
            unit="B",
            unit_scale=True,
            desc="Loading weights",
            disable=total < PROGRESS_ABOVE or not sys.stderr.isatty(),
        )

        def place(planned: tuple[str, TensorSource, Into | _Place]) -> None:
            name, source, to = planned
            if isinstance(to, Into):
                self._place_stack(name, source, to, problems)
            else:
                self._place(source, to)
            bar.update(int(torch.Size(source.shape).numel()) * itemsize)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for _ in pool.map(place, plan):
                pass
        bar.close()
        for path in self.model.zero_if_absent:
            slot = self.slots[path]
            if slot.missing:
                self._parameter(slot).zero_()
                slot.missing.clear()
        head = self.slots.get("head.weight")
        if self.model.tied_if_absent and head is not None and head.missing:
            self.model.tied = True
            head.missing.clear()
        problems.raise_if_any(where, self._missing(before=False))
        self._share_table()
        large_pages.give_back()
        for module in self.model.modules():
            prepare = getattr(module, "prepare", None)
            if prepare is not None and not isinstance(module, Linear):
                prepare(self.backend)

    def _plan(
        self, tensors: Iterable[tuple[str, TensorSource]], problems: _Problems
    ) -> list[tuple[str, TensorSource, Into | _Place]]:
        """Where each tensor goes. What goes nowhere is noted in `problems`."""
        plan = list[tuple[str, TensorSource, Into | _Place]]()
        for name, source in tensors:
            if self.model.names.is_ignored(name):
                continue
            into = self.model.names.locate(name)
            if into is not None and into.stacked:
                experts = 0
                while found := self._find(into.path.replace("{e}", str(experts))):
                    found[0].unclaimed.clear() if found[1] is None else found[0].unclaimed.discard(found[1])
                    experts += 1
                if self._num_stacked(source, into) == experts:
                    plan.append((name, source, into))
                else:
                    problems.misshapen.append(f"{name} {list(source.shape)} (wanted {experts} experts)")
            elif (place := self._locate(name, source, into, problems)) is not None:
                plan.append((name, source, place))
        return plan

    @staticmethod
    def _num_stacked(source: TensorSource, into: Into) -> int | None:
        """For how many experts a tensor is; None where its shape is none of a stack."""
        shape = source.shape
        if into.transform is not None:
            try:
                shape = tuple(into.transform(torch.empty(shape, device="meta")).shape)
            except RuntimeError:  # the transform's reshape does not fit
                return None
        return shape[0] if shape else None

    def _share_table(self) -> None:
        """Lay the token table out where products are made with it, so that it is held once."""
        tokens, head = self.model.tokens, self.model.head
        stored = self.tables.pop(tokens, None)
        if self.model.tied and head is not None:
            if stored is not None:
                head.stored[None] = stored
            else:
                head.weight = tokens.weight
            head.prepare(self.backend, self.precision.round_head_to, fine=True)
            assert head.kernel is not None
            tokens.read_from(head.kernel, self.precision.activations)
        elif stored is not None:
            tokens.read_from(self.backend.stored_linear([stored]), self.precision.activations)
        elif tokens.weight is not None and tokens.weight.dtype != self.precision.activations:
            tokens.read_from(self.backend.linear(tokens.weight.data), self.precision.activations)

    def _missing(self, *, before: bool) -> list[str]:
        """Published names of what is not filled, each once: several segments may come from one published tensor.

        `before` anything is read: of what nothing will fill.
        """
        names, missing = self.model.names, []
        optional = {*self.model.zero_if_absent, *(("head.weight",) if self.model.tied_if_absent else ())}
        for path, slot in self.slots.items():
            if before and path in optional:
                continue
            for segment in sorted(slot.unclaimed if before else slot.missing, key=str):
                part = path if segment is None else f"{path.rpartition('.')[0]}.{segment}.{slot.name}"
                published = names.published(part)
                missing.append(names.published(path) if published == part else published)
        return list(dict.fromkeys(missing))

    def _find(self, path: str) -> tuple[_Slot, str | None] | None:
        """The slot at `path`, and the segment of it that `path` names."""
        if path in self.slots:
            return self.slots[path], None
        owner, _, name = path.rpartition(".")
        owner, _, segment = owner.rpartition(".")
        slot = self.slots.get(f"{owner}.{name}")
        if slot is not None and isinstance(slot.module, Linear) and segment in slot.module.segments:
            return slot, segment
        return None

    def _place_stack(self, name: str, source: TensorSource, into: Into, problems: _Problems) -> None:
        """Put a tensor that stacks one for each expert where its parts go."""
        stack = source.read()
        if into.transform is not None:
            stack = into.transform(stack)
        for e, part in enumerate(stack):
            one, plain = Into(into.path.replace("{e}", str(e))), PlainSource(part)
            with self._lock:
                found = self._locate(f"{name}[{e}]", plain, one, problems)
            if found is not None:
                self._place(plain, found)

    def _place(self, source: TensorSource, place: _Place) -> None:
        """Put one tensor where it goes. Several threads do this at a time."""
        slot, segment, transform, rows = place
        if self._keep(source, slot, segment, transform):
            return
        with self._lock:
            target = self._parameter(slot)[rows]
        if transform is None:
            source.copy_to(target)
        else:
            target.copy_(transform(source.read()))
        with self._lock:
            self._filled(slot, segment)

    def _locate(self, name: str, source: TensorSource, into: Into | None, problems: _Problems) -> _Place | None:
        """Where a tensor goes, and to which rows; None, with the problem noted, where it goes nowhere."""
        found = None if into is None else self._find(into.path)
        if into is None or found is None:
            if into is None or into.path.split(".")[0] not in OPTIONAL_MODULES:
                problems.unexpected.append(name)
            return None
        slot, segment = found
        slot.unclaimed.clear() if segment is None else slot.unclaimed.discard(segment)
        rows = slot.module.segment(segment) if segment and isinstance(slot.module, Linear) else slice(0, slot.shape[0])
        wanted = (rows.stop - rows.start, *slot.shape[1:])
        shape = source.shape
        if into.transform is not None:
            shape = tuple(into.transform(torch.empty(shape, device="meta")).shape)
        if shape != wanted:
            expected = self._published_shape(source, shape, wanted)
            problems.misshapen.append(f"{name} {list(source.shape)} (wanted {expected})")
            slot.missing.discard(segment)
            return None
        return slot, segment, into.transform, rows

    def _keep(self, source: TensorSource, slot: _Slot, segment: str | None, transform: Transform | None) -> bool:
        """Take a weight as its file stores it, where it is computed with so. Whether that was done."""
        is_table = isinstance(slot.module, Embedding)
        if not self.precision.as_stored or slot.name != "weight" or not (is_table or isinstance(slot.module, Linear)):
            return False
        stored = stored_rows(source if transform is None else ChangedSource(source, transform))
        if stored is None:
            if is_table or not isinstance(slot.module, Linear):
                return False
            plain = torch.empty(source.shape)
            source.copy_to(plain)
            stored = of_floats((plain if transform is None else transform(plain)).half())
        with self._lock:
            if isinstance(slot.module, Linear):
                slot.module.stored[segment] = stored
            elif slot.module is self.model.tokens:
                self.tables[slot.module] = stored
                slot.module.weight = None
            else:
                return False
            self._filled(slot, segment)
        return True

    @staticmethod
    def _published_shape(source: TensorSource, shape: tuple[int, ...], wanted: tuple[int, ...]) -> list[int]:
        """The wanted shape as the file would have it."""
        return list(reversed(wanted)) if shape != source.shape and len(wanted) == 2 else list(wanted)

    def _parameter(self, slot: _Slot) -> Tensor:
        parameter: nn.Parameter = getattr(slot.module, slot.name)
        if parameter.is_meta:
            exact = getattr(slot.module, "float32_parameters", False) or slot.name == "bias"
            dtype = torch.float32 if exact else self._dtype(slot.module)
            empty = torch.empty(slot.shape, dtype=dtype, device=self.backend.device)
            parameter = nn.Parameter(empty, requires_grad=False)
            setattr(slot.module, slot.name, parameter)
        return parameter.data

    def _dtype(self, module: nn.Module) -> torch.dtype:
        """Weights have their own dtype, and so has the token table; whatever is read plainly has the activations'."""
        is_weight = module is self.model.tokens or isinstance(module, Linear)
        return self.precision.weights if is_weight else self.precision.activations

    def _filled(self, slot: _Slot, segment: str | None) -> None:
        slot.missing.clear() if segment is None else slot.missing.discard(segment)
        module = slot.module
        if isinstance(module, Linear) and slot.name == "weight" and not slot.missing:
            of_head = module is self.model.head
            # A logit's error is the answer's own: half of all that rounding would cost comes from the head's rows.
            round_to = self.precision.round_head_to if of_head else self.precision.round_to
            module.prepare(self.backend, round_to, fine=of_head)
