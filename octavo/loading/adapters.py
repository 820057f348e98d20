"""Adapters from their files: what each says of the model's weights, as parts compute with it."""

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.config import EngineArgs
from octavo.errors import InvalidRequestError
from octavo.loading.model import LoadedModel
from octavo.lora import AdapterRef
from octavo.parts.adapters import WeightAdapter


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
    weights: dict[str, WeightAdapter] = {}
    raise NotImplementedError(weights)
