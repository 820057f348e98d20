"""Which implementation of each operation a model runs with. Chosen once, when it is loaded, and handed to its parts."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from octavo.ops import attention, norm, scan
from octavo.ops.activation import ACTIVATIONS
from octavo.ops.activation import gated as gated_reference
from octavo.ops.attention import AttentionPlan, BlockSparse
from octavo.ops.linear import LinearKernel, linear_implementation, prepare_linear
from octavo.ops.native import ACTIVATIONS as NATIVE_ACTIVATIONS
from octavo.ops.native import DTYPES as NATIVE_DTYPES
from octavo.ops.native import NativeKernels, load
from octavo.ops.scan import RecurrentPlan


class RMSNormKernel(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...


class GatedKernel(Protocol):
    def __call__(self, gate_up: Tensor, activation: str) -> Tensor: ...


class RotateStoreKernel(Protocol):
    def __call__(
        self,
        qkv: Tensor,
        angles: tuple[Tensor, Tensor] | None,
        interleaved: bool,
        key_cache: Tensor,
        value_cache: Tensor,
        plan: AttentionPlan,
    ) -> Tensor: ...


class AttentionKernel(Protocol):
    def __call__(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        plan: AttentionPlan,
        out: Tensor,
        scale: float,
        softcap: float | None = None,
        alibi_slopes: Tensor | None = None,
        sparse: BlockSparse | None = None,
    ) -> None: ...


class ScanKernel(Protocol):
    def __call__(
        self, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor, plan: RecurrentPlan
    ) -> Tensor: ...


@dataclass(frozen=True)
class Kernels:
    """One implementation of each operation that has several."""

    name: str
    device: torch.device
    linear_class: type[LinearKernel]
    rms_norm: RMSNormKernel
    gated: GatedKernel
    rotate_store: RotateStoreKernel
    paged_attention: AttentionKernel
    scan_step: ScanKernel

    def linear(self, weight: Tensor) -> LinearKernel:
        """The weight `[out, in]`, laid out for computing; the caller may drop its own."""
        return prepare_linear(weight, self.linear_class)


def _gated_by_name(gate_up: Tensor, activation: str) -> Tensor:
    return gated_reference(gate_up, ACTIVATIONS[activation])


def _native_gated(native: NativeKernels) -> GatedKernel:
    def gated(gate_up: Tensor, activation: str) -> Tensor:
        serve = native.gated if activation in NATIVE_ACTIVATIONS else _gated_by_name
        return serve(gate_up, activation)

    return gated


def choose_kernels(dtype: torch.dtype, device: torch.device, preference: str = "auto") -> Kernels:
    """The fastest implementations for tensors of `dtype` on `device`; `preference="torch"` forces the reference."""
    linear = linear_implementation(dtype, device, preference)
    native = load() if preference == "auto" and device.type == "cpu" and dtype in NATIVE_DTYPES else None
    if native is None:
        return Kernels(
            "torch",
            device,
            linear,
            norm.rms_norm,
            _gated_by_name,
            attention.rotate_store,
            attention.paged_attention,
            scan.scan_step,
        )
    return Kernels(
        f"native ({native.instructions})",
        device,
        linear,
        native.rms_norm,
        _native_gated(native),
        native.rotate_store,
        native.paged_attention,
        native.scan_step,
    )
