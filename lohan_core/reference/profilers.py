"""Two profilers: one measures this machine and model, the other reads what was measured elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import gt

from lohan_core.errors import ConfigError
from lohan_core.interfaces.profiler import Profiler, ProfilerBackend

if TYPE_CHECKING:
    from lohan_core.profile import Profile, Subject

__all__ = ["FILE", "MEASURED", "FileProfilerConfig", "MeasuredProfilerConfig"]


@frozen(kw_only=True)
class FileProfilerConfig:
    """Where the profile is.

    Attributes:
        path: JSON file as `Profile.to_json` writes it.
    """

    path: Path


@frozen(kw_only=True)
class MeasuredProfilerConfig:
    """How long to measure.

    Attributes:
        seconds: Time for each of the machine's rates; more is steadier.
    """

    seconds: float = field(default=0.2, validator=gt(0.0))


class FileProfiler(Profiler):
    """Reads a profile and checks that it is one of the model at hand."""

    def __init__(self, config: FileProfilerConfig) -> None:
        self._path = config.path

    def profile(self, subject: Subject) -> Profile:
        """Read the file. Raises ConfigError if it is missing, malformed, or of another model."""
        from lohan_core.profile import Profile

        try:
            text = self._path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"profiler.path: {self._path}: {error.strerror}; write one with Profile.to_json"
            ) from error
        profile = Profile.from_json(text, source=str(self._path))
        measured = [(block.name, block.elements) for block in profile.blocks]
        present = [(block.name, block.elements) for block in subject.model.blocks]
        if measured != present:
            raise ConfigError(f"profiler.path: {self._path} is the profile of another model: its blocks differ")
        return profile


class MeasuredProfiler(Profiler):
    """Measures: one look at each kind of block, and each lane on its own."""

    def __init__(self, config: MeasuredProfilerConfig) -> None:
        self._config = config

    def profile(self, subject: Subject) -> Profile:
        """Measure this machine and this model."""
        from lohan_core.engine.measure import measure

        return measure(subject, seconds=self._config.seconds)


FILE: ProfilerBackend = ProfilerBackend(
    name="file",
    summary="reads a profile that was measured elsewhere",
    config=FileProfilerConfig,
    open=FileProfiler,
)

MEASURED: ProfilerBackend = ProfilerBackend(
    name="measured",
    summary="measures this machine and this model",
    config=MeasuredProfilerConfig,
    open=MeasuredProfiler,
)
