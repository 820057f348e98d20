"""Activations and gates inside kernels, in float32: see octavo.ops.torch.activations."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """`1 / (1 + exp(-x))`."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """By an exponential that does not overflow; near zero, where that loses digits, by the first terms."""
    size = tl.abs(x)
    square, decay = x * x, tl.exp(-2.0 * size)
    far = (1.0 - decay) / (1.0 + decay)
    near = x * (1.0 + square * (-0.33333333 + square * (0.13333333 - square * 0.053968254)))
    return tl.where(size < 0.2, near, tl.where(x < 0, -far, far))


@triton.jit
def softplus(x):
    """`log(1 + exp(x))`, and `x` itself where the difference is below float32's precision."""
    grown = tl.exp(tl.minimum(x, 20.0, propagate_nan=tl.PropagateNan.ALL))
    whole = 1.0 + grown
    # What rounding took from 1 + exp(x) is put back (Kahan).
    near = tl.where(whole == 1.0, grown, tl.log(whole) * grown / tl.where(whole == 1.0, 1.0, whole - 1.0))
    return tl.where(x > 20.0, x, near)


@triton.jit
def activated(x, KIND: tl.constexpr):
    """The activation of a name in ACTIVATIONS; `x` itself for None."""
    if KIND is None:
        return x
    elif KIND == "silu" or KIND == "swish":
        return x / (1.0 + tl.exp(-x))
    elif KIND == "sigmoid":
        return sigmoid(x)
    elif KIND == "gelu":
        return (tl.erf(x * 0.70710678) + 1.0) * x * 0.5
    elif KIND == "gelu_new" or KIND == "gelu_fast" or KIND == "gelu_pytorch_tanh":
        return (tanh((x * x * 0.044715 + 1.0) * x * 0.79788456) + 1.0) * x * 0.5
    elif KIND == "quick_gelu":
        return x / (1.0 + tl.exp(x * -1.702))
    elif KIND == "relu":
        return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif KIND == "relu2":
        above = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        return above * above
    elif KIND == "softplus":
        return softplus(x)
    else:
        tl.static_assert(KIND == "tanh")
        return tanh(x)


@triton.jit
def gate_of(first, up, ACTIVATION: tl.constexpr, THRESHOLD: tl.constexpr, LIMIT: tl.constexpr, UP_OFFSET: tl.constexpr):
    """What becomes of the two halves of a gated feed-forward: see octavo.ops.Gate."""
    if THRESHOLD is not None:
        first = tl.where(first <= THRESHOLD, 0.0, first)
    if LIMIT is not None:
        first = tl.minimum(first, LIMIT, propagate_nan=tl.PropagateNan.ALL)
        up = tl.minimum(up, LIMIT, propagate_nan=tl.PropagateNan.ALL)
        up = tl.maximum(up, -LIMIT, propagate_nan=tl.PropagateNan.ALL)
    if UP_OFFSET != 0.0:
        up = up + UP_OFFSET
    return activated(first, ACTIVATION) * up
