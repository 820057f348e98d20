"""An engine with its model: in this process, in another, or in several.

What several processes need is imported where they are: most engines run in this one, and start the sooner.
"""

from typing import TYPE_CHECKING

from octavo.client.local_client import LocalRequests
from octavo.config import EngineArgs
from octavo.engine.engine import Engine
from octavo.executor.local import LocalExecutor
from octavo.loading.model import load_model
from octavo.loading.model_tokenizer import model_tokenizer
from octavo.ops.cpu_binding import take_share

if TYPE_CHECKING:
    from octavo.executor.process import ExecutorProcess


def launch_engine(args: EngineArgs, process: "ExecutorProcess | None" = None) -> Engine:
    """Load the model of `args`, in `process` if one is given, and make an engine for it: one of its replicas.

    Raises the errors of octavo.errors for everything wrong with the model or the options.
    """
    if process is not None:
        return Engine(args, process.load(args), model_tokenizer(args))
    if args.num_ranks > 1 or args.distributed_executor_backend == "ray":
        from octavo.executor.rank_executor import load_ranks

        return Engine(args, load_ranks(args), model_tokenizer(args))
    args = take_share(args)
    loaded = load_model(args)
    return Engine(args, LocalExecutor(loaded, args), loaded.tokenizer)


def start_requests(args: EngineArgs) -> LocalRequests:
    """Requests to an engine, or to several with data_parallel_size above 1, for who computes or waits for its steps.

    Raises as `launch_engine`.
    """
    if args.data_parallel_size > 1:
        from octavo.client.replica_engine import WaitingClient

        client = WaitingClient(args)
        return LocalRequests(client, client)
    return LocalRequests(launch_engine(args))
