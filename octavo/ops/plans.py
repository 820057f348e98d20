"""What operations are told of a step beside its tensors: plain data, made once a step, that all backends read."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.token_windows import Window

FullRun = tuple[int, int, int, int]
"""Queries that see all of some keys: first row and number of the queries, then of the keys."""

NOT_FINITE = -1
"""The choice of a row that has a value that is not a number, or infinite."""


@dataclass(slots=True)
class SequenceRun:
    """Tokens of one sequence in a step: all that it has there, or a part, which other runs go on from."""

    first_row: int
    """Its first row in the flat batch."""
    num_tokens: int
    start: int
    """Position of the first token: how many were computed before."""
    table_row: int
    """Its row in the block tables, which is also its slot in states of fixed size."""
    sees_all: bool = False
    """Whether each of its tokens sees all of them, both ways, beside what a window lets it see of those before."""
    first_key: int = 0
    """Keys before this position are not seen. Each token sees one at least."""


@dataclass
class AttentionPlan:
    """What a step's attention needs to know, for all layers of one block table."""

    runs: Sequence[SequenceRun]
    block_table: Tensor
    """[table rows, blocks] int64"""
    block_size: int
    window: Window | None
    num_tokens: int
    slot_mapping: Tensor
    """[tokens] where each token's key and value go: block * block_size + offset."""
    run_table: Tensor
    """[runs, 6] int64: the runs, with their fields as columns."""
    has_gaps: bool = False
    """Whether some of its tokens are of no run (cross-attention, of text before the first picture)."""
    memo: dict[Hashable, Any] = field(default_factory=dict)
    """What a backend works out of the plan once, for all layers."""


def plan_attention(
    runs: Sequence[SequenceRun],
    block_table: Tensor,
    block_size: int,
    window: Window | None,
    num_tokens: int,
) -> AttentionPlan:
    """Where a step's queries, keys and values are.

    Args:
        runs: the step's tokens, rows 0 to num_tokens - 1 in their order; those of no run attend to nothing.
        block_table: [table rows, blocks] int64, the blocks of each sequence in order.
        block_size: tokens in a block.
        window: how many of the last tokens, itself included, a query sees, or of which Chunk; None for all.
        num_tokens: tokens in the step.
    """
    slot_mapping = _slot_mapping(runs, block_table, block_size)
    table = [(r.first_row, r.num_tokens, r.start, r.table_row, r.sees_all, r.first_key) for r in runs]
    run_table = torch.tensor(table, dtype=torch.int64).view(-1, 6)
    has_gaps = sum(r.num_tokens for r in runs) < num_tokens
    return AttentionPlan(runs, block_table, block_size, window, num_tokens, slot_mapping, run_table, has_gaps)


