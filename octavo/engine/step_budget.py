"""How many tokens a step may have where it may take only so long, by what earlier steps took."""

FIRST = 16
"""Tokens before anything is known, and the least that prompts have in a step, however slow the machine is."""
AIM = 0.9
"""The share of the time that is aimed at, since steps of equal size take not quite equally long."""
GROWTH = 2.0
"""Most times the tokens of the last step that the next may have."""


class StepBudget:
    """Sets the tokens of steps in which prompts and running answers meet. It has no clock: it is told what steps took.

    A step takes a time of its own and more for each token. So a step of `n` tokens that took `s` seconds says of
    another that may take `limit`: at least `n * limit / s` tokens fit where `s` was less, and at most as many where it
    was more. Both lead to the number that fits, from below without ever being above it.

    Args:
        max_seconds: what a step may take.
        max_tokens: most tokens of a step, however long it takes.
    """

    def __init__(self, max_seconds: float, max_tokens: int) -> None:
        self.max_seconds, self.max_tokens = max_seconds, max_tokens
        self._tokens = float(min(FIRST, max_tokens))

    def took(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens has taken so long."""
        if tokens < 1 or not seconds > 0:
            return
        fitting = tokens * AIM * self.max_seconds / seconds
        if seconds > self.max_seconds:
            self._tokens = max(1.0, min(self._tokens, fitting))
        elif fitting > self._tokens:
            # Half of the way, in ratios: a step that was quick by chance says little.
            grown = self._tokens * min(GROWTH, (fitting / self._tokens) ** 0.5)
            self._tokens = min(grown, float(self.max_tokens))

    def tokens(self, num_decoding: int) -> int:
        """Most tokens of the next step, in which so many answers get their next token.

        These are never held back. Where none runs, nobody waits for the step's end.
        """
        if not num_decoding:
            return self.max_tokens
        return min(self.max_tokens, max(int(self._tokens), num_decoding + FIRST))
