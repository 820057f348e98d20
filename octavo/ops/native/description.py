"""What the compiled core can be asked for: its operations with their arguments, and the numbers that both sides know.

This is the only place that says so. C++ gets a header of structs made of it when the core is compiled (setup.py, by
`binding.header`), Python calls by the same names (`binding.bind`), and a library that was compiled from another
description is refused. Since setup.py reads it, it imports nothing that needs PyTorch.

An operation's first argument counts rows, or something that there are as many of: a recorded step scales it. The others
are numbers, and addresses of what their types say. Rows follow one another where no stride is given; strides count
numbers.
"""

from enum import IntEnum
from typing import Annotated, Protocol

from octavo.ops.weight_kinds import WeightKind

LANES = 16
"""Numbers in a vector of the core's."""
PANEL = 16
"""Outputs of a weight that are packed together."""
PAIRED_TOKENS = 16
"""Tokens that lie together in a paired cache; its heads are of a multiple of as many values, those of int4 of 32."""
MAX_HEAD_DIM = 1024
"""Of a head, or of a latent."""
MAX_STATE = 128
"""Values of state a channel that a scan may have."""
MAX_HEAD_STATE = 256
"""Of a head of Mamba-2."""
MIN_TAPS, MAX_TAPS = 2, 4
"""Tokens that a convolution may see."""
ADAPTER_GROUP = 64
"""Columns that an adapter's products sum up before the sum joins the others."""


class X86(IntEnum):
    """Instruction sets that the core is compiled for on x86-64, the best last."""

    BASE = 0
    AVX2 = 1
    AVX_VNNI = 2
    AVX512 = 3
    AVX512_VNNI = 4
    AVX512_BF16 = 5
    AMX = 6


class Arm(IntEnum):
    """The same on 64-bit Arm. `BASE` has NEON."""

    BASE = 0
    DOTPROD = 1


class DType(IntEnum):
    """What memory holds."""

    F32 = 0
    BF16 = 1
    F16 = 2
    INT8 = 3
    """Rows of codes, each with the float32 that scales it: in caches alone."""
    INT4 = 4
    """Groups of codes, each with its scale and its low: in caches alone."""


class Activation(IntEnum):
    """Functions between the products of a feed-forward."""

    NONE = -1
    SILU = 0
    GELU_TANH = 1
    GELU = 2
    QUICK_GELU = 3
    RELU = 4
    RELU_SQUARED = 5
    SIGMOID = 6
    TANH = 7


class RouterScores(IntEnum):
    """What makes scores of a router's logits."""

    SOFTMAX = 0
    SIGMOID = 1
    SQRT_SOFTPLUS = 2
    LOGITS = 3


Int = Annotated[int, "int32_t"]
Double = Annotated[float, "double"]
Numbers = Annotated[int, "const void*"]
"""Address of numbers of the dtype that goes with it."""
NumbersOut = Annotated[int, "void*"]
Floats = Annotated[int, "const float*"]
FloatsOut = Annotated[int, "float*"]
Int32s = Annotated[int, "const int32_t*"]
Int32sOut = Annotated[int, "int32_t*"]
Int64s = Annotated[int, "const int64_t*"]
Int64sOut = Annotated[int, "int64_t*"]
Bytes = Annotated[int, "const uint8_t*"]
BytesOut = Annotated[int, "uint8_t*"]
Weights = Annotated[int, "const uint8_t* const*"]
Orders = Annotated[int, "const int32_t* const*"]
"""Address of the addresses of several packed weights."""


class Record:
    """A row of a table that the core reads."""


class AttentionRun(Record):
    """Tokens of one sequence in a step: octavo.ops.plans.SequenceRun."""

    first_row: int
    num_tokens: int
    start: int  # position of the first of them
    table_row: int  # the sequence's row of the block table
    sees_all: int  # not 0 where each of them sees all of them
    first_key: int  # position of the first key that they see


class FullAttentionRun(Record):
    """Queries that see all of some keys: octavo.ops.plans.FullRun."""

    first_row: int
    num_rows: int
    first_key: int
    num_keys: int


class ScanRun(Record):
    """The same for recurrent layers."""

    first_row: int
    num_tokens: int
    slot: int  # where the sequence's state is