def _slot_mapping(runs: Sequence[SequenceRun], block_table: Tensor, block_size: int) -> Tensor:
    counts = [r.num_tokens for r in runs]
    starts = np.array([r.start for r in runs], dtype=np.int64)
    first = np.cumsum([0, *counts[:-1]])
    position = np.arange(sum(counts)) + np.repeat(starts - first, counts)
    table_row = np.repeat(np.array([r.table_row for r in runs], dtype=np.int64), counts)
    positions = torch.from_numpy(position).to(block_table.device)
    rows = torch.from_numpy(table_row).to(block_table.device)
    return block_table[rows, positions // block_size] * block_size + positions % block_size


@dataclass
class RecurrentPlan:
    """Which requests' states a step's tokens go on from."""

    runs: Sequence[SequenceRun]
    table: Tensor
    """[runs, 3] int64: first row, tokens, slot."""
    memo: dict[Hashable, Any] = field(default_factory=dict)
    """What a backend works out of the plan once, for all layers."""


def plan_recurrent(runs: Sequence[SequenceRun]) -> RecurrentPlan:
    """The states of the runs' sequences."""
    table = [(r.first_row, r.num_tokens, r.table_row) for r in runs]
    return RecurrentPlan(runs, torch.tensor(table, dtype=torch.int64).view(-1, 3))


@dataclass
class DecodeInputs:
    """What a recorded decode step reads: buffers that each step fills anew, a row for each token."""

    tokens: Tensor
    """[rows] int64, as all of these"""
    positions: Tensor
    lengths: Tensor
    """Tokens that each row's sequence has in all."""
    attention: Sequence[AttentionPlan]
    """One for each group of block tables."""
    recurrent: RecurrentPlan
    adapters: Tensor | None = None
    """Slots of adapters, -1 for none; None where no row of the recording has any."""


@dataclass(frozen=True)
class BlockTables:
    """The block tables of a model's sequences, which the executor writes to."""

    tables: Sequence[Tensor]
    """[sequences, blocks] int64 each, one for each group of layers."""
    block_size: int
    windows: Sequence[Window | None]
    """Of each group: what of the tokens before it a query sees; None for all."""
    encoder_group: int | None
    """The group that holds the encoder's tokens."""


@dataclass(slots=True)
class ScanInput:
    """What Mamba's scan works on; rows past the plan's are padding."""

    x: Tensor
    """[rows, channels]"""
    dt: Tensor
    """[rows, channels], to be made positive by softplus."""
    a: Tensor
    """[channels, state] float32, negative."""
    b: Tensor
    """[rows, state]"""
    c: Tensor
    """[rows, state]"""
    d: Tensor
    """[channels] float32"""
    gate: Tensor
    """[rows, channels]"""
    activation: str
    """Of the gate, by its name in ACTIVATIONS."""


@dataclass(slots=True)
class HeadScanInput:
    """What Mamba-2's scan works on (Dao & Gu 2024); rows past the plan's are padding."""

    x: Tensor
    """[rows, heads * head_dim]"""
    dt: Tensor
    """[rows, heads]: the time step is softplus(dt + dt_bias), between the two of `dt_limit`."""
    dt_bias: Tensor
    """[heads] float32"""
    dt_limit: tuple[float, float]
    a: Tensor
    """[heads] float32, negative."""
    b: Tensor
    """[rows, groups * state]; as many heads one after the other as there are for a group have it in common."""
    c: Tensor
    """[rows, groups * state]"""
    d: Tensor
    """[heads] float32"""
    num_groups: int
    gate: Tensor | None
    """[rows, heads * head_dim]: results are multiplied by its activation."""
    activation: str
    """Of the gate, by its name in ACTIVATIONS."""


@dataclass(slots=True)
class GatedRecurrenceInput:
    """What Griffin's recurrence works on (De et al. 2024); rows past the plan's are padding."""

    x: Tensor
    """[rows, channels]"""
    input_gate: Tensor
    """[rows, channels]: the sigmoid of this and `input_bias` multiplies x."""
    input_bias: Tensor
    """[channels] float32"""
    recurrent_gate: Tensor
    """[rows, channels]: the sigmoid of this and `recurrent_bias`, times `a`, is the decay's logarithm."""
    recurrent_bias: Tensor
    """[channels] float32"""
    a: Tensor
    """[channels] float32, negative."""
    positions: Tensor
    """[rows] int64: at position 0, the input is taken whole."""


@dataclass(slots=True)
class DeltaInput:
    """What is written to memories and read from them; rows past the plan's are padding."""

    query: Tensor
    """[rows, key heads * key_dim]"""
    key: Tensor
    """[rows, key heads * key_dim]"""
    value: Tensor
    """[rows, heads * value_dim]"""
    decay: Tensor | None
    """[rows, heads], or [rows, heads * key_dim] where each value of a key has its own; None for the same always."""
    beta: Tensor | None
    """[rows, heads]; None where nothing is corrected, only added."""
    rate: Tensor
    """[heads] float32, negative: the memory is kept by `exp(rate * softplus(decay + bias))`, or `exp(rate)`."""
    bias: Tensor | None
    """float32, one for each column of `decay`."""


@dataclass(frozen=True, slots=True)
class DrawBy:
    """How a row's token is chosen."""

    temperature: float = 0.0
    """0 for the likeliest."""
    min_p: float = 0.0
    """Tokens less likely than so many times the likeliest are left out."""
    top_k: int = 0
    """How many of the likeliest stay; 0 for all."""
    top_p: float = 1.0
    """Of these, the likeliest that make up this share stay."""
    draw: float = 0.0
    """In [0, 1): where in the distribution the token is."""


def as_array(rows: Sequence[DrawBy]) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """[rows, 5], in the order of DrawBy."""
    return np.array([(r.temperature, r.min_p, r.top_k, r.top_p, r.draw) for r in rows], dtype=np.float64)
