"""Memory sizes as people write them: `4GiB`, `512MB`, `1.5g`, or a number of bytes."""

import re

from octavo.errors import ConfigError

_UNITS = {
    "": 1,
    "b": 1,
    **{u: 1000**i for i, u in enumerate(("kb", "mb", "gb", "tb"), 1)},
    **{u: 1024**i for i, u in enumerate(("kib", "mib", "gib", "tib"), 1)},
    **{u: 1024**i for i, u in enumerate("kmgt", 1)},
}


def parse_size(value: int | str, name: str, zero: bool = False) -> int:
    """Bytes of `value`. Raises ConfigError, naming the argument `name`, for anything that is not a positive size.

    With `zero`, none is a size too.
    """
    text = str(value).strip()
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or (float(match[1]) <= 0 and not zero):
        raise ConfigError(f"{name}={text!r} is not a size. Write bytes or a unit, for example 4GiB, 512MiB or 2GB.")
    return int(float(match[1]) * unit)


def format_size(size: float) -> str:
    """`size` bytes in the largest unit that leaves a number of at least one, for example `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
