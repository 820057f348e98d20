"""What a step reads of memory and multiplies, by the sizes of weights and caches: `octavo bench` measures by it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from octavo.executor.caches import cache_spec
from octavo.loading.model import LoadedModel
from octavo.parts import PagedKV, Recurrent
from octavo.parts.weight_slots import Role
from octavo.token_windows import most_seen

PRODUCTS = (Role.MULTIPLIED, Role.EXACT)
HEADS = (Role.HEAD, Role.TIED)
ASIDE = ("media.", "encoder.", "draft_head.")
"""Parts that a text's own steps do not run."""


@dataclass(frozen=True)
class StepWork:
    """Of a model as it is held. Towers and encoders, which run for features alone, are left out."""

    weight_bytes: int
    """Of weights that every step reads: all but the token table, of which a row serves, and experts."""
    expert_bytes: Mapping[float, int]
    """Of experts, by the share of all tokens that meets each of them."""
    multiply_adds: float
    """Of a token with weights, the head's aside; those with keys are not counted."""
    head_multiply_adds: int
    """Of a row whose logits are wanted."""
    key_bytes: tuple[tuple[int | None, float], ...]
    """Of keys and values: how many tokens back they are read (None: all), and the bytes of a token."""
    state_bytes: int
    """Of states of fixed size that a sequence reads and writes."""

    def weights_read(self, rows: float) -> float:
        """Bytes of weights that a step of so many rows reads, of experts as many as tokens that choose evenly meet."""
        left = {share: math.pow(1 - share, max(1.0, rows)) for share in self.expert_bytes}
        return self.weight_bytes + sum(size * (1 - left[share]) for share, size in self.expert_bytes.items())

    def sequence_read(self, length: int) -> float:
        """Bytes that a sequence's next token reads, with `length` tokens up to itself."""
        keys = sum(size * (length if window is None else min(length, window)) for window, size in self.key_bytes)
        return keys + 2 * self.state_bytes


def step_work(loaded: LoadedModel, block_size: int) -> StepWork:
    """That of a loaded model, or of a rank's part of it."""
    model, always, head = loaded.model, 0, 0
    experts, products = dict[float, int](), 0.0
    for path, weight in loaded.held.items():
        if path.startswith(ASIDE):
            continue
        if weight.share < 1:
            experts[weight.share] = experts.get(weight.share, 0) + weight.size
        elif weight.role is not Role.TABLE:
            always += weight.size
        products += weight.count * weight.share if weight.role in PRODUCTS else 0
        head += weight.count if weight.role in HEADS else 0
    keys = [
        (
            None if state.window is None else most_seen(state.window),
            loaded.backend.block_bytes(cache_spec(state), block_size, loaded.precision.cache) / block_size,
        )
        for state in model.states
        if isinstance(state, PagedKV) and not state.of_encoder
    ]
    states = sum(state.bytes_per_request() for state in model.states if isinstance(state, Recurrent))
    return StepWork(always, experts, products, head, tuple(keys), states)
