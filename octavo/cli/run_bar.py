"""A bar of runs that are measured."""

import sys

from tqdm import tqdm


class RunBar:
    """Moves with each step of a run. The first of them warms up, and shows how many steps each has.

    Args:
        runs: how many there are.
        steps: how many each should have.
    """

    def __init__(self, runs: int, steps: int) -> None:
        self._runs, self._done, self._steps = runs, 0, 0
        self._bar = tqdm(
            total=runs * steps,
            desc="Warming up",
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )

    def step(self) -> None:
        """A step has been made."""
        self._steps += 1
        self._bar.update()

    def end_run(self) -> None:
        """A run has ended."""
        self._done += 1
        self._bar.total = self._steps // self._done * self._runs
        self._bar.set_description(f"Run {min(self._done, self._runs - 1)} of {self._runs - 1}")
        if self._done == self._runs:
            self._bar.close()
