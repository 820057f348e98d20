"""Adapters from their files: what each says of the model's weights, as parts compute with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.config import EngineArgs
from octavo.errors import CheckpointError, InvalidRequestError, ModelNotFoundError, shorten
from octavo.loading.adapter_files import AdapterConfig, read_config, read_tensors
from octavo.loading.adapter_gguf import read_gguf
from octavo.loading.adapter_paths import find_adapter
from octavo.loading.adapter_places import Place, Places, spellings
from octavo.loading.adapter_shards import share_of_rank, with_magnitudes
from octavo.loading.adapter_stacks import is_target, stack_of
from octavo.loading.adapter_tensors import ModuleTensors, by_module
from octavo.loading.formats import WeightFormat
from octavo.loading.model import LoadedModel
from octavo.lora import AdapterRef
from octavo.ops import LowRank
from octavo.parts.linear_layer import LinearChange
from octavo.parts.weight_adapter import AdapterOptions, TakesAdapters, WeightAdapter
from octavo.parts.weight_slots import Role

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PRODUCTS = (Role.MULTIPLIED, Role.EXACT, Role.HEAD)
"""What Linears have."""
LIKELY_BYTES = 1 << 30
"""An adapter may have so many, however small the model."""


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter, ready to be put into a slot."""

    name: str
    changes: dict[str, object]
    """Path of a part to what it makes of its weight: `TakesAdapters.adapter_change`."""
    num_embeddings: int
    """Token ids of prompts are below it."""
    vocab_size: int
    """Token ids of answers are below it."""
    only_tables: bool
    """Whether it changes nothing but what AdapterTables do, so that recorded steps can have it."""

    def check_prompt(self, token_ids: Sequence[int]) -> None:
        """Raises InvalidRequestError for token ids that neither the model nor the adapter has a row for."""
        if (largest := max(token_ids, default=0)) >= self.num_embeddings:
            raise InvalidRequestError(
                f"prompt_token_ids holds {largest}, outside the vocabulary that the adapter {self.name!r} gives this "
                f"model (0 to {self.num_embeddings - 1})."
            )


def load_adapter(ref: AdapterRef, loaded: LoadedModel, args: EngineArgs) -> LoadedAdapter:
    """Read an adapter's files, hold them against the model, and have its parts make what they compute with.

    Raises InvalidRequestError that names what is wrong and the remedy.
    """
    try:
        folder = find_adapter(ref.path, args)
    except (CheckpointError, ModelNotFoundError) as error:
        raise InvalidRequestError(f"the adapter {ref.name!r}: {error}") from error
    if folder.is_file():
        config, modules, names = read_gguf(folder, ref, loaded)
    else:
        model = 4 * sum(place.size for place in loaded.places.values())
        config, names = read_config(folder), loaded.model.names
        modules = by_module(read_tensors(folder, ref, max(LIKELY_BYTES, 2 * model)))
    _check_pairs(modules, ref)
    places = Places(names, loaded.places, loaded.model.does_without)
    reader = AdapterReader(places, config, args.max_lora_rank, ref.name, loaded.weights)
    weights = reader.read(modules)
    if not weights:
        raise InvalidRequestError(f"the adapter {ref.name!r} has no tensors. Is its file complete?")
    _share_table(loaded, weights)
    for path, weight in weights.items():
        if path != loaded.table:
            _settle(weight, loaded.places[f"{path}.weight"].shape)
    return _finished(ref, loaded, args, weights)


def _check_pairs(modules: Mapping[str, ModuleTensors], ref: AdapterRef) -> None:
    """Refuse one of two matrices, and values that are not finite."""
    for module, found in modules.items():
        if lacking := found.lacking:
            raise InvalidRequestError(
                f"the adapter {ref.name!r} has only one of the matrices of {shorten(module)}; there is no {lacking}. "
                "Is its file complete?"
            )
        for part, tensor in found.parts.items():
            if not bool(torch.isfinite(tensor).all()):
                raise InvalidRequestError(
                    f"the adapter {ref.name!r}: {shorten(module)} ({part}) has values that are not finite."
                )


