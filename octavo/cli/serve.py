"""`octavo serve`: the model behind OpenAI's API."""

import argparse
import dataclasses
import logging
import sys

from octavo.cli.options import engine_args_of
from octavo.server.options import ServerOptions
from octavo.server.run import serve


def run(namespace: argparse.Namespace) -> int:
    args = engine_args_of(namespace)
    if namespace.served is not None:
        args = dataclasses.replace(args, model=namespace.served)
    names = {f.name for f in dataclasses.fields(ServerOptions)}
    options = ServerOptions(**{k: v for k, v in vars(namespace).items() if k in names})
    logging.getLogger("octavo").setLevel(logging.INFO)
    requests = logging.getLogger("octavo.requests")
    requests.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    requests.handlers = [handler]
    serve(args, options)
    return 0
