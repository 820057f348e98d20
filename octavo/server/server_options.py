"""The server's own options, beside the engine's."""

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import Any

from octavo.config import option
from octavo.errors import ConfigError, names_closest
from octavo.option_types import as_mapping, check_choices, check_types
from octavo.server.chat_options import ChatOptions
from octavo.server.http_options import HTTPOptions, texts_of
from octavo.server.log_options import LogOptions
from octavo.server.reasoning_formats import REASONING_PARSERS
from octavo.server.tool_formats import TOOL_PARSERS
from octavo.sizes import parse_size

METRICS_PREFIXES = ("octavo", "vllm")
BODY, BODY_WITH_MEDIA = 4 << 20, 64 << 20
"""Bytes of the largest request unless an option says otherwise."""
FORM_BYTES = 64 << 10
"""Of what is around the file in a form."""


@dataclass(frozen=True)
class LoRAModule:
    """An adapter that is served from the start."""

    name: str
    path: str
    base_model_name: str | None = None


def lora_modules(given: Any) -> list[LoRAModule]:
    """What one value of `lora_modules` says: NAME=PATH, an object, its JSON, or a JSON list of them.

    Raises ConfigError for anything else.
    """
    if isinstance(given, str) and not given.lstrip().startswith(("{", "[")):
        name, _, path = given.partition("=")
        given = {"name": name.strip(), "path": path.strip()}
    elif isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"lora_modules: {given!r:.200} is not JSON: {error}") from error
    modules = list[LoRAModule]()
    for one in given if isinstance(given, list) else [given]:
        texts = isinstance(one, dict) and all(isinstance(value, str) for value in one.values() if value is not None)
        if not texts or not one.get("name") or not one.get("path"):
            raise ConfigError(
                f'lora_modules: {one!r:.200} names no adapter. Give NAME=PATH, or {{"name": NAME, "path": PATH}}.'
            )
        if unknown := set(one) - {"name", "path", "base_model_name", "is_3d_lora_weight"}:
            raise ConfigError(f"lora_modules: {sorted(unknown)[0]!r:.60} is unknown; an adapter has a name and a path.")
        modules.append(LoRAModule(one["name"], one["path"], one.get("base_model_name")))
    return modules


def _is_set(name: str) -> bool:
    """Whether a switch of the environment is on."""
    return os.environ.get(name, "").strip().lower() in ("1", "true")


