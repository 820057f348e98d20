"""From published tensor names to parameters: one table serves checkpoints of every format.

A table maps a module's published name to the path of a module here, for example

    "model.layers.{i}.self_attn.{q|k|v}_proj": "layers.{i}.attn.qkv.{q|k|v}"

`{i}` (any name) stands for a number, and `{a|b}` for alternatives, which match by their order on both sides. The last
component of a tensor's name (weight, bias) is carried over. A right side that names a segment of a merged Linear
(`qkv.q`) fills that part of it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor

Transform = Callable[[Tensor], Tensor]
NO_SPELLINGS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Into:
    """A place in the model, with what has to be done to a published tensor to fit it."""

    path: str
    transform: Transform | None = None
    full_name: bool = False
    """The published name is a tensor's full name and `path` a parameter's, without a suffix to carry over."""
    stacked: bool = False
    """The published tensor stacks one for each expert; `path` keeps its `{e}`, which the loader counts out."""
    cut_freely: bool = False
    """The tensors of a weight's segments are the weight when they lie one after the other, wherever they are cut."""

    def with_path(self, path: str) -> "Into":
        return replace(self, path=path)


def _transpose(tensor: Tensor) -> Tensor:
    return tensor.t() if tensor.dim() == 2 else tensor


def transposed(path: str) -> Into:
    """For weights published as `[in, out]` (GPT-2's Conv1D); biases pass unchanged."""
    return Into(path, _transpose)


def parameter(path: str, transform: Transform | None = None) -> Into:
    """For a tensor that is not a module's weight or bias, such as Mamba's A_log."""
    return Into(path, transform, full_name=True)


def stacked(path: str, transform: Transform | None = None, full_name: bool = False) -> Into:
    """For a tensor that stacks one for each expert: `path` has `{e}` where their number goes.

    `transform` makes the stack `[experts, ...]` of what is published; `full_name` as in Into.
    """
    return Into(path, transform, full_name, stacked=True)


def grouped_qkv(path: str, num_kv_heads: int, group: int, head_dim: int) -> Into:
    """For fused q, k, v published by key head: its `group` query heads, its key, its value, then the next.

    `group` 1 is GPT-NeoX's and BLOOM's q, k, v for each head in turn; one key head is Falcon-7B's multi-query layout.
    """

    def regroup(weight: Tensor) -> Tensor:
        parts = weight.reshape(num_kv_heads, group + 2, head_dim, *weight.shape[1:])
        q, k, v = parts[:, :group], parts[:, group], parts[:, group + 1]
        return torch.cat([x.reshape(-1, *weight.shape[1:]) for x in (q, k, v)])

    return Into(path, regroup)


def alternating(path: str) -> Into:
    """For fused gate and up whose outputs alternate, gate first (Phi-3-small)."""
    return Into(path, lambda w: w.reshape(-1, 2, *w.shape[1:]).transpose(0, 1).reshape(w.shape))


def gate_second(path: str) -> Into:
    """For fused gate and up whose gate is the second half (Molmo, Ultravox)."""
    return Into(path, lambda w: torch.cat(w.chunk(2)[::-1]))


def of_layer(table: Mapping[str, str | Into], layer: int) -> dict[str, str | Into]:
    """A table's entries for one layer alone: layers of several kinds share published names."""
    known = {key: into if isinstance(into, Into) else Into(into) for key, into in table.items()}
    number = str(layer)
    return {k.replace("{i}", number): into.with_path(into.path.replace("{i}", number)) for k, into in known.items()}


_ALTERNATIVES = re.compile(r"\{([^{}]*\|[^{}]*)\}")
_NUMBER = re.compile(r"\{(\w+)\}")


def _expand(published: str, path: str) -> Iterator[tuple[str, str]]:
    """The entry once for each of its alternatives."""
    left = _ALTERNATIVES.search(published)
    if left is None:
        yield published, path
        return
    options = left[1].split("|")
    right = _ALTERNATIVES.search(path)
    targets = right[1].split("|") if right else [None] * len(options)
    if len(options) != len(targets):
        raise ValueError(f"name table: {published!r} and {path!r} have different numbers of alternatives")
    for option, target in zip(options, targets, strict=True):
        new_path = path if target is None or right is None else path[: right.start()] + target + path[right.end() :]
        yield from _expand(published[: left.start()] + option + published[left.end() :], new_path)


@dataclass(frozen=True)
class _Entry:
    published: str
    into: Into
    pattern: re.Pattern[str]


