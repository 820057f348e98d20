"""Command-line flags, made from the dataclasses that the Python interface takes."""

import argparse
import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from octavo.config import EngineArgs
from octavo.params import SamplingParams, recommended_sampling

SAMPLING_HELP = {
    "max_tokens": "most tokens of the answer (default: 256)",
    "temperature": "randomness; 0 always takes the likeliest token (default: the model's own, or 0)",
    "top_p": "draw only from the likeliest tokens that make up this share",
    "top_k": "draw only from so many of the likeliest tokens",
    "min_p": "leave out tokens less likely than this share of the likeliest",
    "repetition_penalty": "above 1, tokens that were there already become less likely",
    "presence_penalty": "taken off the logits of tokens that were generated already",
    "frequency_penalty": "the same, times how often",
    "min_tokens": "fewest tokens of the answer",
    "n": "answers to the prompt (needs a temperature)",
}
SAMPLING_DEFAULTS = {"max_tokens": 256, "temperature": 0.0}


def _scalar_type(annotation: Any) -> Any:
    """The type that a flag's text is turned into: the first plain one of a union."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        plain = [a for a in typing.get_args(annotation) if a is not type(None)]
        # Where text is possible too (memory sizes), the dataclass checks it.
        return str if str in plain else _scalar_type(plain[0])
    return annotation if annotation in (int, float, bool, str) else str


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for every option of EngineArgs."""
    add_flags(parser, EngineArgs, "engine")


def add_flags(parser: argparse.ArgumentParser, options: type[Any], title: str) -> None:
    """A flag for every field that `option()` made, with its help; a list's flag may repeat."""
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(options)
    for f in dataclasses.fields(options):
        if not f.metadata["flag"]:
            continue
        default = None if f.default is dataclasses.MISSING else f.default
        shown = (
            "" if default in (None, "", False, True) or "default:" in f.metadata["help"] else f" (default: {default})"
        )
        common: dict[str, Any] = {"dest": f.name, "help": f.metadata["help"] + shown, "default": argparse.SUPPRESS}
        flag, kind = "--" + f.name.replace("_", "-"), _scalar_type(hints[f.name])
        if typing.get_origin(hints[f.name]) is list:
            group.add_argument(flag, action="append", metavar=f.name.upper(), **common)
        elif kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        else:
            group.add_argument(
                flag,
                type=kind,
                choices=f.metadata["choices"] or None,
                metavar=None if f.metadata["choices"] else f.name.upper(),
                **common,
            )


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Flags for the sampling values that people set by hand."""
    group = parser.add_argument_group("sampling")
    hints = typing.get_type_hints(SamplingParams)
    for name, text in SAMPLING_HELP.items():
        flag = "--" + name.replace("_", "-")
        group.add_argument(
            flag, type=_scalar_type(hints[name]), default=argparse.SUPPRESS, help=text, metavar=name.upper()
        )
    group.add_argument(
        "--stop", action="append", default=argparse.SUPPRESS, help="text that ends the answer (may repeat)"
    )


def engine_args_of(namespace: argparse.Namespace) -> EngineArgs:
    """EngineArgs of the flags that were given."""
    names = {f.name for f in dataclasses.fields(EngineArgs)}
    return EngineArgs(**{k: v for k, v in vars(namespace).items() if k in names})


def check_sampling_flags(namespace: argparse.Namespace) -> None:
    """Raises InvalidRequestError for a wrong flag, before the model is loaded, whose temperature is not yet known."""
    sampling_params_of(namespace, {"temperature": 1.0})


def sampling_params_of(
    namespace: argparse.Namespace, generation_config: Mapping[str, Any] | None = None
) -> SamplingParams:
    """SamplingParams of the flags that were given, then of what the model's files recommend."""
    return SamplingParams(**sampling_values_of(namespace, generation_config))


def sampling_values_of(
    namespace: argparse.Namespace, generation_config: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What `sampling_params_of` makes them of: greedy SamplingParams forget what they do not need."""
    given = {k: v for k, v in vars(namespace).items() if k in SAMPLING_HELP or k == "stop"}
    return {**SAMPLING_DEFAULTS, **recommended_sampling(generation_config or {}), **given}
