"""What the scheduler knows of the executor's memory. Integers only: the scheduler is tested without tensors."""

from dataclasses import dataclass

from octavo.token_windows import Window


@dataclass(frozen=True)
class CacheShape:
    """What the executor has room for, in the scheduler's terms."""

    num_blocks: int
    block_size: int
    windows: tuple[Window | None, ...]
    """One for each group of layers that shares block tables; empty for models without a paged cache."""
    encoder_group: int | None
    """The group whose tables hold a request's encoder tokens, in models that have an encoder."""
    recurrent: bool
    """Whether some part has a state of fixed size, which a prefix cache cannot serve."""
    max_sequences: int
    max_cross_rows: int = 0
    """How many rows a sequence may see in cross-attention."""
    max_feature_rows: int = 0
    """How many rows of features are kept, in models that have such in the place of tokens."""
    offloads: bool = False
    """Whether blocks are kept outside of the cache too, from where they may come back."""
