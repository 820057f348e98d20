"""Processes of ranks that load one model after the other: to start them costs more than all that a tiny model does."""

from octavo.config import EngineArgs
from octavo.executor.rank_executor import RankExecutor
from octavo.executor.rank_processes import LocalRanks


class LoadedRanks:
    """The ranks of one layout. Such as could not load a model are ended by that, and others take their place.

    Args:
        args: of which the layout is read.
        models: how many they may load.
    """

    def __init__(self, args: EngineArgs, models: int) -> None:
        self._args, self._models = args, models
        self._ranks: LocalRanks | None = None

    def load(self, args: EngineArgs) -> RankExecutor:
        """In place of `octavo.executor.rank_executor.load_ranks`."""
        size, tensor_size = self._args.num_ranks, self._args.tensor_parallel_size
        self._ranks = self._ranks or LocalRanks(size, tensor_size, args.distributed_timeout_seconds, self._models)
        try:
            return RankExecutor(self._ranks, args)
        except BaseException:
            self._ranks = None
            raise

    def close(self) -> None:
        if self._ranks is not None:
            self._ranks.close()
