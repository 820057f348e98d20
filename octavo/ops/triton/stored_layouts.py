"""How quantized weights lie where a GPU reads them.

A weight is `value(code) * scale + min`. Its codes lie in two planes, their lowest bits and what they have beyond these,
so that no bit is kept that the file does not have. A plane is cut into tiles of columns, and a tile's bytes lie output
by output: what a program reads of a tile for its outputs is one contiguous run of memory. A byte has the bits of
several *pieces* of a tile, so that unpacking is a shift and a mask, and no number changes its lane: of piece `p`,
column `j` is column `p * piece + j` of the tile.

Scales lie beside the codes, column group by column group, those of neighbouring outputs together. They are a factor
(and a min) for some columns, times a small number (and one of the min) for fewer of them, as in the files.
"""

from dataclasses import dataclass
from enum import IntEnum

from octavo.ops.weight_kinds import WeightKind


class Value(IntEnum):
    """What codes mean."""

    WHOLE = 0
    """A whole number, less a zero."""
    TABLE = 1
    """A place in a table."""
    E2M1 = 2
    E4M3 = 3
    E5M2 = 4
    FLOAT = 5
    """There are no codes: the weight lies row by row."""


class Factor(IntEnum):
    """How factors are held."""

    NONE = 0
    F16 = 1
    F32 = 2
    E8M0 = 3
    """The exponent of a power of two, 127 added."""


class Small(IntEnum):
    """How the small numbers are held that factors are multiplied with."""

    NONE = 0
    INT8 = 1
    UINT8 = 2
    NIBBLES = 3
    """Of the scale in the lower, of the min in the upper half of a byte."""
    F16 = 4


@dataclass(frozen=True)
class Layout:
    """Of one kind."""

    block: int
    """Columns of a block as files have it."""
    low: int
    """Bits of codes in the first plane, of 2, 4 and 8 ..."""
    high: int = 0
    """... and in the second, up to 2."""
    piece: int = 32
    """Columns that are multiplied at a time: no more than share a scale."""
    value: Value = Value.WHOLE
    zero: float = 0.0
    table: tuple[float, ...] = ()
    factor: Factor = Factor.F16
    factor_columns: int = 32
    factors: int = 1
    """2 where there is one of the min."""
    small: Small = Small.NONE
    small_columns: int = 32
    smalls: int = 1
    """Numbers in a group; of NIBBLES one for both."""
    min_scale: float = 0.0
    """The min is so many times its factor and its small number; 0 where there is none."""

    @property
    def pieces(self) -> int:
        """Of a tile."""
        return 8 // min(self.low, self.high or self.low)

    @property
    def tile(self) -> int:
        """Columns of a tile."""
        return self.piece * self.pieces

    @property
    def loads(self) -> int:
        """How many pieces' bytes the first plane has for a tile."""
        return self.pieces * self.low // 8


IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
IQ3_VALUES = (-62, -52, -44, -36, -28, -20, -12, -4, 4, 12, 20, 28, 36, 44, 52, 62)
"""Of IQ3_XXS, in quarters."""
IQ2_VALUES = (-43, -25, -8, 8, 25, 43)
"""In eighths."""
IQ1_VALUES = (-9, -1, 7, -7, 1, 9)
"""Of IQ1_M in eighths: of -1, 0 and 1 with an eighth taken off, then with one added."""
NF4_VALUES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The middles of 16 parts of a normal distribution, over the largest (Dettmers et al. 2023)."""
_FP4 = tuple(v / 12.0 for v in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))
FP4_VALUES = (*_FP4, *(-v for v in _FP4))
"""bitsandbytes' floats of 4 bits."""


def _parts(values: tuple[int, ...], of: int) -> tuple[float, ...]:
    return tuple(v / of for v in values)


def _simple(low: int, high: int = 0, zero: float = 0.0, has_min: bool = False) -> Layout:
    """32 columns with a float16 scale, and a float16 min."""
    piece = 16 if high else 32  # five bits make eight pieces, and rows of 896 columns no tile of 256
    return Layout(32, low, high, piece, zero=zero, factors=1 + has_min, min_scale=float(has_min))


def _super(low: int, high: int = 0, columns: int = 32, **more: float) -> Layout:
    """256 columns with factors in float16 of whole numbers for fewer of them."""
    piece, small = min(32, columns), Small.INT8
    return Layout(256, low, high, piece, factor_columns=256, small=small, small_columns=columns, **more)  # type: ignore[arg-type]


