"""Command-line flags, made from the dataclasses that the Python interface takes."""

import argparse
import dataclasses
import math
import re
import types
import typing
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from octavo.cli.vllm_flags import add_vllm_flags, say_vllm_flags
from octavo.config import EngineArgs
from octavo.errors import InvalidRequestError, shorten
from octavo.lora import LoRARequest, refer
from octavo.params import SamplingParams, recommended_sampling

SAMPLING_FLAGS = {f.name: f for f in dataclasses.fields(SamplingParams) if f.metadata.get("flag")}
ANY_RANK = 1 << 20
MAX_TOKENS, TEMPERATURE = 256, 0.0
"""Of answers on the terminal; the model's own temperature goes before this one."""


def flag_type(annotation: Any) -> Any:
    """The type that a flag's text is turned into: the plain one of an annotation, list for flags that may repeat."""
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    if any(typing.get_origin(kind) is list for kind in kinds):
        return list
    # Where text is possible too (memory sizes), the dataclass checks it.
    return str if str in kinds else next((kind for kind in kinds if kind in (int, float, bool)), str)


def add_engine_flags(parser: argparse.ArgumentParser, without: Container[str] = ()) -> None:
    """A flag for every option of EngineArgs but those in `without`, which mean something else to the command."""
    add_flags(parser, EngineArgs, "engine", without=without)
    add_vllm_flags(parser)
    if "--config" not in parser._option_string_actions:
        parser.add_argument("--config", metavar="FILE", help="read flags from a YAML file; those given here go first")


def add_flags(
    parser: argparse.ArgumentParser,
    options: type[Any],
    title: str,
    defaults: Mapping[str, object] | None = None,
    without: Container[str] = (),
) -> None:
    """A flag for every field that is to have one, with its help; a list's flag may repeat.

    Args:
        defaults: what the help says of them; those of the fields if None.
        without: fields that have none here.
    """
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(options)
    for f in dataclasses.fields(options):
        if not f.metadata.get("flag") or f.name in without:
            continue
        default = (
            (None if f.default is dataclasses.MISSING else f.default) if defaults is None else defaults.get(f.name)
        )
        text, kind = f.metadata["help"], flag_type(hints[f.name])
        if kind is list and "repeat" not in text:
            text += " (may repeat)"
        if default not in (None, "", False, True) and "default:" not in text:
            text += f" (default: {default})"
        common: dict[str, Any] = {"dest": f.name, "help": text, "default": argparse.SUPPRESS}
        flags = [name for name in flags_of_field(f) if name not in parser._option_string_actions]
        if kind is list:
            several: dict[str, Any] = (
                {"action": "extend", "nargs": "+"} if f.metadata.get("several") else {"action": "append"}
            )
            group.add_argument(*flags, metavar=f.name.upper(), **several, **common)
        elif kind is bool:
            group.add_argument(*flags, action=argparse.BooleanOptionalAction, **common)
        else:
            # The dataclass checks choices: it knows other spellings of them.
            shown = "{" + ",".join(f.metadata["choices"]) + "}" if f.metadata["choices"] else f.name.upper()
            kind = length if f.name == "max_model_len" else whole if kind is int else kind
            group.add_argument(*flags, type=kind, metavar=shown, **common)


def flags_of_field(f: "dataclasses.Field[Any]") -> list[str]:
    """All spellings of a field's flag, the usual one first."""
    names = [f.name, *f.metadata.get("also", ())]
    short = f.metadata.get("short")
    return [*dict.fromkeys("--" + name.replace("_", "-") for name in names), *([short] if short else [])]


UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def whole(text: str) -> int:
    """A whole number as people write it: 4096, 4k (4000), 4K (4096), 1.5k."""
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?)([kKmMgGtT]?)", text.strip())
    value = float(found[1]) * UNITS[found[2]] if found else math.nan
    if found is None or not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a whole number, such as 4096, 4K or 4k.")
    return int(found[1]) if not found[2] else int(value)


