"""Recurrences: a program has some channels of one sequence's state, and takes its tokens one after the other.

The state stays in registers over a run. What a token does to it does not depend on the other tokens, nor on how many
come in a step, so that a token's bits are the same in whatever runs a sequence is computed. Programs have slots and
channels of their own. A run without tokens (a row that a recorded step has too many) leaves its state as it is.
"""

import triton
import triton.language as tl

from octavo.ops.triton.activation_kernels import activated, sigmoid, softplus
from octavo.ops.triton.launching import rounded


@triton.jit
def _run(table):
    """The first row of a program's run, how many it has, and the slot of its state."""
    run = table + tl.program_id(0) * 3
    return tl.load(run), tl.load(run + 1).to(tl.int32), tl.load(run + 2)


@triton.jit
def convolve_kernel(
    x,
    x_stride,
    history,
    weight,
    bias,
    out,
    channels,
    table,
    KERNEL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PASS: tl.constexpr,
):
    """A causal convolution of each channel. Program ids: the run; channels; TOKENS of the run.

    PASS 0 takes whole runs and keeps their last inputs; of runs of several programs, 1 computes and 2 keeps.
    """
    first, count, slot = _run(table)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    kept = history + slot * (KERNEL - 1) * channels + channel
    source, target = x + first * x_stride + channel, out + first * channels + channel
    begin, nowhere = tl.program_id(2) * TOKENS, tl.zeros([CHANNELS], tl.int32)
    end = count if PASS == 0 else tl.minimum(begin + TOKENS, count)
    if PASS != 2:
        for token in range(begin, end):
            total = tl.zeros([CHANNELS], tl.float32)
            for k in tl.static_range(KERNEL):
                at = token + k - (KERNEL - 1) + nowhere
                before = tl.load(kept + (at + KERNEL - 1) * channels, mask=is_channel & (at < 0), other=0.0)
                now = tl.load(source + at * x_stride, mask=is_channel & (at >= 0), other=0.0).to(tl.float32)
                factor = tl.load(weight + channel * KERNEL + k, mask=is_channel, other=0.0)
                total += (before + now) * factor
            if HAS_BIAS:
                total += tl.load(bias + channel, mask=is_channel, other=0.0)
            total = rounded(activated(total, ACTIVATION), out.dtype.element_ty)
            tl.store(target + token * channels, total, mask=is_channel)
    if PASS != 1 and count > 0:
        # From the first on: what is read lies behind what has been written.
        for k in tl.static_range(KERNEL - 1):
            at = count + k - (KERNEL - 1) + nowhere
            before = tl.load(kept + (at + KERNEL - 1) * channels, mask=is_channel & (at < 0), other=0.0)
            now = tl.load(source + at * x_stride, mask=is_channel & (at >= 0), other=0.0).to(tl.float32)
            tl.store(kept + k * channels, before + now, mask=is_channel)


