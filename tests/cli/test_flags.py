"""Flags of the command line."""

import argparse

from octavo.cli.flags import add_engine_flags, engine_args_of, engine_flags_of


def test_given_flags_are_given_on() -> None:
    """Flags of all kinds, as another command is to take them: parsed again, they are the same options."""
    parser = argparse.ArgumentParser()
    add_engine_flags(parser)
    given = ["--model", "m", "--offline", "--no-enable-prefix-caching", "--max-num-seqs", "3"]
    given += ["--kv-cache-memory", "1GiB", "--limit-mm-per-prompt", '{"image": 2}']
    given += ["--allowed-media-domains", "a.org", "--allowed-media-domains", "b.org"]
    namespace = parser.parse_args(given)
    assert engine_args_of(parser.parse_args(engine_flags_of(namespace))) == engine_args_of(namespace)