@names_closest
@dataclass
class ServerOptions(HTTPOptions, ChatOptions, LogOptions):
    """Every option of `octavo serve` that is not the engine's."""

    served_model_name: list[str] = option(
        [],
        "the model's names for clients; answers say the first (several, or may repeat; default: as --model says)",
        several=True,
    )
    tool_parser: str = option(
        "auto",
        "the format of the model's tool calls (auto: by its chat template)",
        choices=TOOL_PARSERS,
        also=("tool_call_parser",),
    )
    reasoning_parser: str = option(
        "auto", "how the model writes what it thinks (auto: by its chat template)", choices=REASONING_PARSERS
    )
    lora_modules: list[Any] = option(
        [],
        'adapters to serve, each NAME=PATH or {"name": NAME, "path": PATH, "base_model_name": MODEL} (may repeat)',
        several=True,
    )
    allow_runtime_lora_updating: bool | None = option(
        None,
        "load and unload adapters by /v1/load_lora_adapter and /v1/unload_lora_adapter (default: no, or as "
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING says); whoever may call them can have any path of this machine read",
    )
    server_dev_mode: bool | None = option(
        None,
        "vLLM's routes for who develops: /server_info, /abort_requests, /reset_prefix_cache, /sleep, /wake_up, "
        "/is_sleeping (default: no, or as VLLM_SERVER_DEV_MODE says); whoever may call them can stop others' requests",
    )
    enable_tokenizer_info_endpoint: bool = option(
        False, "tell of the tokenizer, with its chat template, at /tokenizer_info"
    )
    max_body_size: int | str | None = option(
        None, "largest request (default: 4MiB, or 64MiB where the model takes pictures, films or sounds)"
    )
    max_queued_media: int | str = option(
        "2GiB", "memory of the media of requests that are running or waiting; more are answered with 429"
    )
    max_queued_requests: int = option(
        4096, "most requests that are running or waiting; more are answered with 429", also=("max_num_queued_reqs",)
    )
    max_queued_sequences: int = option(
        16384, "answers (prompts times n) that may be running or waiting; more are answered with 429"
    )
    max_request_sequences: int = option(1024, "answers (prompts times n) that one request may ask for")
    files_folder: str | None = option(
        None, "a folder for /v1/files and /v1/batches, which only this server uses (default: without them)"
    )
    files_size: int | str = option("10GiB", "what the files in --files-folder may take together")
    max_file_size: int | str = option("200MiB", "largest file that /v1/files takes")
    response_store_size: int | str = option(
        "256MiB", "memory of the responses that /v1/responses keeps for later requests; 0 keeps none"
    )
    request_timeout: float = option(3600.0, "seconds after which a request is ended")
    shutdown_timeout: float = option(30.0, "seconds that running requests have to finish when the server is stopped")
    metrics_prefix: str = option(
        "octavo",
        "vllm: /metrics tells all of it under vLLM's own names too, as dashboards ask",
        choices=METRICS_PREFIXES,
    )
    page: bool = option(True, "serve the chat page at / and the statistics at /stats")

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            if f.type == list[str]:
                setattr(self, f.name, texts_of(getattr(self, f.name), f.name))
            elif f.type == dict[str, Any]:
                setattr(self, f.name, as_mapping(getattr(self, f.name), f.name))
        check_types(self, ConfigError)
        root = self.root_path.strip("/")
        self.root_path = f"/{root}" if root else ""
        self.check_http()
        self.check_chats()
        self.check_logs()
        thinks = self.structured_outputs_config.get("reasoning_parser")
        if thinks and self.reasoning_parser == "auto":
            self.reasoning_parser = thinks
        check_choices(self)
        if self.max_body_size is not None:
            self.max_body_size = parse_size(self.max_body_size, "max_body_size")
        self.max_queued_media = parse_size(self.max_queued_media, "max_queued_media")
        self.files_size = parse_size(self.files_size, "files_size")
        self.max_file_size = parse_size(self.max_file_size, "max_file_size")
        self.response_store_size = parse_size(self.response_store_size, "response_store_size", zero=True)
        if self.allow_runtime_lora_updating is None:
            self.allow_runtime_lora_updating = _is_set("VLLM_ALLOW_RUNTIME_LORA_UPDATING")
        if self.server_dev_mode is None:
            self.server_dev_mode = _is_set("VLLM_SERVER_DEV_MODE")
        self.lora_adapters = [adapter for given in self.lora_modules for adapter in lora_modules(given)]
        names = [adapter.name for adapter in self.lora_adapters]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(f"lora_modules has two adapters of the name {repeated!r}. Give each its own.")
        for name in (
            "max_queued_requests",
            "max_queued_sequences",
            "max_request_sequences",
            "request_timeout",
            "shutdown_timeout",
        ):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be above 0.")

    def body_bytes(self, has_media: bool = False) -> int:
        """The largest request in bytes, to a model that takes media or to one of text alone."""
        if self.max_body_size is not None:
            return int(self.max_body_size)
        return BODY_WITH_MEDIA if has_media else BODY

    @property
    def queued_media_bytes(self) -> int:
        """`max_queued_media` in bytes."""
        return int(self.max_queued_media)

    @property
    def response_store_bytes(self) -> int:
        """`response_store_size` in bytes."""
        return int(self.response_store_size)

    @property
    def files_bytes(self) -> int:
        """`files_size` in bytes."""
        return int(self.files_size)

    def upload_bytes(self) -> int | None:
        """The largest upload in bytes, the form around its file included; None where there are no files."""
        return None if self.files_folder is None else int(self.max_file_size) + FORM_BYTES
