"""The engine's tokenizer as users get it: one of transformers', which gives the ids that the engine computes with."""

import copy
from typing import Any

from octavo.text.tokenizer import Tokenizer


def users_tokenizer(tokenizer: Tokenizer, name: str, max_length: int) -> Any:
    """A tokenizer of transformers, with its calls, special tokens and chat templates. It is a copy: what is set on it
    changes nothing in the engine.

    Args:
        tokenizer: the engine's.
        name: what it is called (`name_or_path`).
        max_length: the longest prompt, in tokens (`model_max_length`).
    """
    from transformers import PreTrainedTokenizerFast

    inner: Any = getattr(tokenizer, "inner", tokenizer)
    if hasattr(inner, "convert_ids_to_tokens"):  # it is one of transformers' already
        made = copy.deepcopy(inner)
    else:
        known = {k: v for k, v in tokenizer.special_tokens.items() if inner.token_to_id(v) is not None}
        made = PreTrainedTokenizerFast(
            tokenizer_object=copy.deepcopy(inner), clean_up_tokenization_spaces=False, name_or_path=name, **known
        )
        if made.eos_token_id is None and tokenizer.eos_token_id is not None:
            made.eos_token = tokenizer.token(tokenizer.eos_token_id)
    made.name_or_path, made.model_max_length = name, max_length
    if tokenizer.chat_templates:
        templates = dict(tokenizer.chat_templates)
        made.chat_template = templates["default"] if list(templates) == ["default"] else templates
    return made
