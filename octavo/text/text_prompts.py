"""Texts that a model is published with, which stand before the ones that it embeds (Su et al. 2023)."""

from collections.abc import Callable

import msgspec

from octavo.errors import InvalidRequestError, did_you_mean


class TextPrompts(msgspec.Struct, frozen=True, kw_only=True):
    """A model's prompts by name."""

    texts: dict[str, str] = {}
    default: str | None = None
    """The name of the one that stands where a request names none."""
    are_pooled: bool = True
    """Whether their tokens are pooled with those of the text."""

    def text(self, name: str | None) -> str:
        """What stands before a text. Raises InvalidRequestError for a name that the model does not have."""
        if name is None:
            return self.texts.get(self.default, "") if self.default is not None else ""
        if name not in self.texts:
            known = f"it has {', '.join(sorted(self.texts))}" if self.texts else "it has none"
            raise InvalidRequestError(
                f"prompt_name={name[:80]!r} is none of this model's prompts: {known}.{did_you_mean(name, self.texts)}"
            )
        return self.texts[name]


NO_PROMPTS = TextPrompts()


def prompt_tokens(encode: Callable[[str, bool], list[int]], text: str) -> int:
    """How many of the first tokens of what begins with `text` are its own, with the special tokens before it.

    Args:
        encode: text, and whether special tokens are added, to token ids.
    """
    bare, whole = encode(text, False), encode(text, True)
    first = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return first + len(bare)