class AdapterReader:
    """Makes what parts take of an adapter's tensors.

    Args:
        places: of the model's weights.
        config: the adapter's.
        max_rank: most that a module's matrices may have.
        name: the adapter's, for messages.
        base: the model's weights as they were published.
    """

    def __init__(self, places: Places, config: AdapterConfig, max_rank: int, name: str, base: WeightFormat) -> None:
        self.places, self.config, self.max_rank, self.name, self.base = places, config, max_rank, name, base
        self.weights: dict[str, WeightAdapter] = {}

    def read(self, modules: Mapping[str, ModuleTensors]) -> dict[str, WeightAdapter]:
        """What the adapter says of each weight, by the paths of parts.

        Raises InvalidRequestError that names the tensors at fault.
        """
        for module, found in modules.items():
            parts = found.parts
            if "a" in parts and self._read_stack(module, parts["a"], parts["b"]):
                continue
            place = self.places.find(module)
            if place is None and self.places.is_left_out(module):
                continue
            if place is None:
                raise self._refused(
                    module, "is of no layer of this model. Is it trained for this model, and for this class of it?"
                )
            self._read_module(module, place, parts)
        return self.weights

    def _refused(self, what: str, why: str) -> InvalidRequestError:
        return InvalidRequestError(f"the adapter {self.name!r}: {shorten(what)} {why}")

    def _misshapen(self, what: str, tensor: Tensor, expected: Sequence[int]) -> InvalidRequestError:
        return self._refused(
            what, f"has the shape {list(tensor.shape)} (expected: {list(expected)}). Is it trained for this model?"
        )

    def _read_module(self, module: str, place: Place, parts: Mapping[str, Tensor]) -> None:
        weight = self.weights.setdefault(place.path, WeightAdapter())
        if "weight" in parts:
            self._whole(f"{module}.weight", place, weight, parts["weight"])
        for leaf, tensor in parts.items():
            if leaf in ("bias", "b_bias", "lengths"):
                self._vector(module, leaf, place, weight, parts)
            elif leaf == "tokens":
                self._tokens(module, place, weight, tensor)
            elif leaf not in ("weight", "a", "b", "table_a", "table_b"):
                raise self._refused(f"{module}.{leaf}", "is of no kind that can be used.")
        if "a" in parts:
            self._matrices(module, place, weight, parts["a"], parts["b"])
        if "table_a" in parts:
            self._table(module, place, weight, parts["table_a"], parts["table_b"])

    def _outputs(self, place: Place, weight: WeightAdapter) -> int:
        """Of a module, with those that the adapter adds: tokens of a table or a head."""
        return place.outputs if weight.weight is None or not place.is_whole else len(weight.weight)

    def _rank(self, module: str, rank: int) -> int:
        if rank > self.max_rank:
            raise self._refused(
                module, f"has the rank {rank}, above max_lora_rank={self.max_rank}. Start the engine with a larger one."
            )
        return rank

    def _matrices(self, module: str, place: Place, weight: WeightAdapter, a: Tensor, b: Tensor) -> None:
        if a.dim() != 2 or b.dim() != 2 or len(place.shape) != 2:
            raise self._refused(module, "is no linear layer here; only those can have matrices of low rank.")
        if a.shape[1] != place.inputs:
            raise self._misshapen(f"{module}.lora_A.weight", a, (len(a), place.inputs))
        outputs = self._outputs(place, weight)
        if b.shape != (outputs, len(a)):
            raise self._misshapen(f"{module}.lora_B.weight", b, (outputs, len(a)))
        name = f"{module}.weight"
        key = name if is_target(name, self.config.target_parameters) else module
        b = b * self.config.scale(key, self._rank(module, len(a)))
        if place.moves_outputs:
            weight.low_rank.append(LowRank(place.first, a, place.rows_in_order(b)))
        else:
            self._whole(name, place, weight, self._published(module) + b @ a)

    def _published(self, module: str) -> Tensor:
        """The weight of a module as the checkpoint has it, in float32."""
        names = {f"{name}.weight" for name in spellings(module)}
        for name, source in self.base.weights(self.base.names(self.places.names)):
            if name in names:
                return source.read().float()
        raise self._refused(module, "changes a weight that the checkpoint has no more.")

    def _table(self, module: str, place: Place, weight: WeightAdapter, a: Tensor, b: Tensor) -> None:
        """Of a token table, whose matrices are the other way round."""
        if b.dim() != 2 or len(b) != place.inputs:
            raise self._misshapen(f"{module}.lora_embedding_B", b, (place.inputs, b.shape[-1]))
        if a.shape != (expected := (b.shape[1], self._outputs(place, weight))):
            raise self._misshapen(f"{module}.lora_embedding_A", a, expected)
        scale = self.config.scale(module, self._rank(module, len(a)))
        weight.low_rank.append(LowRank(0, b.t().contiguous(), a.t().contiguous() * scale))

    def _vector(self, module: str, leaf: str, place: Place, weight: WeightAdapter, parts: Mapping[str, Tensor]) -> None:
        """A bias, what is added to it, or lengths: a number an output, put where the module's outputs are."""
        tensor = parts[leaf].flatten()
        of_columns = leaf == "lengths" and "table_a" in parts
        count = place.inputs if of_columns else self._outputs(place, weight)
        if len(tensor) != count:
            name = {"bias": ".bias", "b_bias": ".lora_B.bias", "lengths": ".lora_magnitude_vector"}[leaf]
            raise self._misshapen(module + name, parts[leaf], (count,))
        if of_columns:
            weight.lengths = tensor
            return
        attribute = {"bias": "bias", "b_bias": "added_bias", "lengths": "lengths"}[leaf]
        if leaf == "b_bias":
            tensor = tensor * self.config.scale(module, len(parts["a"]))
        whole = getattr(weight, attribute)
        if whole is None:
            rows = count if place.is_whole else place.all_outputs
            whole = torch.full((rows,), 0.0 if leaf == "b_bias" else torch.nan)
            setattr(weight, attribute, whole)
        whole[place.first : place.first + count] = place.rows_in_order(tensor)

    def _whole(self, name: str, place: Place, weight: WeightAdapter, tensor: Tensor) -> None:
        """A whole weight in the place of the model's."""
        fitted = place.fitted(tensor)
        if fitted is None:
            raise self._misshapen(name, tensor, place.shape)
        if place.is_whole:
            weight.weight = fitted
            return
        if weight.weight is None:
            weight.weight = torch.full((place.all_outputs, place.inputs), torch.nan)
        weight.weight[place.first : place.first + len(fitted)] = fitted

    def _tokens(self, module: str, place: Place, weight: WeightAdapter, rows: Tensor) -> None:
        ids = self.config.tokens(module)
        if not ids or rows.shape != (len(ids), place.inputs):
            raise self._misshapen(f"{module}.token_adapter.trainable_tokens_delta", rows, (len(ids), place.inputs))
        if max(ids, default=0) >= (count := self._outputs(place, weight)):
            raise self._refused(module, f"has a row of the token {max(ids)}, and there are {count}.")
        weight.tokens = (torch.tensor(ids, dtype=torch.int64), rows)

    def _read_stack(self, module: str, a: Tensor, b: Tensor) -> bool:
        """Matrices of a parameter of all experts; False where they are of an ordinary module."""
        if not self.config.target_parameters:
            return False
        stack = stack_of(module, a, b, self.config.target_parameters, self.places)
        if stack is None:
            return False
        scale = self.config.scale(stack.name, self._rank(module, stack.rank(a)))
        for place, own_a, own_b in stack.low_rank(a, b, self.config.old_stacks):
            into = self.weights.setdefault(place.path, WeightAdapter())
            into.low_rank.append(LowRank(place.first, own_a, own_b * scale))
        return True


