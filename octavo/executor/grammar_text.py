"""Grammars as users write them, in llguidance's notation. Called in the process of grammars, within its limits."""

import json
from collections.abc import Mapping
from typing import Any

from octavo.executor.json_schema import closed
from octavo.executor.structural_tag import tag_grammar

WHITESPACE = " "
"""What may stand between JSON's tokens: at most this. Where new lines may come some models write them without end;
SmolLM2 needs 65 tokens for an answer of four fields so, and 73 with new lines and indentation."""


def has_tags(kind: str, text: str) -> bool:
    """Whether a grammar, or the answer behind a preamble, is one of structural tags."""
    return kind == "structural_tag" or (kind == "answer" and json.loads(text)[1] == "structural_tag")


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """The special tokens of an LLTokenizer, by their texts."""
    special = (i for i in range(tokenizer.vocab_size) if tokenizer.is_special_token(i))
    return {tokenizer.decode_str([i]): i for i in special}


def to_llguidance(kind: str, text: str, special: Mapping[str, int] | None = None) -> str:
    """The grammar for LLMatcher. `kind` and `text` are StructuredOutputsParams.as_grammar's.

    Args:
        special: the tokenizer's special tokens by their texts, which structural tags may name.

    Raises ValueError for what is none.
    """
    import llguidance

    if kind == "answer":
        preamble, kind, text = json.loads(text)
        return _behind(preamble, to_llguidance(kind, text, special))
    if kind == "structural_tag":
        return tag_grammar(text, to_llguidance, special or {})
    if kind == "json_schema":
        schema = closed(json.loads(text))
        if not isinstance(schema, (dict, bool)) or schema is False:
            raise ValueError("a schema is a JSON object or true")
        schema = {} if schema is True else schema
        options: Any = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE}
        return str(llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options))
    if kind == "choice":
        return str(llguidance.LLMatcher.grammar_from_regex(choice_regex(json.loads(text))))
    return str(llguidance.grammar_from(kind, text))


def _behind(preamble: str, grammar: str) -> str:
    """A grammar whose answer, `@answer`, is the other one."""
    own = json.loads(grammar)["grammars"] if grammar.lstrip().startswith("{") else [{"lark_grammar": grammar}]
    return json.dumps({"grammars": [{"lark_grammar": preamble}, {**own[0], "name": "answer"}, *own[1:]]})


def choice_regex(texts: list[str]) -> str:
    """An expression of exactly these texts. As one lexeme there may be any number; as rules of a grammar, 2,000."""
    return "(" + "|".join("".join(map(_escaped, t)) for t in dict.fromkeys(texts)) + ")"


def _escaped(character: str) -> str:
    if character.isascii() and not character.isalnum():
        return f"\\x{ord(character):02x}"
    return character
