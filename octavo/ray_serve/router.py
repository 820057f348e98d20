"""How Ray Serve chooses a replica for a request: by what it has read of the prompt, weighed against its load.

Ray has a router of this kind, `ray.serve.llm.request_router.PrefixCacheAffinityRouter`; in Ray 2.60 it cannot be
imported unless vLLM or SGLang is installed, nor without pyarrow.
"""

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from octavo.ray_serve.prefixes import PrefixMemory, rank


class PrefixRouter(RequestRouter):  # type: ignore[misc]  # Ray's classes are not typed
    """Serve's `request_router_class` of the replicas. A call's first argument is the chain of its prompt."""

    def initialize_state(self, pieces_per_request: float = 8.0) -> None:
        """Serve calls this with `request_router_kwargs`.

        Args:
            pieces_per_request: a replica with a request more than another must have read so many pieces more.
        """
        self.pieces_per_request = pieces_per_request
        self.memory = PrefixMemory[ReplicaID]()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        by_id = {replica.replica_id: replica for replica in candidate_replicas}
        load = {name: self.replica_queue_len_cache.get(name) or 0 for name in by_id}
        order = rank(load, _chain(pending_request), self.memory, self.pieces_per_request)
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        return [[by_id[name]] for name in order]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        self.memory.add(_chain(pending_request), replica_id)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self.memory.forget(replica_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        gone = set(self.curr_replicas) - {replica.replica_id for replica in replicas}
        super().update_replicas(replicas)
        for replica_id in gone:
            self.memory.forget(replica_id)


def _chain(request: PendingRequest | None) -> list[int]:
    return request.args[0] if request is not None and request.args and isinstance(request.args[0], list) else []