def length(text: str) -> int:
    """A number of tokens, or `auto`, which is as -1."""
    return -1 if text.strip().lower() == "auto" else whole(text)


def add_sampling_flags(
    parser: argparse.ArgumentParser, defaults: Mapping[str, object] | None = None, without: Container[str] = ()
) -> None:
    """Flags for the sampling options that people set by hand; `defaults` of a command's own, for the help."""
    defaults = {"max_tokens": MAX_TOKENS, "temperature": f"the model's own, or {TEMPERATURE:g}", **(defaults or {})}
    add_flags(parser, SamplingParams, "sampling", defaults, without)


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """`MODEL`, which `take_model` makes the model that --model would say."""
    parser.add_argument("served", nargs="?", metavar="MODEL", help="the model, as --model takes it")


def take_model(namespace: argparse.Namespace, given: str | None, dest: str = "model") -> None:
    """Make the model that is `given` as an argument the one that --model says, under `dest`; None for none.

    Raises InvalidRequestError where the command line says another with --model. One that --config's file has gives way.
    """
    said = getattr(namespace, dest, None)
    if given is None:
        return
    if said not in (None, given) and dest not in getattr(namespace, "of_file", ()):
        raise InvalidRequestError(
            f"the model is given twice, as {shorten(repr(given))} and as --model {shorten(said)}. Leave one out."
        )
    setattr(namespace, dest, given)


def engine_args_of(namespace: argparse.Namespace) -> EngineArgs:
    """EngineArgs of the flags that were given. With `--lora` they serve its adapters, of any rank."""
    say_vllm_flags(namespace)
    names = {f.name for f in dataclasses.fields(EngineArgs)}
    given = {k: v for k, v in vars(namespace).items() if k in names}
    if adapters := adapters_of(namespace):
        room = max(len(adapters), given.get("max_loras", 1))
        given = {"enable_lora": True, "max_lora_rank": ANY_RANK, "max_cpu_loras": room, **given}
    return EngineArgs(**given)


def engine_flags_of(namespace: argparse.Namespace) -> list[str]:
    """The flags that were given, for another command."""
    flags: list[str] = []
    for f in dataclasses.fields(EngineArgs):
        value, flag = getattr(namespace, f.name, None), flags_of_field(f)[0]
        if isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        elif value is not None:
            flags += [f"{flag}={one}" for one in (value if isinstance(value, list) else [value])]
    return flags


def add_lora_flag(parser: argparse.ArgumentParser, what: str, several: bool = False) -> None:
    """`--lora`: `what` the model does with an adapter."""
    text = f"{what} with this adapter: a folder, a GGUF file or a hub's name, NAME=PATH to call it so"
    parser.add_argument(
        "--lora",
        action="append" if several else "store",
        metavar="PATH",
        help=text + (" (may repeat)" if several else ""),
    )


def adapters_of(namespace: argparse.Namespace) -> list[LoRARequest]:
    """The adapters of `--lora`. Raises InvalidRequestError for one that is not there, and for a name that two have."""
    given = getattr(namespace, "lora", None) or []
    adapters = list[LoRARequest]()
    for i, text in enumerate([given] if isinstance(given, str) else given):
        name, is_named, path = text.partition("=")
        if not is_named or Path(text).exists():
            name, path = Path(text.partition("@")[0]).name, text
        if any(name == adapter.lora_name for adapter in adapters):
            raise InvalidRequestError(f"two adapters are called {name!r}. Give each a name: --lora NAME=PATH.")
        adapters.append(LoRARequest(name, i + 1, path))
        refer(adapters[-1])
    return adapters


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
    given = {k: v for k, v in vars(namespace).items() if k in SAMPLING_FLAGS}
    return {
        "temperature": TEMPERATURE,
        **recommended_sampling(generation_config or {}),
        "max_tokens": MAX_TOKENS,
        **given,
    }
