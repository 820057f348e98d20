"""The core's operations on several residual streams in a row, and on gates of which few stay."""

import torch
from torch import Tensor

from octavo.ops.native.native_elementwise import ACTIVATIONS, NativeElementwise
from octavo.ops.native.packed_weight import DTYPES


class NativeAlternating(NativeElementwise):
    """octavo.ops.alternating_streams, of one of the compiled libraries; arguments as of NativeElementwise."""

    def predict_streams(self, x: Tensor, mix: Tensor) -> Tensor:
        x, mix = self._together(x), self._together(mix)
        streams, out = int(mix.shape[1] ** 0.5), torch.empty_like(x)
        self.library.core.predict_streams(
            rows=len(x),
            x=x.data_ptr(),
            mix=mix.data_ptr(),
            out=out.data_ptr(),
            streams=streams,
            columns=x.shape[1] // streams,
            dtype=DTYPES[x.dtype],
        )
        return out

    def correct_streams(self, x: Tensor, y: Tensor, gains: Tensor, active: int) -> Tensor:
        x, y, gains = self._together(x), self._together(y), self._together(gains)
        out = torch.empty_like(x)
        self.library.core.correct_streams(
            rows=len(x),
            x=x.data_ptr(),
            y=y.data_ptr(),
            gains=gains.data_ptr(),
            out=out.data_ptr(),
            streams=gains.shape[1],
            columns=y.shape[1],
            active=active,
            dtype=DTYPES[x.dtype],
        )
        return out

    def add_to_streams(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self._together(x), self._together(y)
        out = torch.empty_like(x)
        self.library.core.add_to_streams(
            rows=len(x),
            x=x.data_ptr(),
            y=y.data_ptr(),
            out=out.data_ptr(),
            streams=x.shape[1] // y.shape[1],
            columns=y.shape[1],
            dtype=DTYPES[x.dtype],
        )
        return out

    def match_magnitude(self, x: Tensor, like: Tensor, least: float) -> Tensor:
        x, like = self._together(x), self._together(like)
        out = torch.empty_like(x)
        self.library.core.match_magnitude(
            rows=len(x),
            x=x.data_ptr(),
            like=like.data_ptr(),
            out=out.data_ptr(),
            columns=x.shape[1],
            least=least,
            dtype=DTYPES[x.dtype],
        )
        return out

    def row_cutoffs(self, x: Tensor, deviations: float) -> Tensor:
        out = torch.empty(len(x))
        self.library.core.row_cutoffs(
            rows=len(x),
            x=x.data_ptr(),
            x_stride=x.stride(0),
            out=out.data_ptr(),
            columns=x.shape[1],
            deviations=deviations,
            dtype=DTYPES[x.dtype],
        )
        return out

    def gated_above(self, gate_up: Tensor, cutoffs: Tensor, activation: str) -> Tensor:
        if activation not in ACTIVATIONS:
            return self._reference.gated_above(gate_up, cutoffs, activation)
        gate_up = self._together(gate_up)
        out = torch.empty(len(gate_up), gate_up.shape[1] // 2, dtype=gate_up.dtype)
        self.library.core.gate_above(
            rows=len(gate_up),
            x=gate_up.data_ptr(),
            cutoffs=cutoffs.data_ptr(),
            out=out.data_ptr(),
            columns=out.shape[1],
            activation=ACTIVATIONS[activation],
            dtype=DTYPES[out.dtype],
        )
        return out