class Draw(Record):
    """How a row's token is sampled: octavo.ops.plans.DrawBy."""

    temperature: Double
    min_p: Double
    top_k: Double
    top_p: Double
    draw: Double


class AdapterPart(Record):
    """What an adapter adds to some outputs: products of values that its first matrix has made of x."""

    first_value: int  # which of these values are its own
    rank: int  # how many
    first_panel: int  # the panel of outputs that the first of the matrix's panels is added to
    panels: int
    b: Bytes  # packed, of the adapter's kind


AdapterParts = Annotated[int, "const AdapterPart*"]


class Adapter(Record):
    """What an adapter makes of a weight's results: octavo.ops.specs.LinearUpdate."""

    a: Bytes | None  # packed, with columns in whole groups of ADAPTER_GROUP
    panels: int  # of `a`: of the values that it makes of x
    kind: WeightKind
    num_parts: Int
    parts: AdapterParts
    magnitude: Floats | None
    bias: Floats | None


class ProgramStep(Record):
    """What comes before an operation's arguments in a program."""

    function: Numbers
    size: int  # bytes of the arguments


AdapterTable = Annotated[int, "const Adapter* const*"]
"""Address of the addresses of adapters, 0 for none."""
AttentionRuns = Annotated[int, "const AttentionRun*"]
FullAttentionRuns = Annotated[int, "const FullAttentionRun*"]
ScanRuns = Annotated[int, "const ScanRun*"]
Draws = Annotated[int, "const Draw*"]
Ranks = Annotated[int, "void*"]
"""What `join_ranks` has returned."""


