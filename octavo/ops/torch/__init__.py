"""The reference: every operation in PyTorch."""

from octavo.ops.torch.torch_backend import TorchBackend

__all__ = ["TorchBackend"]
