"""The run's metrics: one JSON object per line, and TensorBoard events where asked."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lohan_core.durable_files import replace_durably
from lohan_core.errors import ConfigError, StorageError

__all__ = ["METRICS", "Metrics", "read_metrics", "require_tensorboard"]

METRICS = "metrics.jsonl"
"""Name of the file in the run directory."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a metrics file; a last line that a crash cut short is left out."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


class Metrics:
    """Appends to the metrics file.

    A run that resumes drops what was written after the step it resumes from, and adds that step's line if a crash came
    between the step's becoming durable and the line's being written.
    """

    def __init__(self, path: Path, *, step: int, last: Mapping[str, Any] | None, tensorboard: Path | None) -> None:
        """Open the file for a run whose last durable step is ``step``, with ``last`` its line."""
        entries = [entry for entry in read_metrics(path) if entry["step"] <= step]
        steps = [entry["step"] for entry in entries if "loss" in entry]
        missing = last if last is not None and (not steps or steps[-1] < step) else None
        if missing is not None:
            entries.append(dict(missing))
        self.evaluated = {entry["step"] for entry in entries if "eval_loss" in entry}
        replace_durably(path, b"".join(_line(entry) for entry in entries))
        self._path = path
        # Without a buffer: one that could not be written would be tried again by close.
        self._file = path.open("ab", buffering=0)
        self._events = _open_events(tensorboard, purge_step=step + 1) if tensorboard else None
        if missing is not None:
            self._add_events(missing)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append one object; its ``step`` orders it. Raises StorageError."""
        rest = _line(entry)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            code = error.errno or errno.EIO
            raise StorageError(
                code, f"{self._path}: cannot be written: {os.strerror(code)}", str(self._path)
            ) from error
        if "eval_loss" in entry:
            self.evaluated.add(entry["step"])
        self._add_events(entry)

    def close(self) -> None:
        """Close the files. A second call does nothing."""
        self._file.close()
        if self._events is not None:
            self._events.close()

    def _add_events(self, entry: Mapping[str, Any]) -> None:
        if self._events is not None:
            for name, value in entry.items():
                if name != "step":
                    self._events.add_scalar(name, value, entry["step"])
            self._events.flush()


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(entry)).encode() + b"\n"


def require_tensorboard() -> None:
    """Raise ConfigError if ``tensorboard`` is not installed: a run asks before it begins, not when it writes."""
    try:
        import torch.utils.tensorboard  # noqa: F401 - whether it can be
    except ImportError as error:
        raise ConfigError("run.tensorboard: tensorboard is not installed; pip install 'lohan[tensorboard]'") from error


def _open_events(folder: Path, purge_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step)