def _with_mins(low: int, high: int = 0) -> Layout:
    """The same with mins that have a factor of their own, and are taken off."""
    both = {"factors": 2, "smalls": 2, "min_scale": -1.0}
    return Layout(256, low, high, 32, factor_columns=256, small=Small.UINT8, **both)  # type: ignore[arg-type]


def _grouped(bits: int, columns: int, has_min: bool, zero: float = 0.0) -> Layout:
    """Columns with a scale in float32, and a min."""
    of = {"factor": Factor.F32, "factor_columns": columns, "factors": 1 + has_min, "min_scale": float(has_min)}
    return Layout(columns, bits, zero=zero, **of)  # type: ignore[arg-type]


def _points(low: int, high: int, columns: int, table: tuple[float, ...], zero: float = 0.0) -> Layout:
    piece, value = min(32, columns), Value.TABLE if table else Value.WHOLE
    return Layout(
        256, low, high, piece, value, zero, table, factor_columns=256, small=Small.INT8, small_columns=columns
    )


_NVFP4 = Layout(
    64, 4, 0, 16, Value.E2M1, factor=Factor.F32, factor_columns=64, small=Small.F16, small_columns=16
)  # fmt: skip

LAYOUTS = {
    WeightKind.Q4_0: _simple(4, zero=8),
    WeightKind.Q4_1: _simple(4, has_min=True),
    WeightKind.Q5_0: _simple(4, 1, zero=16),
    WeightKind.Q5_1: _simple(4, 1, has_min=True),
    WeightKind.Q8_0: _simple(8, zero=128),
    WeightKind.Q2_K: Layout(
        256, 2, 0, 16, factor_columns=256, factors=2, small=Small.NIBBLES, small_columns=16, min_scale=-1.0
    ),
    WeightKind.Q3_K: _super(2, 1, 16, zero=4),
    WeightKind.Q4_K: _with_mins(4),
    WeightKind.Q5_K: _with_mins(4, 1),
    WeightKind.Q6_K: _super(4, 2, 16, zero=32),
    WeightKind.IQ2_XXS: _points(2, 1, 32, _parts(IQ2_VALUES, 8)),
    WeightKind.IQ2_XS: _points(2, 1, 16, _parts(IQ2_VALUES, 8)),
    WeightKind.IQ2_S: _points(2, 1, 16, _parts(IQ2_VALUES, 8)),
    WeightKind.IQ3_XXS: _points(4, 0, 32, _parts(IQ3_VALUES, 4)),
    WeightKind.IQ3_S: _points(4, 0, 32, (), zero=7.5),
    WeightKind.IQ1_S: Layout(256, 2, factor_columns=256, small=Small.UINT8, smalls=2, min_scale=-0.125),
    WeightKind.IQ1_M: _points(2, 1, 16, _parts(IQ1_VALUES, 8)),
    WeightKind.IQ4_NL: Layout(32, 4, value=Value.TABLE, table=IQ4_VALUES),
    WeightKind.IQ4_XS: _points(4, 0, 32, IQ4_VALUES),
    WeightKind.TQ1_0: Layout(256, 2, zero=1, factor_columns=256),
    WeightKind.TQ2_0: Layout(256, 2, zero=1, factor_columns=256),
    WeightKind.MXFP4: Layout(32, 4, value=Value.E2M1, factor=Factor.E8M0),
    WeightKind.GGUF_NVFP4: _NVFP4,
    WeightKind.NVFP4: _NVFP4,
    WeightKind.U4_32: _grouped(4, 32, has_min=True),
    WeightKind.U4_64: _grouped(4, 64, has_min=True),
    WeightKind.U4_128: _grouped(4, 128, has_min=True),
    WeightKind.U8_32: _grouped(8, 32, has_min=False, zero=128),
    WeightKind.U8_128: _grouped(8, 128, has_min=False, zero=128),
    WeightKind.U8_MIN_32: _grouped(8, 32, has_min=True),
    WeightKind.U8_MIN_128: _grouped(8, 128, has_min=True),
    WeightKind.E4M3: Layout(128, 8, value=Value.E4M3, factor=Factor.F32, factor_columns=128),
    WeightKind.E5M2: Layout(128, 8, value=Value.E5M2, factor=Factor.F32, factor_columns=128),
    WeightKind.NF4: Layout(
        64, 4, value=Value.TABLE, table=NF4_VALUES, factor=Factor.F32, factor_columns=64
    ),
    WeightKind.FP4: Layout(
        64, 4, value=Value.TABLE, table=FP4_VALUES, factor=Factor.F32, factor_columns=64
    ),
}  # fmt: skip
"""Of all quantized kinds. Floats lie row by row."""
