"""A parser of flags that knows other spellings of them, and says what was meant."""

import argparse
import json
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NoReturn

from octavo.errors import ConfigError, did_you_mean, shorten

OPPOSITES = {"--enable-": "--no-enable-", "--disable-": "--no-disable-"}
"""What undoes a switch: `--disable-x` is `--no-enable-x`."""


MANY = 20
"""Flags that a line about how to use a command does not list."""


def _shown(action: argparse.Action) -> str:
    name = action.metavar if isinstance(action.metavar, str) else action.dest
    if name.startswith("["):
        return name  # which says itself what may be left out
    return {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} [...]"}.get(str(action.nargs), name)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose flags may be written with underscores, and objects by their keys.

    `--max_model_len 9`, `--disable-lora` for `--no-enable-lora`, `--limit-mm-per-prompt.image 2` and
    `--hf-overrides.rope_scaling.factor=4` are taken. An unknown flag or command is answered with the closest.
    """

    _of_file: Collection[str] = ()
    """What --config's file says, and the command line does not."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        given = list(sys.argv[1:] if args is None else args)
        if self._subparsers is not None:
            return super().parse_known_args(given, namespace)
        found, unknown = super().parse_known_args(self.spelled_out(given), namespace)
        rest = next((a for a in self._actions if not a.option_strings and a.nargs in ("*", "+")), None)
        if rest is not None and not any(one.startswith("-") for one in unknown):
            # Arguments behind flags that stand among them.
            setattr(found, rest.dest, [*getattr(found, rest.dest), *unknown])
            unknown = []
        if unknown:
            self.error(self._unknown(unknown))
        if self._of_file:
            found.of_file = self._of_file
        return found, unknown

    def format_help(self) -> str:
        if self.usage is None and len(self._actions) > MANY:
            self.usage = " ".join([self.prog, "[flags]", *(_shown(a) for a in self._actions if not a.option_strings)])
        return super().format_help()

    @property
    def flags(self) -> dict[str, argparse.Action]:
        """All spellings of all flags."""
        return self._option_string_actions

    def _unknown(self, unknown: Iterable[str]) -> str:
        hints = list[str]()
        for one in unknown:
            name = one.partition("=")[0]
            hint = did_you_mean(name, self.flags) if name.startswith("-") else ""
            hints.append(f"{shorten(name)!r} is unknown.{hint}")
        return " ".join(hints)

    def spelled_out(self, arguments: Sequence[str]) -> list[str]:
        """The arguments with flags as they are known here, behind those of `--config`'s file."""
        spelled = self._spelled(arguments)
        if "--config" not in self.flags:
            return spelled
        ends = spelled.index("--") if "--" in spelled else len(spelled)
        files = [i for i, one in enumerate(spelled[:ends]) if one.partition("=")[0] == "--config"]
        if len(files) > 1:
            raise ConfigError("--config may be given once.")
        if not files:
            return spelled
        from octavo.cli.config_file import flags_of, read_config_file

        at = files[0]
        name = spelled[at].partition("=")[2] if "=" in spelled[at] else "".join(spelled[at + 1 : at + 2])
        given = [one.partition("=")[0] for one in spelled[:ends]]
        added = flags_of(read_config_file(name), self.flags, given, name)
        self._of_file = {self.flags[flag].dest for one in added if (flag := one.partition("=")[0]) in self.flags}
        return [*added, *spelled]

    def _spelled(self, arguments: Sequence[str]) -> list[str]:
        spelled, objects, rest = list[str](), dict[str, Any](), iter(arguments)
        for argument in rest:
            if argument == "--":
                spelled += [argument, *rest]
                break
            name, eq, value = argument.partition("=")
            if not argument.startswith("-") or name in self.flags:
                spelled.append(argument)
                continue
            head, dot, path = name.partition(".")
            flag = self._spelling(head)
            if dot and flag in self.flags:
                _put(objects.setdefault(flag, {}), path, value if eq else next(rest, ""), flag)
            else:
                spelled.append(flag + dot + path + eq + value if flag in self.flags else argument)
        return spelled + [f"{flag}={json.dumps(value)}" for flag, value in objects.items()]

    def _spelling(self, name: str) -> str:
        if not name.startswith("--"):
            return name
        name = name.replace("_", "-")
        for start, opposite in OPPOSITES.items():
            other = next(one for one in OPPOSITES if one != start)
            if name not in self.flags and name.startswith(other):
                undone = opposite + name.removeprefix(other)
                if undone in self.flags:
                    return undone
        return name

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), known) or f" There are {', '.join(known)}."
            raise argparse.ArgumentError(action, f"{shorten(repr(value))} is unknown.{hint}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n`{self.prog} --help` says what there is.\n")


def _put(target: dict[str, Any], path: str, text: str, flag: str) -> None:
    """Put a value, JSON or text, at `a.b.c` of an object; with `+` at the end it is added to a list."""
    *above, last = path.removesuffix("+").split(".")
    for key in above:
        inner = target.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{flag}.{path}: {key!r} has a value already, and cannot have keys too.")
        target = inner
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if path.endswith("+"):
        more = value if isinstance(value, list) else [one.strip() for one in text.split(",")]
        target[last] = [*target.get(last, []), *more]
    else:
        target[last] = value
