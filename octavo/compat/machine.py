"""`vllm.platforms` and `vllm.distributed`: what machine this is, and what is given back at the end."""

import gc

import torch

from octavo.compat.script_tools import set_random_seed


class _Platform:
    """The machine that models run on."""

    @property
    def device_type(self) -> str:
        """cuda where there is such a device, else cpu."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    def is_cuda(self) -> bool:
        return torch.cuda.is_available() and torch.version.hip is None

    def is_rocm(self) -> bool:
        return torch.cuda.is_available() and torch.version.hip is not None

    def is_cuda_alike(self) -> bool:
        return torch.cuda.is_available()

    def is_cpu(self) -> bool:
        return not torch.cuda.is_available()

    def is_tpu(self) -> bool:
        return False

    def is_xpu(self) -> bool:
        return False

    def seed_everything(self, seed: int | None = None) -> None:
        """Seed Python's, numpy's and torch's own random numbers; the engine's are its option `seed`."""
        set_random_seed(seed)


current_platform = _Platform()


def destroy_model_parallel() -> None:
    """Nothing is left to be ended: an engine's processes end with it."""


def destroy_distributed_environment() -> None:
    """As `destroy_model_parallel`."""


def cleanup_dist_env_and_memory(shutdown_ray: bool = False) -> None:
    """Give back memory of engines that nobody has any more; with `shutdown_ray`, leave the Ray cluster."""
    if shutdown_ray:
        import ray

        ray.shutdown()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
