"""Rows of keys and values as the kinds of caches hold them: see octavo.ops.paged_cache."""

import torch
from torch import Tensor

from octavo.ops.paged_cache import GROUP, GROUP_BYTES, GROUP_CODES, INT4, SCALE_BYTES

LARGEST = torch.finfo(torch.float16).max


def to_cache(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of numbers `[..., dim]` as a cache of `dtype` holds them."""
    if dtype == INT4:
        return _to_int4(values.float())
    return _to_int8(values.float()) if dtype == torch.int8 else values.to(dtype)


def from_cache(rows: Tensor, dim: int) -> Tensor:
    """A cache's rows of `dim` numbers as float32, `[..., dim]`."""
    if rows.dtype == INT4:
        return _from_int4(rows)[..., :dim]
    if rows.dtype != torch.int8:
        return rows.float()
    scale = rows[..., -SCALE_BYTES:].contiguous().view(torch.float32)
    return rows[..., :-SCALE_BYTES].float() * scale


def _to_int8(values: Tensor) -> Tensor:
    peak = values.abs().amax(-1, keepdim=True)
    codes = torch.round(values * torch.where(peak > 0, 127.0 / peak, 0.0)).to(torch.int8)
    return torch.cat([codes, (peak / 127.0).view(torch.int8)], dim=-1)


def _to_int4(values: Tensor) -> Tensor:
    """Codes are of the scale and the low as these are stored. What float16 has not is its largest number.

    A group with a number that is not finite is all NaN, so that its token is found by its hidden state.
    """
    short = -values.shape[-1] % GROUP
    fill = values[..., -1:].expand(*values.shape[:-1], short)  # which leaves the last group's range as it is
    groups = torch.cat([values, fill], dim=-1).view(*values.shape[:-1], (values.shape[-1] + short) // GROUP, GROUP)
    low = groups.amin(-1, keepdim=True).clamp(-LARGEST, LARGEST).half()
    scale = ((groups.amax(-1, keepdim=True) - low.float()) / 15.0).clamp(0.0, LARGEST)
    scale = torch.where(groups.isfinite().all(-1, keepdim=True), scale, torch.nan).half()
    inverse = torch.where(scale > 0, 1.0 / scale.float(), 0.0)
    codes = torch.round((groups - low.float()) * inverse).nan_to_num(0.0).clamp(0, 15).to(torch.uint8)
    pairs = codes[..., :GROUP_CODES] | codes[..., GROUP_CODES:] << 4
    return torch.cat([pairs, scale.view(INT4), low.view(INT4)], dim=-1).flatten(-2)


def _from_int4(rows: Tensor) -> Tensor:
    """With what fills up the last group."""
    groups = rows.reshape(*rows.shape[:-1], rows.shape[-1] // GROUP_BYTES, GROUP_BYTES)
    pairs, factors = groups[..., :GROUP_CODES], groups[..., GROUP_CODES:].contiguous().view(torch.float16).float()
    codes = torch.cat([pairs & 15, pairs >> 4], dim=-1).float()
    return (codes * factors[..., :1] + factors[..., 1:]).flatten(-2)
