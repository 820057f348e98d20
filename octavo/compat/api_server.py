"""`python -m vllm.entrypoints.openai.api_server`: `octavo serve` with the same flags."""

import sys

from octavo.cli.main import main


def serve() -> int:
    """Serve what the command line says."""
    return main(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(serve())
