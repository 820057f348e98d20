"""What may come before an answer that follows a schema: the model's thoughts as its format has them, as a grammar."""

import json
from collections.abc import Mapping
from typing import Any

from octavo.server.harmony import CHANNEL, CONSTRAIN, END, MESSAGE, START
from octavo.server.reasoning import begins_inside, is_off
from octavo.server.reasoning_formats import ReasoningFormat
from octavo.text.tokenizer import Tokenizer

ANY = "/(.|\\n)*/"
SPACE = "/[ \\t\\r\\n]*/"


def _token(marker: str, tokenizer: Tokenizer) -> int | None:
    """The special token that the marker is, if it is one."""
    found = tokenizer.encode(marker, add_special_tokens=False)
    is_special = len(found) == 1 and tokenizer.token(found[0]) == marker and marker not in tokenizer.decode(found)
    return found[0] if is_special else None


def _literal(marker: str, tokenizer: Tokenizer) -> str:
    token = _token(marker, tokenizer)
    return json.dumps(marker) if token is None else f"<[{token}]>"


def _until(name: str, marker: str, tokenizer: Tokenizer) -> str:
    """A rule for any text up to the marker, and the marker."""
    token = _token(marker, tokenizer)
    if token is None:
        return f"{name}[suffix={json.dumps(marker)}]: {ANY}"
    return f"{name}: {name}_text <[{token}]>\n{name}_text: {ANY}"


def reasoning_preamble(
    format: ReasoningFormat, prompt: str, variables: Mapping[str, Any], tokenizer: Tokenizer
) -> str | None:
    """What may come before the answer to this prompt; None where no thought may."""
    if is_off(format, prompt, variables):
        return None
    thought = (
        "thought space" if begins_inside(format, prompt, variables) else f"(({_any(format, tokenizer)}) thought space)?"
    )
    return f"start: {thought} @answer\n{_until('thought', format.closings[0], tokenizer)}\nspace: {SPACE}"


def _any(format: ReasoningFormat, tokenizer: Tokenizer) -> str:
    return " | ".join(_literal(marker, tokenizer) for marker in format.openings)


def harmony_preamble(prompt: str, tokenizer: Tokenizer, tool: str | None = None) -> str | None:
    """The messages before gpt-oss' last one, and its header; None where the prompt has begun a message.

    Args:
        tool: the function that the last message is to; None for one to the user.
    """
    if START in prompt and prompt.rpartition(START)[2].strip() != "assistant":
        return None
    channel, message, start, constrain = (_literal(m, tokenizer) for m in (CHANNEL, MESSAGE, START, CONSTRAIN))
    header = '"final" (" "? ' + f'{constrain} "json")?'
    if tool is not None:
        header = f'{json.dumps(f"commentary to=functions.{tool} ")} {constrain} "json"'
    return (
        f"start: analysis* {channel} {header} {message} @answer\n"
        f'analysis: {channel} "analysis" {message} thought {start} "assistant"\n'
        f"{_until('thought', END, tokenizer)}"
    )