@triton.jit
def scan_kernel(
    x,
    x_stride,
    dt,
    dt_stride,
    a,
    b,
    b_stride,
    c,
    c_stride,
    d,
    gate,
    gate_stride,
    out,
    state,
    state_stride,
    channels,
    table,
    STATE: tl.constexpr,
    STATES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Mamba's scan: of a state's three parts the first is what the sequence has so far, the others are not used."""
    first, count, slot = _run(table)
    channel, place = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, STATES)
    is_channel, is_place = channel < channels, place < STATE
    mask = is_channel[:, None] & is_place[None, :]
    of_state = channel[:, None] * STATE + place[None, :]
    own = state + slot * state_stride + of_state
    if count <= 0:
        return
    h = tl.load(own, mask=mask, other=0.0)
    rate = tl.load(a + of_state, mask=mask, other=0.0)
    direct = tl.load(d + channel, mask=is_channel, other=0.0)
    for row in range(first, first + count):
        value = tl.load(x + row * x_stride + channel, mask=is_channel, other=0.0).to(tl.float32)
        step = softplus(tl.load(dt + row * dt_stride + channel, mask=is_channel, other=0.0).to(tl.float32))
        brings = tl.load(b + row * b_stride + place, mask=is_place, other=0.0).to(tl.float32)
        reads = tl.load(c + row * c_stride + place, mask=is_place, other=0.0).to(tl.float32)
        h = tl.exp(step[:, None] * rate) * h + (step * value)[:, None] * brings[None, :]
        y = tl.sum(h * reads[None, :], 1) + value * direct
        opens = tl.load(gate + row * gate_stride + channel, mask=is_channel, other=0.0).to(tl.float32)
        y = rounded(y * activated(opens, ACTIVATION), out.dtype.element_ty)
        tl.store(out + row * channels + channel, y, mask=is_channel)
    tl.store(own, h, mask=mask)


@triton.jit
def scan_heads_kernel(
    x,
    x_stride,
    dt,
    dt_stride,
    dt_bias,
    dt_min,
    dt_max,
    a,
    b,
    b_stride,
    c,
    c_stride,
    d,
    gate,
    gate_stride,
    out,
    state,
    state_stride,
    num_heads,
    heads_of_group,
    table,
    HEAD_DIM: tl.constexpr,
    STATE: tl.constexpr,
    STATES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_GATE: tl.constexpr,
):
    """Mamba-2's scan. Program ids: the run; the head; COLUMNS of the head's values."""
    first, count, slot = _run(table)
    head, group = tl.program_id(1), tl.program_id(1) // heads_of_group
    column, place = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, STATES)
    is_column, is_place = column < HEAD_DIM, place < STATE
    mask = is_place[:, None] & is_column[None, :]
    own = state + slot * state_stride + (head * STATE + place[:, None]) * HEAD_DIM + column[None, :]
    if count <= 0:
        return
    h = tl.load(own, mask=mask, other=0.0)
    rate, direct, more = tl.load(a + head), tl.load(d + head), tl.load(dt_bias + head)
    for row in range(first, first + count):
        at = head * HEAD_DIM + column
        value = tl.load(x + row * x_stride + at, mask=is_column, other=0.0).to(tl.float32)
        step = softplus(tl.load(dt + row * dt_stride + head).to(tl.float32) + more)
        step = tl.minimum(tl.maximum(step, dt_min), dt_max)
        brings = tl.load(b + row * b_stride + group * STATE + place, mask=is_place, other=0.0).to(tl.float32)
        reads = tl.load(c + row * c_stride + group * STATE + place, mask=is_place, other=0.0).to(tl.float32)
        h = tl.exp(step * rate) * h + brings[:, None] * (step * value)[None, :]
        y = tl.sum(h * reads[:, None], 0) + value * direct
        if HAS_GATE:
            opens = tl.load(gate + row * gate_stride + at, mask=is_column, other=0.0).to(tl.float32)
            y *= activated(opens, ACTIVATION)
        tl.store(out + row * (num_heads * HEAD_DIM) + at, rounded(y, out.dtype.element_ty), mask=is_column)
    tl.store(own, h, mask=mask)


@triton.jit
def gated_recurrence_kernel(
    x,
    x_stride,
    input_gate,
    input_stride,
    input_bias,
    recurrent_gate,
    recurrent_stride,
    recurrent_bias,
    a,
    positions,
    out,
    state,
    state_stride,
    channels,
    table,
    CHANNELS: tl.constexpr,
):
    """Griffin's recurrence. Program ids: the run; channels."""
    first, count, slot = _run(table)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = channel < channels
    own = state + slot * state_stride + channel
    if count <= 0:
        return
    h = tl.load(own, mask=mask, other=0.0)
    rate = tl.load(a + channel, mask=mask, other=0.0)
    more_input = tl.load(input_bias + channel, mask=mask, other=0.0)
    more_recurrent = tl.load(recurrent_bias + channel, mask=mask, other=0.0)
    for row in range(first, first + count):
        value = tl.load(x + row * x_stride + channel, mask=mask, other=0.0).to(tl.float32)
        enters = tl.load(input_gate + row * input_stride + channel, mask=mask, other=0.0).to(tl.float32)
        decays = tl.load(recurrent_gate + row * recurrent_stride + channel, mask=mask, other=0.0).to(tl.float32)
        logarithm = rate * sigmoid(decays + more_recurrent)
        rest = tl.sqrt_rn(tl.maximum(1.0 - tl.exp(logarithm * 2.0), 0.0))
        rest = tl.where(tl.load(positions + row) == 0, 1.0, rest)
        h = tl.exp(logarithm) * h + value * sigmoid(enters + more_input) * rest
        tl.store(out + row * channels + channel, rounded(h, out.dtype.element_ty), mask=mask)
    tl.store(own, h, mask=mask)


@triton.jit
def _key_values(x, is_key, NORM_EPS: tl.constexpr, scale):
    """A query or a key, normed."""
    x = tl.where(is_key, x.to(tl.float32), 0.0)
    if NORM_EPS is not None:
        x = x / tl.sqrt_rn(tl.sum(x * x, 0) + NORM_EPS)
    return x * scale


@triton.jit
def delta_rule_kernel(
    query,
    query_stride,
    key,
    key_stride,
    value,
    value_stride,
    decay,
    decay_stride,
    beta,
    beta_stride,
    rate,
    bias,
    out,
    state,
    state_stride,
    scale,
    beta_scale,
    table,
    NUM_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    KEYS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    NORM_EPS: tl.constexpr,
    IS_IN_TURN: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    BY_CHANNEL: tl.constexpr,
    HAS_BETA: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Memories by keys. Program ids: the run; the head; COLUMNS of its values, which do not depend on the others."""
    first, count, slot = _run(table)
    head = tl.program_id(1)
    key_head = head % KEY_HEADS if IS_IN_TURN else head // (NUM_HEADS // KEY_HEADS)
    place, column = tl.arange(0, KEYS), tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    is_key, is_column = place < KEY_DIM, column < VALUE_DIM
    mask = is_key[:, None] & is_column[None, :]
    own = state + slot * state_stride + (head * KEY_DIM + place[:, None]) * VALUE_DIM + column[None, :]
    if count <= 0:
        return
    memory = tl.load(own, mask=mask, other=0.0)
    of_head = tl.load(rate + head)
    at = head * KEY_DIM + place if BY_CHANNEL else head + place * 0
    more = tl.load(bias + at, mask=is_key, other=0.0) if HAS_BIAS else 0.0
    for row in range(first, first + count):
        kept = tl.exp(of_head + place * 0.0)
        if HAS_DECAY:
            steps = tl.load(decay + row * decay_stride + at, mask=is_key, other=0.0).to(tl.float32)
            kept = tl.exp(of_head * softplus(steps + more))
        of_key = key_head * KEY_DIM + place
        asked = tl.load(query + row * query_stride + of_key, mask=is_key, other=0.0)
        known = tl.load(key + row * key_stride + of_key, mask=is_key, other=0.0)
        asked, known = _key_values(asked, is_key, NORM_EPS, scale), _key_values(known, is_key, NORM_EPS, 1.0)
        of_value = head * VALUE_DIM + column
        given = tl.load(value + row * value_stride + of_value, mask=is_column, other=0.0).to(tl.float32)
        memory *= kept[:, None]
        if HAS_BETA:
            strength = sigmoid(tl.load(beta + row * beta_stride + head).to(tl.float32)) * beta_scale
            given = (given - tl.sum(memory * known[:, None], 0)) * strength
        memory += known[:, None] * given[None, :]
        read = rounded(tl.sum(memory * asked[:, None], 0), out.dtype.element_ty)
        tl.store(out + row * (NUM_HEADS * VALUE_DIM) + of_value, read, mask=is_column)
    tl.store(own, memory, mask=mask)
