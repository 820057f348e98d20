"""What a part remembers between steps. The engine allocates and shares by these declarations alone."""

from dataclasses import dataclass

from octavo.token_windows import Window


@dataclass(frozen=True)
class PagedKV:
    """Keys and values of every token, or of every few, in blocks."""

    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: Window | None = None
    """What of the tokens before it a query sees; None for all. Parts of one window share block tables."""
    of_encoder: bool = False
    """Keys and values of the encoder's tokens, all written when a request starts (cross-attention)."""
    tokens_per_row: int = 1
    """How many tokens a row is of (keys pooled of several): a block has room for those that end in its tokens."""
    is_exact: bool = False
    """Held in float32, whatever keys and values are held in."""
    shared_as: str = ""
    """A name under which later parts read the same cache (Gemma 3n): of a model's states of one name, the first is
    all there is."""

    @property
    def group(self) -> tuple[Window | None, bool]:
        """Parts of equal groups share block tables."""
        return self.window, self.of_encoder


@dataclass(frozen=True)
class Recurrent:
    """A state of fixed size per request: named float32 tensors, zero at the start of a request."""

    tensors: tuple[tuple[str, tuple[int, ...]], ...]

    def bytes_per_request(self) -> int:
        total = 0
        for _, shape in self.tensors:
            size = 4
            for length in shape:
                size *= length
            total += size
        return total


StateSpec = PagedKV | Recurrent