def _share_table(loaded: LoadedModel, weights: dict[str, WeightAdapter]) -> None:
    """Where a token table is the head too, single rows in its place are the head's.

    PEFT ties no more: what is added to the table, and a whole one in its place, leave the head as it was; an adapter
    that was trained with both tied has both.
    """
    model = loaded.model
    own = weights.get(loaded.table)
    if own is None or own.tokens is None or not model.tied or model.head is None:
        return
    head = weights.setdefault("head", WeightAdapter())
    if head.weight is None and head.tokens is None:
        head.weight, head.tokens = None if own.weight is None else own.weight.clone(), own.tokens


def _settle(weight: WeightAdapter, shape: tuple[int, ...]) -> None:
    """What only token tables have, as a weight in the place of another layer's, whose shape is given.

    So are low-rank changes of a head that has more tokens, which the model has no results of.
    """
    if weight.tokens is not None:
        (ids, rows), weight.tokens = weight.tokens, None
        if weight.weight is None:
            weight.weight = torch.full(shape, torch.nan)
        weight.weight[ids] = rows
    if weight.weight is None or len(weight.weight) == shape[0]:
        return
    for part in weight.low_rank:
        weight.weight[part.first : part.first + len(part.b)] += part.b @ part.a
    weight.low_rank = []
    if weight.lengths is not None:
        weight.weight *= (weight.lengths / weight.weight.norm(dim=1))[:, None]
        weight.lengths = None