class Core(Protocol):
    """The core's operations, and what else it can be asked for."""

    # fmt: off
    # ---- row by row ------------------------------------------------------------------------------------------------

    def rms_norm(
        self, *, rows: int, x: Numbers, weight: Floats, out: NumbersOut, columns: int, eps: float, dtype: DType,
    ) -> None:
        """`out = x / sqrt(mean(x * x) + eps) * weight`."""

    def rms_norm_gated(
        self, *, rows: int, x: Numbers, gate: Numbers, gate_stride: int, weight: Floats, out: NumbersOut, heads: int,
        columns: int, eps: float, activation: Activation, dtype: DType,
    ) -> None:
        """`rms_norm` of each of `heads` heads of a row, `columns` each, times `activation(gate)`."""

    def layer_norm(
        self, *, rows: int, x: Numbers, weight: Floats | None, bias: Floats | None, out: NumbersOut,
        columns: int, eps: float, dtype: DType,
    ) -> None:
        """`out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias`."""

    def add(
        self, *, rows: int, x: Numbers, y: Numbers, out: NumbersOut, columns: int, scale: float, dtype: DType,
    ) -> None:
        """`out = x + scale * y`."""

    def add_rms_norm(
        self, *, rows: int, x: Numbers, y: Numbers, total: NumbersOut, weight: Floats, out: NumbersOut,
        columns: int, eps: float, dtype: DType,
    ) -> None:
        """`total = x + y`, and `out` its `rms_norm`."""

    def activate(
        self, *, rows: int, x: Numbers, out: NumbersOut, columns: int, activation: Activation, gated: bool,
        dtype: DType,
    ) -> None:
        """`out = activation(x)`; where `gated`, of x's first half times its second, `columns` each."""

    def gate(
        self, *, rows: int, x: Numbers, out: NumbersOut, columns: int, activation: Activation, threshold: float,
        limit: float, up_offset: float, dtype: DType,
    ) -> None:
        """`out = activation(g) * (u + up_offset)` of x's halves, `columns` each.

        g is 0 where it is not above `threshold`, and at most `limit`; u is between -limit and limit.
        """

    def gate_float32(
        self, *, rows: int, x: Floats, out: NumbersOut, columns: int, activation: Activation, dtype: DType,
    ) -> None:
        """`out = activation(g) * u` of x's halves, `columns` each: the bits of `linear` with an activation."""

    def scale(self, *, rows: int, x: Numbers, out: NumbersOut, columns: int, factor: float, dtype: DType) -> None:
        """`out = x * factor`, the factor rounded to the dtype."""

    def scale_rows(
        self, *, rows: int, x: Numbers, factors: Floats, out: NumbersOut, columns: int, dtype: DType,
    ) -> None:
        """`out = x * factor`, one factor a row."""

    def position_factors(
        self, *, rows: int, positions: Int64s, beta: Double, period: Double, offset: int, out: FloatsOut,
    ) -> None:
        """`out = 1 + beta * log(1 + floor((position + offset) / period))`."""

    def multiply(
        self, *, rows: int, x: Numbers, x_stride: int, y: Numbers, y_stride: int, out: NumbersOut, columns: int,
        activation: Activation, dtype: DType,
    ) -> None:
        """`out = x * activation(y)`."""

    def xielu(
        self, *, rows: int, x: Numbers, shape: Floats, out: NumbersOut, columns: int, dtype: DType,
    ) -> None:
        """`out = xIELU(x)`; `shape` has alpha_p, alpha_n, beta and eps."""

    def add_gated(
        self, *, rows: int, x: Numbers, y: Numbers, gate: Numbers, out: NumbersOut, columns: int, dtype: DType,
    ) -> None:
        """`out = x + sigmoid(gate) * y`, one gate a row; the product is rounded before it is added."""

    def scale_columns(
        self, *, rows: int, x: Numbers, x_stride: int, factors: Floats, out: NumbersOut, columns: int, dtype: DType,
    ) -> None:
        """`out = x * factors`, a factor for each column."""

    def clip(self, *, rows: int, x: NumbersOut, columns: int, limit: float, dtype: DType) -> None:
        """x between -limit and limit, in place."""

    def head_norm(
        self, *, rows: int, x: NumbersOut, stride: int, heads: int, columns: int, weight: Floats | None,
        weight_stride: int, bias: Floats | None, bias_stride: int, eps: float, is_rms: bool, dtype: DType,
    ) -> None:
        """`rms_norm` or `layer_norm` of each of `heads` heads that lie side by side in a row, in place.

        Heads have the same weight and bias, or rows of them that are `weight_stride` and `bias_stride` apart.
        """

    def route(
        self, *, rows: int, logits: Floats, num_experts: int, scores: RouterScores, bias: Floats | None, top_k: int,
        num_groups: int, top_groups: int, group_best: int, norm: float, min_norm: float, eps: float, factor: float,
        noise: float, chosen: bool, weights: FloatsOut, experts: Int64sOut,
    ) -> None:
        """The `top_k` experts of each row and their weights: octavo.ops.specs.RouterSpec, 0 for None.

        `bias` is added to the scores that choose, and not to the weights. Where `chosen`, `experts` are there already.
        """

    def predict_streams(
        self, *, rows: int, x: Numbers, mix: Floats, out: NumbersOut, streams: int, columns: int, dtype: DType,
    ) -> None:
        """Of `streams` side by side, `columns` each, stream i plus the sum of `mix[row, i, j]` times stream j."""

    def correct_streams(
        self, *, rows: int, x: Numbers, y: Numbers, gains: Floats, out: NumbersOut, streams: int, columns: int,
        active: int, dtype: DType,
    ) -> None:
        """Stream i plus `1 + gains[row, i]` times what `y` differs by from the stream `active`."""

    def add_to_streams(
        self, *, rows: int, x: Numbers, y: Numbers, out: NumbersOut, streams: int, columns: int, dtype: DType,
    ) -> None:
        """The first stream, and each of the others plus `y`."""

    def match_magnitude(
        self, *, rows: int, x: Numbers, like: Numbers, out: NumbersOut, columns: int, least: float, dtype: DType,
    ) -> None:
        """`out = x * sqrt(mean(like * like) / max(mean(x * x), least))`."""

    def row_cutoffs(
        self, *, rows: int, x: Numbers, x_stride: int, out: FloatsOut, columns: int, deviations: float, dtype: DType,
    ) -> None:
        """A number a row: `mean(x) + deviations * standard_deviation(x)`."""

    def gate_above(
        self, *, rows: int, x: Numbers, cutoffs: Floats, out: NumbersOut, columns: int, activation: Activation,
        dtype: DType,
    ) -> None:
        """`out = activation(max(g - cutoff, 0)) * u` of x's halves, `columns` each, with a cutoff for each row."""

    def to_float32(self, *, rows: int, x: Numbers, out: FloatsOut, columns: int, dtype: DType) -> None:
        """`out = x`."""

    def non_finite(self, *, rows: int, x: Numbers, out: FloatsOut, columns: int, dtype: DType) -> None:
        """One number: 0, or NaN where a value of any row is not finite."""

    def copy_rows(
        self, *, rows: int, x: Bytes, stride_bytes: int, row_bytes: int, out: BytesOut, out_stride_bytes: int,
    ) -> None:
        """Rows of `row_bytes`, which may lie apart on both sides."""

    def weighted_sum(
        self, *, rows: int, y: Numbers, weights: Floats | None, terms: int, out: NumbersOut, columns: int,
        dtype: DType,
    ) -> None:
        """`out[row]`, the sum of `weights[row, k] * y[row, k]` over its `terms` k, in their order; null for ones."""

    def table_rows(
        self, *, rows: int, ids: Int64s, first: int, count: int, table: Bytes, row_bytes: int, out: BytesOut,
    ) -> None:
        """Rows `ids - first` of a plain table of `count` rows; zeros for ids of none."""

    def sample(
        self, *, rows: int, logits: Floats, stride: int, vocab_size: int, draws: Draws | None,
        tokens: Int64sOut,
    ) -> None:
        """A token for each row, the likeliest without `draws`; -1 where a logit is NaN or infinite."""

    # ---- products --------------------------------------------------------------------------------------------------

    def linear(
        self, *, rows: int, x: Numbers, x_dtype: DType, x_stride: int, inputs: int, kind: WeightKind,
        weight: Bytes, order: Int32s | None, outputs: int, bias: Floats | None, out: NumbersOut, out_dtype: DType,
        out_stride: int, activation: Activation, fine: bool,
    ) -> None:
        """`y = x @ weight.T + bias`; with an activation, `activation(y[:half]) * y[half:]` of its outputs.

        `order`: the column of x that each column of the weight is multiplied with, where it is not its own.
        `fine`: where weights are quantized, rows are rounded to 16 bits instead of 8.
        """

    def expert_linear(
        self, *, rows: int, x: Numbers, x_dtype: DType, x_stride: int, inputs: int, kind: WeightKind,
        top_k: int, experts: Int64s, num_experts: int, weights: Weights, orders: Orders, outputs: int,
        out: NumbersOut, out_dtype: DType, out_stride: int, bytes_on_disk: int,
    ) -> None:
        """Each row of x with each of its `top_k` experts: `rows` counts results. Numbers of no expert are skipped.

        `bytes_on_disk`: of an expert's weight in a mapped file, which is read ahead; 0 where weights are in memory.
        """

    def adapt(
        self, *, rows: int, slots: Int64s, table: AdapterTable, num_slots: int, choices: int, experts: Int64s | None,
        num_experts: int, x: Numbers, x_dtype: DType, x_stride: int, shared: int, inputs: int, y: NumbersOut,
        y_dtype: DType, y_stride: int, outputs: int,
    ) -> None:
        """Have the adapters in a table of `[num_slots, num_experts]` change results y of x, in place.

        Each row has a slot, and `choices` results, each of which is an expert's where there are `experts`; `shared`
        results have a row of x in common. Results of no slot, of no expert or without an adapter keep their bits.
        """

    def pack(
        self, *, rows: int, source: Numbers, inputs: int, kind: WeightKind, grid: Bytes | None, packed: BytesOut,
    ) -> None:
        """Lay a weight's rows out for products. `grid`: the codes of each point, of kinds that have points."""

    def quantize(
        self, *, rows: int, source: Numbers, source_dtype: DType, inputs: int, kind: WeightKind, out: BytesOut,
    ) -> None:
        """Rows as `pack` takes them, rounded to Q8_0 or Q4_1."""

    def weight_rows(
        self, *, rows: int, ids: Int64s, first: int, count: int, kind: WeightKind, weight: Bytes,
        order: Int32s | None, inputs: int, out: NumbersOut, out_dtype: DType, scale: float,
    ) -> None:
        """Rows `ids - first` of a packed weight of `count` rows, times `scale`; zeros for ids of none."""

    def packed_bytes(self, *, kind: WeightKind, rows: int, inputs: int) -> int:
        """Memory of a packed weight."""

    def row_bytes(self, *, kind: WeightKind, inputs: int) -> int:
        """Bytes of a row of a weight before it is packed."""

    # ---- attention -------------------------------------------------------------------------------------------------

    def rope_angles(
        self, *, rows: int, positions: Int64s, lengths: Int64s, frequencies: Floats, pairs: int, cos: FloatsOut,
        sin: FloatsOut, scale: float, long_scale: float, long_threshold: int, offset: int,
    ) -> None:
        """cos and sin of the angles of each position plus `offset`.

        Sequences longer than `long_threshold` take the second row of `frequencies` and `long_scale`.
        """

    def rope_store(
        self, *, rows: int, qkv: Numbers, cos: Floats | None, sin: Floats | None, query: FloatsOut,
        key_cache: NumbersOut, value_cache: NumbersOut, slot_mapping: Int64s, block_size: int, num_heads: Int,
        num_kv_heads: Int, head_dim: Int, value_dim: Int, pairs: Int, interleaved: bool, dtype: DType,
        cache_dtype: DType, paired: bool,
    ) -> None:
        """Turn queries and keys by their angles; keys and values go to the cache."""

    def join_rope(
        self, *, rows: int, x: Numbers, x_dtype: DType, x_stride: int, x_head_stride: int, columns: int, y: Numbers,
        y_dtype: DType, y_stride: int, y_head_stride: int, cos: Floats, sin: Floats, out: FloatsOut, num_heads: int,
        rope_dim: Int, pairs: Int, interleaved: bool,
    ) -> None:
        """Each head's `columns` numbers of x, and then its `rope_dim` of y rotated by the row's angles."""

    def store_rows(
        self, *, rows: int, x: Floats, cache: NumbersOut, slot_mapping: Int64s, block_size: int, num_heads: Int,
        head_dim: Int, cache_dtype: DType,
    ) -> None:
        """Rows to a cache's slots."""

    def attention(
        self, *, num_runs: int, query: Floats, key_cache: Numbers, value_cache: Numbers, out: NumbersOut,
        runs: AttentionRuns, block_table: Int64s, table_width: int, block_size: int, num_heads: Int,
        num_kv_heads: Int, key_dim: Int, value_dim: Int, scale: float, softcap: float,
        alibi_slopes: Floats | None, sinks: Floats | None, distance_bias: Floats | None, num_distances: int,
        bias_origin: int, window: int, chunk: int, cache_dtype: DType, out_dtype: DType, paired: bool,
        sparse_block: int, local_blocks: int, sparse_stride: int, head_step: int, first_head: int,
        key_lists: Int32s | None, list_size: int,
    ) -> None:
        """Each row's values by softmax of its scores over the keys that its run lets it see, from a paged cache.

        Where there are `sinks`, the softmax is over a head's sink too.
        0 as `softcap`, `window` or `chunk` is none: with a window, a row sees that many of the last keys; with a chunk,
        those of its own chunk of so many. `distance_bias` has `num_distances` for each head, of which number
        `bias_origin` is added to a score whose key is the query's own. Where `sparse_block` is not 0, that many keys
        are a block, and a row sees the last `local_blocks` of them and of those before every `sparse_stride`-th, which
        heads count from places `head_step` apart; the first of the heads is number `first_head` of them. Where there
        are `key_lists`, of `list_size` each, a row sees the keys of its list alone, as `select_keys` gives them.
        """

    def select_keys(
        self, *, num_runs: int, query: Floats, weights: Floats, key_cache: Numbers, out: Int32sOut, runs: AttentionRuns,
        block_table: Int64s, table_width: int, block_size: int, num_heads: Int, key_dim: Int, cache_dtype: DType,
        top_k: int, ratio: int,
    ) -> None:
        """Positions of the `top_k` best of the keys that a row's run lets it see, ascending; -1 after a shorter list.

        With a `ratio` above 1 keys are of so many tokens each, and numbers take the place of positions.
        A key's score is the sum over heads of `weights * max(query . key, 0)`, with one head of keys for all. Of equal
        scores the earlier key's is the better.
        """

    def full_attention(
        self, *, num_runs: int, query: Numbers, query_stride: int, key: Numbers, key_stride: int, value: Numbers,
        value_stride: int, out: NumbersOut, runs: FullAttentionRuns, num_heads: Int, num_kv_heads: Int, key_dim: Int,
        value_dim: Int, scale: float, distance_bias: Floats | None, num_distances: int, bias_origin: int,
        query_vectors: Floats | None, key_vectors: Floats | None, vector_numbers: Int64s | None, num_vectors: int,
        dtype: DType,
    ) -> None:
        """`attention` in which a run's queries see all of its keys, at least one; heads lie side by side in rows.

        Where there are `vector_numbers`, of each of `num_distances`, those numbers of `num_vectors` products of a row's
        head with vectors, `query_vectors` and `key_vectors`, join its product with the key before `scale`.
        """

    # ---- keys of several tokens: octavo.ops.pooled_keys ------------------------------------------------------------

    def rotate_tail(
        self, *, rows: int, x: Numbers, x_dtype: DType, x_stride: int, x_head_stride: int, cos: Floats, sin: Floats,
        out: NumbersOut, out_dtype: DType, num_heads: int, dim: int, pairs: int, interleaved: bool, backwards: bool,
    ) -> None:
        """Each head's last `2 * pairs` numbers rotated by the row's angles, or by the negative ones."""

    def pool_keys(
        self, *, num_runs: int, cache: Floats, out: FloatsOut, runs: AttentionRuns, block_table: Int64s,
        table_width: int, block_size: int, bias: Floats, ratio: int, dim: int, overlapping: bool,
    ) -> None:
        """The entry of each group that a token completes, else zeros; a cached row has values, then gates."""

    def store_pooled(
        self, *, num_runs: int, x: Floats, cache: NumbersOut, runs: AttentionRuns, block_table: Int64s,
        table_width: int, block_size: int, ratio: int, dim: Int, cache_dtype: DType,
    ) -> None:
        """Rows of tokens that complete a group to their entries' places."""

    def attend_pooled(
        self, *, num_runs: int, query: Floats, cache: Numbers, out: FloatsOut, runs: AttentionRuns,
        block_table: Int64s, table_width: int, block_size: int, window: int, pooled_cache: Numbers | None,
        pooled_table: Int64s | None, pooled_width: int, ratio: int, selected: Int32s | None, top_k: int,
        num_heads: Int, dim: Int, scale: float, sinks: Floats | None, cache_dtype: DType,
    ) -> None:
        """Each row's values by softmax over the window's keys, and then the entries that it sees."""

    # ---- several residual streams: octavo.ops.streams --------------------------------------------------------------

    def stream_weights(
        self, *, rows: int, products: Floats, scale: Floats, bias: Floats, count: int, eps: float, iterations: int,
        read: FloatsOut, weights: FloatsOut | None,
    ) -> None:
        """Weights to read with and, where there are `weights`, to write with and mix by."""

    def mix_streams(
        self, *, rows: int, x: Numbers, y: Numbers, weights: Floats, out: NumbersOut, count: int, columns: int,
        dtype: DType,
    ) -> None:
        """Each of `count` streams: the weighted sum of y and of all streams of x, in this order."""

    # ---- recurrent layers ------------------------------------------------------------------------------------------

    def causal_conv(
        self, *, num_runs: int, x: Numbers, x_stride: int, history: FloatsOut, history_stride: int,
        weight: Floats, bias: Floats | None, out: NumbersOut, runs: ScanRuns, channels: int, taps: int,
        activation: Activation, dtype: DType,
    ) -> None:
        """Each channel's last `taps` values times its weights, and what the next step must know of them."""

    def selective_scan(
        self, *, num_runs: int, x: Numbers, dt: Numbers, a: Floats, b: Numbers, b_stride: int, c: Numbers,
        c_stride: int, d: Floats, gate: Numbers, gate_stride: int, out: NumbersOut, state: FloatsOut,
        state_stride: int, runs: ScanRuns, channels: Int, state_size: Int, activation: Activation, dtype: DType,
    ) -> None:
        """Mamba's recurrence, `state_size` values a channel, and its output times `activation(gate)`."""

    def head_scan(
        self, *, num_runs: int, x: Numbers, x_stride: int, dt: Numbers, dt_stride: int, dt_bias: Floats, dt_min: float,
        dt_max: float, a: Floats, b: Numbers, b_stride: int, c: Numbers, c_stride: int, d: Floats,
        gate: Numbers | None, gate_stride: int, out: NumbersOut, state: FloatsOut, state_stride: int, runs: ScanRuns,
        num_heads: Int, head_dim: Int, num_groups: Int, state_size: Int, activation: Activation, dtype: DType,
    ) -> None:
        """Mamba-2's recurrence, with a state of `[num_heads, state_size, head_dim]`: octavo.ops.plans.HeadScanInput."""

    def gated_recurrence(
        self, *, num_runs: int, x: Numbers, input_gate: Numbers, input_bias: Floats, recurrent_gate: Numbers,
        recurrent_bias: Floats, a: Floats, positions: Int64s, out: NumbersOut, state: FloatsOut, state_stride: int,
        runs: ScanRuns, channels: int, dtype: DType,
    ) -> None:
        """Griffin's recurrence of each channel by itself: octavo.ops.plans.GatedRecurrenceInput."""

    def delta_rule(
        self, *, num_runs: int, query: Numbers, query_stride: int, key: Numbers, key_stride: int, value: Numbers,
        value_stride: int, decay: Numbers | None, decay_stride: int, beta: Numbers | None, beta_stride: int,
        rate: Floats, bias: Floats | None, out: NumbersOut, state: FloatsOut, state_stride: int, runs: ScanRuns,
        num_heads: Int, num_key_heads: Int, key_dim: Int, value_dim: Int, by_channel: bool, in_turn: bool, scale: float,
        norm_eps: float, beta_scale: float, dtype: DType,
    ) -> None:
        """Memories `[heads, key_dim, value_dim]`, written and read by the delta rule: octavo.ops.plans.DeltaInput.

        `by_channel`: each value of a key has its own decay. `norm_eps` is 0 for none. `in_turn`: of
        DeltaSpec.
        """

    # ---- ranks -----------------------------------------------------------------------------------------------------

    def all_reduce(self, *, rows: int, ranks: Ranks, x: NumbersOut, columns: int, dtype: DType) -> None:
        """The sum of the tensor ranks' x, in place."""

    def all_gather(self, *, rows: int, ranks: Ranks, x: Bytes, row_bytes: Int64s, out: BytesOut) -> None:
        """The tensor ranks' rows side by side, whose lengths are `row_bytes`."""

    def send(self, *, rows: int, ranks: Ranks, x: Bytes, row_bytes: int) -> None:
        """Rows to the next stage."""

    def receive(self, *, rows: int, ranks: Ranks, out: BytesOut, row_bytes: int) -> None:
        """Rows from the previous stage."""

    def least(self, *, ranks: Ranks, values: Int64sOut, count: int) -> int:
        """The smallest of all ranks' values, in place."""

    def join_ranks(
        self, *, memory: Int, rank: Int, size: Int, tensor_size: Int, processors: Int, timeout: Double,
        status: Int64sOut,
    ) -> int:
        """Meet the others in memory by its file descriptor, on so many processors. Returns what `ranks` is then, or 0.

        What cannot be done puts three numbers into `status`, and stops all operations of ranks and recorded steps:
        a RankFailure, a RankOperation, and the rank that is missing, or -1.
        """

    def leave_ranks(self, *, ranks: Ranks) -> int:
        """Be alone again, and close the memory's descriptor."""

    # ---- the core itself -------------------------------------------------------------------------------------------

    def set_threads(
        self, *, count: int, num_nodes: int, homes: Int32s | None, processors: Int32s | None, ends: Int32s | None
    ) -> int:
        """Compute with so many threads from now on, the caller's included. Returns how many there are.

        With more nodes than one, each thread is bound to the processors of its home. `homes`: each thread's node;
        `processors`: those of the nodes, one after the other, up to the node's `ends`.
        """

    def set_tiles(self, *, codes: Int, bf16: Int, attention: Int) -> int:
        """Whether products with quantized weights, with bfloat16's, and attention's in bfloat16 are by the processor's
        tiles from now on.

        Returns whether the library has products of tiles.
        """

    def place(self, *, source: Bytes, target: BytesOut, size: int, parts: int) -> int:
        """Copy `size` bytes, so many alike parts, into memory that nobody has written yet.

        Of each part every node has the share that its threads take of an operation's work. Returns 0.
        """

    def run(self, *, program: Bytes, steps: int, recorded_rows: int, rows: int) -> int:
        """Run `steps` operations again: of each a ProgramStep and its arguments.

        They were recorded for `recorded_rows` rows; buffers are those of the recording, so `rows` is at most as many.
        Returns 0, or -1 for a program that is not one, or 1 where ranks have stopped.
        """
