"""Stopping in good order: a signal asks for it, the step in progress is finished and saved."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self

from rich.console import Console

__all__ = ["StopRequest"]


class StopRequest:
    """While entered, Ctrl-C and SIGTERM set ``signal_name`` instead of ending the process.

    A second one ends it at once, as ``kill -9`` would: unwinding could itself wait, and what is durable stays so.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self.signal_name: str | None = None
        self._previous: dict[int, object] = {}

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal_name is not None:
            self._console.show_cursor()  # which a bar hides
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal_name = signal.Signals(number).name
