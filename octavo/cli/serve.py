"""`octavo serve`: the model behind OpenAI's API."""

import argparse
import dataclasses

from octavo.cli.flags import engine_args_of, take_model
from octavo.errors import ConfigError
from octavo.server.run import serve
from octavo.server.server_options import ServerOptions


def server_options_of(namespace: argparse.Namespace) -> ServerOptions:
    """ServerOptions of the flags that were given."""
    names = {f.name for f in dataclasses.fields(ServerOptions)}
    return ServerOptions(**{k: v for k, v in vars(namespace).items() if k in names})


def run(namespace: argparse.Namespace) -> int:
    take_model(namespace, namespace.served)
    args = engine_args_of(namespace)
    options = server_options_of(namespace)
    if options.lora_modules or getattr(namespace, "allow_runtime_lora_updating", False):
        if getattr(namespace, "enable_lora", None) is False:
            raise ConfigError("--lora-modules and --allow-runtime-lora-updating need --enable-lora.")
        args = dataclasses.replace(args, enable_lora=True)
    options.start_logs()
    serve(args, options)
    return 0