class Names:
    """A model's name table.

    Args:
        table: published module name to path or Into, as described above.
        ignored: published tensor names (with `{i}`) that hold no weights, buffers of older code; or with `.*` at the
            end, the beginnings of all that this model does without.
        prefix: a beginning of the published names that some checkpoints leave out.
        spellings: other beginnings of published names that some checkpoints have, and those of the table.
        beside: beginnings of published names of what is no part of the model: towers, layers that predict more tokens.
    """

    def __init__(
        self,
        table: Mapping[str, str | Into],
        ignored: tuple[str, ...] = (),
        prefix: str = "",
        spellings: Mapping[str, str] = NO_SPELLINGS,
        beside: tuple[str, ...] = (),
    ) -> None:
        self.table = {
            name: into.with_path(path)
            for key, value in table.items()
            for into in [Into(value) if isinstance(value, str) else value]
            for name, path in _expand(key, into.path)
        }
        """Published name to place, alternatives expanded, numbers still templates."""
        self.ignored = ignored
        self.prefix, self.spellings, self.beside = prefix, spellings, beside

    @cached_property
    def _ignored(self) -> list[re.Pattern[str]]:
        return [self._pattern(i, "") for i in self.ignored]

    @cached_property
    def _entries(self) -> list[_Entry]:
        """The table's, compiled when a name is first looked for: most tables are only the makings of another."""
        return [
            _Entry(name, into, self._pattern(name, "" if into.full_name else r"\.(?P<suffix>[^.]+)"))
            for name, into in self.table.items()
        ]

    def extended(self, table: Mapping[str, str | Into]) -> "Names":
        """This table with more entries."""
        return Names({**self.table, **table}, self.ignored, self.prefix, self.spellings, self.beside)

    def under(self, prefix: str) -> "Names":
        """This table for a checkpoint that has the model as a part of another, its names after `prefix`."""
        table: dict[str, str | Into] = {prefix + name: into for name, into in self.table.items()}
        ignored, beside = (tuple(prefix + name for name in names) for names in (self.ignored, self.beside))
        return Names(table, ignored, beside=beside)

    def renamed(self, beginning: str, other: str) -> "Names":
        """This table for a checkpoint in which names that begin with `beginning` begin with `other`."""

        def named(name: str) -> str:
            return other + name.removeprefix(beginning) if name.startswith(beginning) else name

        table: dict[str, str | Into] = {named(name): into for name, into in self.table.items()}
        return Names(table, tuple(map(named, self.ignored)), beside=tuple(map(named, self.beside)))

    def spelled(self, spellings: Mapping[str, str]) -> "Names":
        """This table, which also knows names with other beginnings: `{as stored: as in the table}`."""
        return Names(self.table, self.ignored, self.prefix, {**self.spellings, **spellings}, self.beside)

    def leaving_out(self, *beginnings: str) -> "Names":
        """This table for checkpoints that have more than the model: what begins so is none of it."""
        return Names(self.table, self.ignored, self.prefix, self.spellings, (*self.beside, *beginnings))

    def taking(self, table: Mapping[str, str | Into], begins: str, ignored: tuple[str, ...]) -> "Names":
        """This table for a model that has what it leaves out elsewhere: tensors that begin so, named by `table`."""
        beside = tuple(name for name in self.beside if not begins.startswith(name))
        return Names({**table, **self.table}, (*self.ignored, *ignored), self.prefix, self.spellings, beside)

    def replacing(self, table: Mapping[str, str | Into]) -> "Names":
        """This table with other entries for the parameters, or parts of them, that `table` has names for."""
        paths = [into.path for into in Names(table).table.values()]
        kept = {
            name: into
            for name, into in self.table.items()
            if not any(into.path == path or into.path.startswith(path + ".") for path in paths)
        }
        return Names({**kept, **table}, self.ignored, self.prefix, self.spellings, self.beside)

    def _pattern(self, published: str, suffix: str) -> re.Pattern[str]:
        body = re.escape(published)
        body = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", body)
        body = re.sub(r"\\\.\\\*$", r"\\..*", body)
        if self.prefix and published.startswith(self.prefix):
            body = f"(?:{re.escape(self.prefix)})?" + body.removeprefix(re.escape(self.prefix))
        return re.compile(body + suffix)

    def _spelled(self, name: str) -> str:
        """A published name as the table has it."""
        for stored, here in self.spellings.items():
            if name.startswith(stored):
                return here + name.removeprefix(stored)
        return name

    def is_ignored(self, name: str) -> bool:
        name = self._spelled(name)
        return name.startswith(self.beside) or any(p.fullmatch(name) for p in self._ignored)

    def locate(self, name: str) -> Into | None:
        """The parameter (or its segment) that the published tensor `name` fills, or None for an unknown name."""
        name = self._spelled(name)
        for entry in self._entries:
            if match := entry.pattern.fullmatch(name):
                numbers = match.groupdict()
                suffix = numbers.pop("suffix", None)
                path = _NUMBER.sub(lambda m: numbers.get(m[1], m[0]), entry.into.path)  # noqa: B023
                return entry.into.with_path(path if suffix is None else f"{path}.{suffix}")
        return None

    def published(self, path: str) -> str:
        """The published name of the parameter (or segment) at `path`, for messages."""
        for entry in sorted(self._entries, key=lambda entry: not entry.into.full_name):
            target = re.escape(entry.into.path)
            target = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", target)
            if match := re.fullmatch(target + ("" if entry.into.full_name else r"\.(?P<suffix>[^.]+)"), path):
                numbers = match.groupdict()
                suffix = numbers.pop("suffix", None)
                name = _NUMBER.sub(lambda m: numbers.get(m[1], m[0]), entry.published)  # noqa: B023
                return name if suffix is None else f"{name}.{suffix}"
        return path
