"""A device's memory: how much is free, how much a step takes, and what is said where it runs out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch

from octavo.errors import shorten
from octavo.ops import host_memory
from octavo.rank_place import RankPlace

NO_MEMORY = (
    "The GPU's memory ran out: lower gpu_memory_utilization (what caches may take), max_num_batched_tokens (rows of a "
    "step), max_num_seqs or max_model_len, or load the weights in fewer bits."
)


class TorchMemory:
    """What a backend of PyTorch's tensors knows of it."""

    device: torch.device
    place: RankPlace

    @contextmanager
    def computing(self) -> Iterator[None]:
        """On this device, whichever the thread's is. Memory that runs out is an error that says what to lower."""
        here = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        try:
            with here:
                yield
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(f"{NO_MEMORY} ({shorten(str(error))})") from error

    def free_memory(self) -> int:
        return host_memory.available() if self.device.type == "cpu" else int(torch.cuda.mem_get_info(self.device)[0])

    def cache_budget(self, device_share: float) -> int:
        if self.device.type == "cpu":
            return int(host_memory.available() * host_memory.CACHE_SHARE)
        torch.cuda.empty_cache()  # what is kept for later, and free all the same
        free, total = torch.cuda.mem_get_info(self.device)
        return max(0, int(free - total * (1 - device_share)))

    @property
    def memory_sharers(self) -> int:
        return self.place.size if self.device.type == "cpu" else 1

    @property
    def runs_aside(self) -> bool:
        return self.device.type == "cuda"

    @property
    def measures_memory(self) -> bool:
        return self.device.type == "cuda"

    def measure_peak(self, function: Callable[[], object]) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_reserved(self.device)
        function()
        torch.cuda.synchronize(self.device)
        taken = torch.cuda.max_memory_reserved(self.device) - before
        torch.cuda.empty_cache()
        return taken
