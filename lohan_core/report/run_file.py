"""``timeline.json`` in a run directory: one of the newest steps, as it was predicted and as it was."""

from __future__ import annotations

import time
from pathlib import Path

from lohan_core.errors import DataError, StorageError
from lohan_core.profile import Machine
from lohan_core.schedule.record import StepRecord
from lohan_core.schedule.simulate import simulate
from lohan_core.schedule.timeline import Timeline

__all__ = ["StepRecorder", "read_record"]

FILE = "timeline.json"
SECONDS_BETWEEN_FILES = 10.0
"""Writing takes milliseconds, which is much beside a step of a tiny model, and nothing beside ten seconds."""


class StepRecorder:
    """Keeps a run's file up to date: the first step, then one every ten seconds, and the last."""

    def __init__(self, run_dir: Path, machine: Machine) -> None:
        """Write below ``run_dir``; ``machine`` is what steps are predicted for."""
        self._path = run_dir / FILE
        self._machine = machine
        self._predicted: Timeline | None = None
        self._unwritten: tuple[int, Timeline] | None = None
        self._due = 0.0

    def add(self, step: int, measured: Timeline) -> None:
        """Take a step's timeline. Raises StorageError."""
        self._unwritten = step, measured
        if time.monotonic() >= self._due:
            self.write()
            self._due = time.monotonic() + SECONDS_BETWEEN_FILES

    def write(self) -> None:
        """Write the newest step, if that has not been done. Raises StorageError."""
        if self._unwritten is None:
            return
        step, measured = self._unwritten
        if self._predicted is None or self._predicted.schedule is not measured.schedule:
            self._predicted = simulate(measured.schedule, self._machine)
        text = StepRecord(step=step, predicted=self._predicted, measured=measured).to_json()
        beside = self._path.with_name(self._path.name + ".new")
        try:
            # Whole or not at all for those who read it; nothing is synced, for nothing is lost with it.
            beside.write_text(text, encoding="utf-8")
            beside.replace(self._path)
        except OSError as error:
            raise StorageError(
                error.errno or 0, f"{self._path}: cannot be written: {error.strerror}", str(self._path)
            ) from error
        self._unwritten = None


def read_record(run_dir: Path) -> StepRecord:
    """Read a run's file.

    Raises:
        DataError: there is none, or it is none.
    """
    path = run_dir / FILE
    try:
        return StepRecord.from_json(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give the directory of a run that has finished a step") from error
