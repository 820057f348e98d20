"""What is done with an engine between its steps, and what it says of itself."""

from octavo.engine.scheduler import Scheduler


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


def gauges(scheduler: Scheduler) -> dict[str, float]:
    """How full the engine is now, by the names of vLLM's metrics, without `vllm:`."""
    pool = scheduler.cache.pool
    return {
        "num_requests_running": len(scheduler.running),
        "num_requests_waiting": scheduler.num_waiting,
        "kv_cache_usage_perc": (pool.num_blocks - pool.num_free) / max(1, pool.num_blocks),
    }
