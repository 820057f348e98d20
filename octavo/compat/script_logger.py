"""`vllm.logger`: loggers with methods that say a message once."""

import logging
from typing import Any

_said: set[tuple[str, int, str]] = set()


class _OnceLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger, with debug_once, info_once and warning_once."""

    def _once(self, level: int, message: object, *args: Any, **_: Any) -> None:
        key = (self.logger.name, level, str(message) % args if args else str(message))
        if key not in _said:
            _said.add(key)
            self.log(level, message, *args)

    def debug_once(self, message: object, *args: Any, **options: Any) -> None:
        self._once(logging.DEBUG, message, *args, **options)

    def info_once(self, message: object, *args: Any, **options: Any) -> None:
        self._once(logging.INFO, message, *args, **options)

    def warning_once(self, message: object, *args: Any, **options: Any) -> None:
        self._once(logging.WARNING, message, *args, **options)


def init_logger(name: str) -> _OnceLogger:
    """The logger of that name."""
    return _OnceLogger(logging.getLogger(name), {})
