"""What stands between two texts: prompts of models that were trained to fill it in (Bavarian et al. 2022)."""

from octavo.errors import InvalidRequestError
from octavo.text.tokenizer import Tokenizer

PREFIX, SUFFIX = "{prefix}", "{suffix}"

FORMS = (
    ("<|fim_prefix|>", PREFIX, "<|fim_suffix|>", SUFFIX, "<|fim_middle|>"),
    ("<fim_prefix>", PREFIX, "<fim_suffix>", SUFFIX, "<fim_middle>"),
    ("<fim-prefix>", PREFIX, "<fim-suffix>", SUFFIX, "<fim-middle>"),
    ("<｜fim▁begin｜>", PREFIX, "<｜fim▁hole｜>", SUFFIX, "<｜fim▁end｜>"),
    ("[SUFFIX]", SUFFIX, "[PREFIX]", PREFIX),
)
"""How families write it, with tokens of their own: Qwen2.5-Coder, CodeGemma and Granite; StarCoder; SantaCoder;
DeepSeek-Coder; Codestral."""


def between(tokenizer: Tokenizer, prefix: str, suffix: str) -> str:
    """The prompt for what stands between two texts. Raises InvalidRequestError where the model has no tokens for it."""
    texts = {PREFIX: prefix, SUFFIX: suffix}
    for form in FORMS:
        if all(part in texts or _is_token(tokenizer, part) for part in form):
            return "".join(texts.get(part, part) for part in form)
    raise InvalidRequestError(
        "suffix is not supported by this model: its tokenizer has no tokens for filling in what stands between two "
        "texts. Leave it out."
    )


def _is_token(tokenizer: Tokenizer, marker: str) -> bool:
    ids = tokenizer.encode(marker, add_special_tokens=False)
    return len(ids) == 1 and tokenizer.token(ids[0]) == marker
