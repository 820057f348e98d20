"""Options of what requests mean where they say nothing themselves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.config import option
from octavo.errors import CheckpointError, ConfigError, did_you_mean
from octavo.files import open_file
from octavo.text.chat_prompt import CONTENT_FORMATS, RESERVED

TEMPLATE_MAX = 16 << 20
"""Bytes of a chat template's file."""
STRUCTURED = {
    "backend": "llguidance does the grammars",
    "disable_any_whitespace": "between JSON's tokens there is at most a space",
    "disable_additional_properties": "objects take no keys beyond their schema's",
    "disable_fallback": "llguidance does the grammars",
}
"""vLLM's settings of structured outputs that mean nothing here, and why."""


@dataclass
class ChatOptions:
    """What is taken of requests, and added to them."""

    chat_template: str | None = option(None, "a file with a chat template, or its text, instead of the model's")
    chat_template_content_format: str = option(
        "auto",
        "what the chat template takes as a message's content: string, openai (a list of parts), or auto: as it shows",
        choices=CONTENT_FORMATS,
    )
    trust_request_chat_template: bool = option(False, "let requests bring chat templates of their own")
    default_chat_template_kwargs: dict[str, Any] = option(
        {}, """names for the chat template where requests give none, as JSON: '{"enable_thinking": false}'"""
    )
    reasoning_effort_map: dict[str, Any] = option(
        {}, """what the chat template is told for a reasoning_effort, as JSON: '{"medium": "low"}'"""
    )
    response_role: str = option("assistant", "the role of answers in chats")
    return_tokens_as_token_ids: bool = option(False, "spell tokens in log-probabilities token_id:ID")
    enable_force_include_usage: bool = option(False, "tell the tokens used at the end of every stream")
    structured_outputs_config: dict[str, Any] = option(
        {}, """vLLM's settings, as JSON, of which '{"reasoning_parser": NAME}' means the same here"""
    )

    def check_chats(self) -> None:
        """Raises ConfigError for values that cannot be."""
        if reserved := sorted(RESERVED & self.default_chat_template_kwargs.keys()):
            raise ConfigError(f"default_chat_template_kwargs: {reserved[0]!r} is a name of the template's own.")
        if wrong := [one for one in self.reasoning_effort_map.values() if not isinstance(one, str)]:
            raise ConfigError(f"reasoning_effort_map holds {wrong[0]!r:.60}, which is no effort, such as low.")
        known = {*STRUCTURED, "reasoning_parser", "reasoning_parser_plugin", "enable_in_reasoning"}
        for name, value in self.structured_outputs_config.items():
            if name not in known:
                raise ConfigError(f"structured_outputs_config has no {name!r:.60}.{did_you_mean(name, known)}")
            if name == "reasoning_parser_plugin" and value:
                raise ConfigError("structured_outputs_config: there are no plugins of parsers; leave it out.")
            if name == "enable_in_reasoning" and value:
                raise ConfigError("structured_outputs_config: thoughts are free of what an answer must follow.")

    def template_text(self) -> str | None:
        """The chat template's text. Raises ConfigError for a file that cannot be read."""
        given = self.chat_template
        if given is None or "{{" in given or "{%" in given or "\n" in given:
            return given
        try:
            with open_file(Path(given)) as file:
                data = file.read(TEMPLATE_MAX + 1)
            if len(data) > TEMPLATE_MAX:
                raise ConfigError(f"chat_template {given} is larger than {TEMPLATE_MAX >> 20} MiB.")
            return data.decode()
        except (CheckpointError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"chat_template {given!r:.200} is no file that can be read, and no template: {error}"
            ) from error

    def variables(self, given: dict[str, Any] | None) -> dict[str, Any] | None:
        """The names for the chat template of a request that gives these itself."""
        return {**self.default_chat_template_kwargs, **(given or {})} or given

    def effort(self, given: str | None) -> str | None:
        """What the chat template is told of a request's effort."""
        return None if given is None else str(self.reasoning_effort_map.get(given, given))
