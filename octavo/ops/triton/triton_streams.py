"""Several residual streams: what TritonBackend has of them."""

import torch
from torch import Tensor

from octavo.ops.streams import StreamSpec
from octavo.ops.torch import TorchBackend
from octavo.ops.triton.launching import ROWS, cdiv, columns_of, power_of_two, together, warps_of
from octavo.ops.triton.stream_kernels import stream_weights_kernel, streams_kernel


def _run(operation: str, x: Tensor, y: Tensor, weights: Tensor, streams: int, active: int = 0) -> Tensor:
    """`streams_kernel` of `x` `[rows, streams * size]`."""
    x, y, weights = together(x), together(y), weights.contiguous()
    (rows, width), size = x.shape, x.shape[1] // streams
    out, columns = torch.empty(rows, width, dtype=x.dtype, device=x.device), columns_of(size)
    if rows:
        streams_kernel[(cdiv(rows, ROWS), cdiv(size, columns), streams)](
            x, y, weights, out, rows, size, active, x.stride(0), y.stride(0), operation, streams, ROWS, columns,
            num_warps=warps_of(columns), enable_fp_fusion=False,
        )  # fmt: skip
    return out


class TritonStreams(TorchBackend):
    """Operations on streams."""

    def predict_streams(self, x: Tensor, mix: Tensor) -> Tensor:
        return _run("predict", x, x, mix, int(mix.shape[1] ** 0.5))

    def correct_streams(self, x: Tensor, y: Tensor, gains: Tensor, active: int) -> Tensor:
        return _run("correct", x, y, gains, gains.shape[1], active)

    def add_to_streams(self, x: Tensor, y: Tensor) -> Tensor:
        return _run("add", x, y, x, x.shape[1] // y.shape[1])

    def mix_streams(self, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        return _run("mix", x, y, weights, weights.shape[1])

    def stream_weights(self, products: Tensor, spec: StreamSpec) -> tuple[Tensor, Tensor]:
        products, count, is_alone = together(products), spec.count, products.shape[1] == spec.count
        rows = len(products)
        read = torch.empty(rows, count, device=products.device)
        write = torch.empty((rows, 0) if is_alone else (rows, count, 1 + count), device=products.device)
        if rows:
            stream_weights_kernel[(cdiv(rows, ROWS),)](
                products, spec.scale, spec.bias, read, write, rows, products.stride(0), spec.eps, spec.iterations,
                count, power_of_two(count), is_alone, ROWS, num_warps=1, enable_fp_fusion=False,
            )  # fmt: skip
        return read, write
