"""An engine with its model in this process."""

from octavo.config import EngineArgs
from octavo.engine.engine import Engine
from octavo.executor.local import LocalExecutor
from octavo.loading.model import load_model


def launch_engine(args: EngineArgs) -> Engine:
    """Load the model of `args`, and make an engine for it.

    Raises the errors of octavo.errors for everything wrong with the model or the options.
    """
    loaded = load_model(args)
    return Engine(args, LocalExecutor(loaded, args), loaded.tokenizer)
