"""Options of what the server logs, and how."""

import json
import logging
import logging.config
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.config import option
from octavo.errors import CheckpointError, ConfigError, did_you_mean
from octavo.files import read_json
from octavo.logs import log_to_stderr
from octavo.server.tracing import check_endpoint

LEVELS = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG", "NOTSET")
UVICORN_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")
SETTINGS = ("log_level", "formatter", "configure_logging", "pylogging_config_file")
"""Keys of `logging_config`."""


class _JSONFormatter(logging.Formatter):
    """A line of JSON for each record."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name}
        line["message"] = record.getMessage()
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


@dataclass
class LogOptions:
    """What is logged."""

    log_prompts: bool = option(False, "write prompts into the log")
    enable_log_requests: bool = option(False, "write what requests ask for, beside their prompts, into the log")
    enable_log_outputs: bool = option(False, "write answers into the log; needs --enable-log-requests")
    max_log_len: int | None = option(
        None, "most characters, or tokens, of a prompt or an answer in the log (default: all)"
    )
    disable_log_stats: bool = option(False, "leave out the line of numbers that is logged every ten seconds of work")
    disable_uvicorn_access_log: bool = option(False, "leave out the line for each HTTP request")
    disable_access_log_for_endpoints: str | None = option(
        None,
        "paths whose requests get no such line, with commas between; /health, /ping and /metrics get none",
    )
    otlp_traces_endpoint: str | None = option(
        None,
        "OpenTelemetry collector that gets a span of each request: http://HOST:4318/v1/traces, or grpc://HOST:4317; "
        "needs opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http or -grpc",
    )
    uvicorn_log_level: str = option("warning", "least important messages of the HTTP server", choices=UVICORN_LEVELS)
    log_level: str | None = option(
        None, "least important messages of Octavo (default: INFO, or as VLLM_LOGGING_LEVEL says)", choices=LEVELS
    )
    log_config_file: str | None = option(
        None, "JSON file for Python's logging.config.dictConfig (default: as VLLM_LOGGING_CONFIG_PATH says)"
    )
    logging_config: dict[str, Any] = option(
        {}, """the same as JSON: '{"log_level": "DEBUG", "formatter": "json", "pylogging_config_file": FILE}'"""
    )

    def check_logs(self) -> None:
        """Raises ConfigError for values that cannot be."""
        if unknown := self.logging_config.keys() - set(SETTINGS):
            name = sorted(unknown)[0]
            raise ConfigError(f"logging_config has no {name!r}.{did_you_mean(name, SETTINGS)}")
        if self.log_level is None:
            self.log_level = self.logging_config.get("log_level") or os.environ.get("VLLM_LOGGING_LEVEL") or "INFO"
        self.log_level, self.uvicorn_log_level = str(self.log_level).upper(), str(self.uvicorn_log_level).lower()
        if (formatter := self.logging_config.get("formatter", "text")) not in ("text", "json"):
            raise ConfigError(f"logging_config: formatter={formatter!r:.60} is unknown; choose text or json.")
        if self.max_log_len is not None and self.max_log_len < 0:
            raise ConfigError(f"max_log_len={self.max_log_len} must be 0 or more.")
        if self.otlp_traces_endpoint is not None:
            check_endpoint(self.otlp_traces_endpoint)
        if self.enable_log_outputs and not self.enable_log_requests:
            raise ConfigError("enable_log_outputs needs enable_log_requests.")

    @property
    def quiet_paths(self) -> frozenset[str]:
        """Paths whose requests get no line in the log."""
        given = (self.disable_access_log_for_endpoints or "").split(",")
        return frozenset(path.strip() for path in given if path.strip())

    def shortened(self, value: Any) -> Any:
        """A prompt, or an answer, as far as the log has it."""
        return value if value is None or self.max_log_len is None else value[: self.max_log_len]

    def start_logs(self) -> None:
        """Have logs written as the options say. Raises ConfigError for a file that cannot be used."""
        level = getattr(logging, str(self.log_level))
        if self.logging_config.get("configure_logging", True):
            log_to_stderr(level=level)
            log_to_stderr("octavo.requests", "%(message)s", level=level)
            if self.logging_config.get("formatter") == "json":
                logging.getLogger("octavo").handlers[0].setFormatter(_JSONFormatter())
        name = self.log_config_file or self.logging_config.get("pylogging_config_file")
        name = name or os.environ.get("VLLM_LOGGING_CONFIG_PATH")
        if name:
            try:
                logging.config.dictConfig(read_json(Path(name)))
            except (CheckpointError, ValueError, TypeError, AttributeError, ImportError) as error:
                cause = f" ({error.__cause__})" if error.__cause__ else ""
                raise ConfigError(f"log_config_file: {name} cannot be used: {error}{cause}") from error
        if self.disable_uvicorn_access_log:
            logging.getLogger("octavo.requests").setLevel(logging.CRITICAL)
