"""`EngineArgs` as vLLM's scripts use it: with all of vLLM's keywords, and flags of its own for a script's parser."""

import argparse
import dataclasses
import logging
import os
from typing import Any, Self

from octavo.cli.flags import add_flags
from octavo.cli.vllm_flags import OTHERS, Taken, add_vllm_flags
from octavo.config import DEFAULT_MODEL, engine_args
from octavo.config import EngineArgs as OwnArgs
from octavo.loading.engine_config import ModelConfig, VllmConfig
from octavo.vllm_options import vllm_options

log = logging.getLogger("octavo")


class _Kept(Taken):
    """A flag of vLLM's alone, whose value stays in the namespace under its own name."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        given = argparse.Namespace()
        super().__call__(parser, given, values, option_string)
        setattr(namespace, self.dest, getattr(given, OTHERS)[-1][1])


class EngineArgs(OwnArgs):
    """Options of an engine, by all keywords that vLLM's EngineArgs and AsyncEngineArgs take.

    Raises ConfigError for an unknown keyword (naming the closest) and for values that Octavo cannot honour.
    """

    def __init__(self, model: str | os.PathLike[str] = DEFAULT_MODEL, **options: Any) -> None:
        made, notes = engine_args(model, options)
        for note in notes:
            log.info(note)
        fields = {f.name for f in dataclasses.fields(OwnArgs)}
        self.__dict__.update({name: value for name, value in options.items() if name not in fields}, **vars(made))

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser, async_args_only: bool = False) -> argparse.ArgumentParser:
        """Give a script's parser the engine's flags. A parsed namespace, `vars` of it, is what LLM takes as keywords.

        `async_args_only` has no effect.
        """
        add_flags(parser, OwnArgs, "engine")
        fields = [f for f in dataclasses.fields(OwnArgs) if f.metadata["flag"]]
        parser.set_defaults(
            **{f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory() for f in fields}
        )
        add_vllm_flags(parser, action=_Kept)
        return parser

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> Self:
        """The options of a namespace that a parser with these flags has made; what else it has is left out."""
        known = {f.name for f in dataclasses.fields(OwnArgs)} | vllm_options().keys()
        return cls(**{name: value for name, value in vars(args).items() if name in known})

    def create_model_config(self) -> ModelConfig:
        """The model, before it is loaded."""
        return ModelConfig(self)

    def create_engine_config(self, *_: Any, **__: Any) -> VllmConfig:
        """All of it, before the model is loaded."""
        return VllmConfig.of(self)


AsyncEngineArgs = EngineArgs
