"""What is done with an engine between its steps, and what it says of itself."""

from octavo.engine.scheduler import Scheduler
from octavo.engine.speculation import Speculation


def reset_caches(scheduler: Scheduler, preempt: bool = False) -> bool:
    """Forget what prefix and feature caches hold, so that nothing of it is found again; whether that was done.

    It is not while sequences run, unless `preempt` has them computed anew.
    """
    if scheduler.running and not preempt:
        return False
    for sequence in list(scheduler.running):
        scheduler.preempt(sequence)
    scheduler.cache.pool.reset()
    scheduler.features.reset()
    return True


def counters_of(scheduler: Scheduler, speculation: Speculation | None) -> dict[str, int]:
    """What the engine alone counts, by the names of vLLM's metrics, without `vllm:`."""
    counters = {"num_preemptions": scheduler.num_preemptions}
    if speculation is not None:
        counters["spec_decode_num_drafts"] = speculation.num_drafts
        counters["spec_decode_num_draft_tokens"] = speculation.num_draft_tokens
        counters["spec_decode_num_accepted_tokens"] = sum(speculation.accepted_by_place)
    if (offload := scheduler.offload) is not None:
        counters["external_prefix_cache_queries"] = offload.queries
        counters["external_prefix_cache_hits"] = offload.hits
        counters["kv_offload_stored_bytes"] = offload.stored_bytes
        counters["kv_offload_loaded_bytes"] = offload.loaded_bytes
    return counters


def gauges(scheduler: Scheduler) -> dict[str, float]:
    """How full the engine is now, by the names of vLLM's metrics, without `vllm:`."""
    pool = scheduler.cache.pool
    return {
        "num_requests_running": len(scheduler.running),
        "num_requests_waiting": scheduler.num_waiting,
        "kv_cache_usage_perc": (pool.num_blocks - pool.num_free) / max(1, pool.num_blocks),
    }
