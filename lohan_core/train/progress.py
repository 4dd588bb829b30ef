"""What a person sees of a run: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["RunProgress"]

SECONDS_BETWEEN_LINES = 10.0


class RunProgress:
    """Shows preparation, steps and evaluations."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last_line = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def show(self, what: str, done: int, total: int, state: str = "") -> None:
        """Show that ``done`` of ``total`` of something is done; when all is, its bar goes."""
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total, state=state)
        self._bar.update(self._tasks[what], completed=done, total=total, state=state)
        if done >= total:
            self._bar.remove_task(self._tasks.pop(what))

    def step(self, step: int, steps: int, state: str) -> None:
        """Show a finished training step."""
        self.show("training", step, steps, state)
        if not self._console.is_terminal:
            now = time.monotonic()
            if now - self._last_line >= SECONDS_BETWEEN_LINES or step == steps:
                self._last_line = now
                self.say(f"step {step}/{steps}  {state}")
