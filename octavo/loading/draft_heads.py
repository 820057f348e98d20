"""Heads that guess tokens from a model's hidden rows: which are read, and from where."""

from pathlib import Path

import torch
from torch import nn

from octavo.architectures import find_architecture
from octavo.architectures.eagle import NAMES, eagle, eagle3
from octavo.architectures.medusa import MedusaHeads, medusa
from octavo.architectures.model_config import Config
from octavo.config import EngineArgs
from octavo.errors import CheckpointError, ConfigError, OctavoError
from octavo.files import read_json
from octavo.loading.checkpoint import Checkpoint, sound_config
from octavo.loading.formats import GGUFWeights, WeightFormat, folder_format
from octavo.loading.head_files import PickledFile
from octavo.loading.model_files import find_model
from octavo.loading.precision import Precision
from octavo.loading.weight_loader import WeightLoader
from octavo.ops import Backend
from octavo.parts import CausalLM, Names
from octavo.parts.draft_head import DraftHead, Predictor
from octavo.parts.eagle3_head import Eagle3Head
from octavo.parts.split import Split, split_parts
from octavo.parts.weight_slots import Role, WeightSlot, weight_slots
from octavo.rank_place import RankPlace

OF_FILES = ("download_dir", "hub", "hf_token", "offline", "trust_remote_code")
"""Options by which a model's files are found."""
AUTHORS_FILE = "medusa_lm_head.pt"
"""Where Medusa's authors store heads."""


def take_predictor(model: CausalLM, checkpoint: Checkpoint) -> None:
    """Have a model on the meta device take the layer that its checkpoint has for predicting further tokens (MTP).

    Raises ConfigError where there is none.
    """
    if checkpoint.gguf is not None:
        _read_from_gguf(model.predictor, checkpoint)
    if model.predictor is None:
        raise ConfigError(
            f"speculative_config: method='mtp': {checkpoint.architecture.name} with this config.json has no layer that "
            "predicts further tokens, or none that is read here. Give method='ngram', or the model of draft_model."
        )
    with sound_config(checkpoint.files.path, checkpoint.config), torch.device("meta"):
        model.guess_with(model.predictor.make())
    model.names = model.predictor.names(model.names)


def _read_from_gguf(predictor: Predictor | None, checkpoint: Checkpoint) -> None:
    """Have the layer's tensors read with the model's. Raises ConfigError for a file that is converted without them."""
    assert checkpoint.gguf is not None
    weights = checkpoint.weights
    if predictor is None or not isinstance(weights, GGUFWeights) or not weights.read_also(predictor):
        raise ConfigError(
            f"speculative_config: method='mtp': {checkpoint.gguf.path} has no layer that predicts further tokens, as "
            "most converted files. Give the model's own folder, or another method."
        )


class HeadCheckpoint(nn.Module):
    """What a head's own folder fills: the head alone."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.draft_head = head

    def weight_slots_in(self, dtype: torch.dtype, round_media: bool = False) -> dict[str, WeightSlot]:
        """See CausalLM."""
        slots = weight_slots(self)
        for path, slot in slots.items():
            if path.startswith(("draft_head.head.", "draft_head.heads.")):
                slot.role = Role.HEAD
        return slots

    def does_without(self, path: str) -> bool:
        """See CausalLM: the model's own head may be stored beside it."""
        return path == "draft_head.head.weight"


def load_head(
    model: CausalLM, args: EngineArgs, precision: Precision, backend: Backend, place: RankPlace
) -> tuple[MedusaHeads | None, int]:
    """Load the head of a folder of its own: a model takes one whose keys lie with its layers'; Medusa's is returned.

    Ranks of the last stage have it, each its part. The others learn what it reads of their layers.

    Returns how many bytes its weights take, too. Raises ConfigError, which says what is wrong, for a head that is not
    there, or of another model.
    """
    config = args.speculation
    assert config is not None
    assert config.model is not None
    options = {name: getattr(args, name) for name in OF_FILES}
    try:
        files = find_model(EngineArgs(model=config.model, revision=config.revision, **options))
        if files.is_gguf:
            raise CheckpointError(f"{files.path} is a GGUF file; a head is a folder with config.json.")
        with sound_config(files.path):
            head, weights, table = _head_in(files.path, model, config.method)
        if place.tensor_size > 1:
            _split(head, Split(place.tensor_rank, place.tensor_size))
        if isinstance(head, DraftHead):
            model.guess_with(head)
        if not place.is_last_stage:
            return None, 0
        num_bytes = _fill(head, weights, table, str(files.path), precision, backend)
    except OctavoError as error:
        raise ConfigError(f"speculative_config: model={config.model!r}: {error}") from error
    return head if isinstance(head, MedusaHeads) else None, num_bytes


def _split(head: nn.Module, split: Split) -> None:
    """Leave of a head what one rank has. Raises ConfigError for one that is not divisible."""
    try:
        split_parts(head, split)
    except ValueError as error:
        raise ConfigError(f"{error}. Choose another tensor_parallel_size.") from error


def _head_in(folder: Path, model: CausalLM, method: str) -> tuple[MedusaHeads | DraftHead, WeightFormat, Names]:
    """A folder's head on the meta device, its weights, and their names."""
    values = read_json(folder / "config.json")
    layer = values.get("transformer_layer_config")  # as speculators' configs have it
    values = {**values, **layer} if isinstance(layer, dict) else values
    c = find_architecture(["LlamaForCausalLM"]).config(values)
    is_medusa = method == "medusa"
    authors = folder / AUTHORS_FILE
    weights: WeightFormat = PickledFile(authors) if authors.is_file() else folder_format(folder, "auto", values)
    stored = frozenset(name for name, _ in weights.tensors(NAMES))
    for key, own in (("hidden_size", model.hidden_size), ("vocab_size", model.vocab_size)):
        given = c.stated(key) if is_medusa else c.get(key)  # which the authors' configs leave out
        if given != own and not (is_medusa and given is None):
            raise CheckpointError(
                f"config.json: {key} is {given}, and the model's is {own}: the head is of another model."
            )
    with torch.device("meta"):
        if is_medusa:
            heads, names = medusa(c, stored, model.hidden_size, model.vocab_size)
            return heads, weights, names
        return _with_keys(c, stored, model, method), weights, NAMES


def _fill(
    head: nn.Module, weights: WeightFormat, table: Names, where: str, precision: Precision, backend: Backend
) -> int:
    """Load the weights of a head, and have it make what it computes with. Returns how many bytes they take."""
    names = weights.names(table)
    loader = WeightLoader(HeadCheckpoint(head), names, precision, backend)
    loader.load(weights.weights(names), where)
    for module in head.modules():
        if (prepare := getattr(module, "prepare", None)) is not None:
            prepare(backend)
    return sum(weight.size for weight in loader.held.values())


def _with_keys(c: Config, stored: frozenset[str], model: CausalLM, method: str) -> DraftHead:
    """A head whose keys lie with those of the model's layers."""
    head = eagle(c, stored) if method == "eagle" else eagle3(c, stored, len(model.layers), model.vocab_size)
    own_size = c.get("draft_vocab_size", model.vocab_size)
    if isinstance(head, Eagle3Head) and own_size != model.vocab_size and None in (head.vocabulary, head.head):
        raise CheckpointError(
            f"config.json: draft_vocab_size is {own_size}, and the model's vocabulary is of {model.vocab_size}: the "
            "head needs d2t, which says which of its tokens are meant, and lm_head."
        )
    return head
