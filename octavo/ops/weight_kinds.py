"""How weights are stored, by numbers that files and the compiled core know."""

from enum import IntEnum


class WeightKind(IntEnum):
    """Kinds that are computed with as they are, by ggml's numbers."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ4_NL = 20
    BF16 = 30
