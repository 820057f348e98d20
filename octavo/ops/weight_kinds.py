"""How weights are stored, by numbers that files and the compiled core know."""

from enum import IntEnum

NOT_OF_GGUF = 1000
"""Numbers from here on are of kinds that GGUF files lack."""


class WeightKind(IntEnum):
    """Kinds that are computed with as they are, by ggml's numbers where it has them."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    GGUF_NVFP4 = 40
    """NVFP4 as GGUF files have it, which is packed as the one below is."""
    U4_32 = 1000
    """Codes of 4 bits, with a float32 scale and min for each 32 columns; also for 64, and for 128."""
    U4_64 = 1001
    U4_128 = 1002
    U8_32 = 1003
    """Codes of 8 bits less 128, with a float32 scale for each 32 columns; also for 128."""
    U8_128 = 1004
    NVFP4 = 1005
    """Codes of e2m1, with a float16 scale for each 16 columns, and a float32 factor of half of these for each 64."""
    E4M3 = 1006
    """Floats of 8 bits, with a float32 scale for each 128 columns."""
    NF4 = 1007
    """Codes of 4 bits into bitsandbytes' table of normal floats, with a float32 scale for each 64 columns."""
    FP4 = 1008
    """The same with its table of floats of 4 bits."""
    E5M2 = 1009
    """Floats of 8 bits with 5 of exponent, with a float32 scale for each 128 columns."""
    U8_MIN_32 = 1010
    """Codes of 8 bits, with a float32 scale and min for each 32 columns; also for 128."""
    U8_MIN_128 = 1011


BITS_HELD = {
    WeightKind.Q3_K: 3.5625,
    WeightKind.Q4_K: 4.625,
    WeightKind.Q5_K: 5.625,
    WeightKind.IQ4_XS: 4.3125,
    WeightKind.IQ1_S: 2.3125,
    WeightKind.IQ1_M: 2.5625,
    WeightKind.IQ2_XXS: 3.3125,
    WeightKind.IQ2_XS: 3.5625,
    WeightKind.IQ2_S: 3.5625,
    WeightKind.IQ3_XXS: 4.3125,
    WeightKind.IQ3_S: 4.3125,
    WeightKind.TQ1_0: 2.0625,
    WeightKind.GGUF_NVFP4: 5.5,
}
"""Memory of a weight of GGUF's kinds that take more than in their file, in bits."""
