"""Which tokens would complete a word that may not come."""

from collections import deque
from collections.abc import Collection, Sequence

import torch
from torch import Tensor


class BadWords:
    """Sequences of tokens that may not come, found by an automaton (Aho and Corasick's).

    Making it takes time linear in their total length, a token constant time on average, however many they are. A state
    says how much of which words the answer ends with; 0 is none.

    Args:
        words: token sequences, none empty.
    """

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        self._next: list[dict[int, int]] = [{}]
        ends: list[set[int]] = [set()]
        for word in words:
            state = 0
            for token in word[:-1]:
                if token not in self._next[state]:
                    self._next[state][token] = len(self._next)
                    self._next.append({})
                    ends.append(set())
                state = self._next[state][token]
            ends[state].add(word[-1])
        self._ends = [sorted(tokens) for tokens in ends]
        self._shorter = self._suffixes()
        self._always: Tensor | None = None

    def _suffixes(self) -> list[int]:
        """For each state that of the longest end of its tokens that begins a word too."""
        shorter = [0] * len(self._next)
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            for token, following in self._next[state].items():
                back = shorter[state]
                while back and token not in self._next[back]:
                    back = shorter[back]
                shorter[following] = self._next[back].get(token, 0)
                waiting.append(following)
        return shorter

    def __bool__(self) -> bool:
        return bool(self._ends[0]) or len(self._next) > 1

    def after(self, state: int, token: int) -> int:
        """The state after one more token."""
        while state and token not in self._next[state]:
            state = self._shorter[state]
        return self._next[state].get(token, 0)

    def always(self, device: torch.device) -> Tensor:
        """Tokens that are words by themselves."""
        if self._always is None:
            self._always = torch.tensor(self._ends[0], dtype=torch.long, device=device)
        return self._always

    def check(self, vocab: int) -> None:
        """Raises IndexError for tokens that a vocabulary of so many does not have."""
        for tokens in self._ends:
            check_tokens(tokens, vocab)

    def banned(self, state: int) -> list[int]:
        """Tokens that would complete a longer word in this state."""
        found: list[int] = []
        while state:
            found += self._ends[state]
            state = self._shorter[state]
        return found


def check_tokens(tokens: Collection[int], vocab: int) -> None:
    """Raises IndexError for tokens that a vocabulary of so many does not have."""
    if tokens and not 0 <= min(tokens) <= max(tokens) < vocab:
        wrong = next(token for token in tokens if not 0 <= token < vocab)
        raise IndexError(f"token {wrong} is none of the vocabulary's {vocab}")