def _finished(
    ref: AdapterRef, loaded: LoadedModel, args: EngineArgs, weights: Mapping[str, WeightAdapter]
) -> LoadedAdapter:
    """What the model's parts make of an adapter, or this rank's shares of them.

    What decides how a step is computed follows from the whole adapter, and is the same on all ranks.
    """
    place = loaded.backend.place
    changes = _changes(ref, loaded, args, weights)
    tokens = {path: 0 if w.weight is None else len(w.weight) for path, w in weights.items()}
    only_tables = all(isinstance(c, LinearChange) and c.weight is None for c in changes.values())
    if place.size > 1:
        roles = {path: loaded.places[f"{path}.weight"].role for path in weights}
        only_tables = all(w.weight is None and roles[path] in PRODUCTS for path, w in weights.items())
    return LoadedAdapter(
        ref.name,
        changes,
        max(loaded.places[f"{loaded.table}.weight"].shape[0], tokens.get(loaded.table, 0)),
        max(loaded.model.vocab_size, tokens.get("head", 0)),
        only_tables,
    )


def _changes(
    ref: AdapterRef, loaded: LoadedModel, args: EngineArgs, weights: Mapping[str, WeightAdapter]
) -> dict[str, object]:
    """What parts make of an adapter, by path."""
    dtype = DTYPES.get(args.lora_dtype, loaded.precision.weights)
    options, place = AdapterOptions(loaded.backend, dtype), loaded.backend.place
    modules, parts = dict(loaded.model.named_modules()), loaded.model.adapted_parts()
    if place.num_stages > 1:  # what is not here is in another stage, and a table may be here as the head alone
        weights = {path: weight for path, weight in weights.items() if path in modules}
        if not place.is_first_stage:
            weights.pop(loaded.table, None)
    if place.tensor_size > 1:
        weights = {
            path: share_of_rank(
                weight,
                loaded.places[f"{path}.weight"],
                is_table=path == loaded.table,
                is_first=place.tensor_rank == 0,
                is_last=place.tensor_rank == place.tensor_size - 1,
            )
            for path, weight in with_magnitudes(weights, loaded).items()
        }
    changes = dict[str, object]()
    for path, weight in weights.items():
        part = parts.get(path)
        try:
            if not isinstance(part, TakesAdapters):
                raise ValueError("a layer of this kind")
            changes[path] = part.adapter_change(weight, options)
        except ValueError as error:
            published = loaded.model.names.published(f"{path}.weight")
            raise InvalidRequestError(
                f"the adapter {ref.name!r} changes {shorten(published)}, and this is not supported: {error}. Merge it "
                "into its checkpoint."
            ) from error
    return changes
