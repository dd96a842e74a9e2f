"""What a person sees while something takes long: on a terminal a line that moves, in a pipe nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Says what is done now."""

    def say(self, what: str) -> None:
        """Show `what` instead of what was shown before."""


class _OnTerminal(Progress):
    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import Progress as Bar
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._task = self.bar.add_task(what, total=None)

    def say(self, what: str) -> None:
        self.bar.update(self._task, description=what)


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """Show `what` and the time that it takes on stderr, where that is a terminal, until the block is left."""
    if not sys.stderr.isatty():
        yield Progress()
        return
    shown = _OnTerminal(what)
    with shown.bar:
        yield shown
