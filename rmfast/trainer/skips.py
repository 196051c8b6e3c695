"""Steps that are left out because loss or gradient was not finite: each is told, and only so many may be."""

from rmfast.console import say
from rmfast.errors import RunError
from rmfast.trainer.learner import Line


class Skips:
    """What is asked of each finished step, in order.

    Args:
        most: steps in a row that may be left out; 0: none.
        speaks: whether each that is left out is told on the console.
    """

    def __init__(self, most: int, speaks: bool) -> None:
        self.most, self.speaks = most, speaks
        self._in_a_row = 0

    def check(self, line: Line) -> None:
        """Note a step.

        Raises:
            RunError: it is one too many.
        """
        if line.error is None:
            self._in_a_row = 0
            return
        step = f"step {line.values['step']}"
        self._in_a_row += 1
        if not self.most:
            raise RunError(f"{step}: {line.error}, or set optim.on_nonfinite to skip")
        if self._in_a_row > self.most:
            raise RunError(f"{step}: {self._in_a_row} steps in a row are left out (optim.max_skipped): {line.error}")
        if self.speaks:
            say(f"{step} is left out: {line.error}")
