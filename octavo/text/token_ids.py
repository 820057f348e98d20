"""Token ids as users give them, held against what the model has."""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from octavo.errors import InvalidRequestError
from octavo.text.tokenizer import Tokenizer

NO_TOKENS: frozenset[int] = frozenset()


def as_token_ids(ids: Any) -> list[int]:
    """A list of integers. Raises InvalidRequestError for anything else."""
    try:
        return [int(i) for i in ids]
    except (TypeError, ValueError) as error:
        raise InvalidRequestError("prompt_token_ids must be a list of integers.") from error


@dataclass(frozen=True)
class KnownTokens:
    """The token ids that a model knows.

    Args:
        answers: those of answers are below it.
        prompts: those of prompts are below it.
        tokenizer: None where there is none.
    """

    answers: int
    prompts: int
    tokenizer: Tokenizer | None

    def check_prompt(
        self, ids: Iterable[int], name: str, text: str | None = None, placeholders: Container[int] = NO_TOKENS
    ) -> None:
        """Raises InvalidRequestError for an id that the model has no row for.

        Args:
            ids: of the prompt.
            name: of what has them, for the error.
            text: that they are of.
            placeholders: ids whose rows are media's.
        """
        wrong = next((i for i in ids if not 0 <= i < self.prompts and i not in placeholders), None)
        if wrong is None:
            return
        token = None if self.tokenizer is None or text is None else self.tokenizer.token(wrong)
        if token is not None:
            raise InvalidRequestError(
                f"the prompt holds {token!r}, which the tokenizer knows as token {wrong} and the model does not: its "
                f"vocabulary has {self.answers} tokens. Leave it out, or use the tokenizer that the model came with."
            )
        _refuse(wrong, name, self.prompts)

    def check_answer(self, ids: Iterable[int], name: str) -> None:
        """Raises InvalidRequestError for an id that no answer can have, of what is called `name`."""
        wrong = next((i for i in ids if not 0 <= i < self.answers), None)
        if wrong is not None:
            _refuse(wrong, name, self.answers)


def _refuse(wrong: int, name: str, size: int) -> NoReturn:
    raise InvalidRequestError(f"{name} holds {wrong}, outside this model's vocabulary (0 to {size - 1}).")
