"""Two profilers: one measures this machine and model, the other reads what is known of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen
from attrs.validators import ge, gt, le, optional

from lohan_core.errors import ConfigError
from lohan_core.interfaces.profiler import Profiler, ProfilerBackend, Subject
from lohan_core.units import Bytes

if TYPE_CHECKING:
    from lohan_core.profile import Profile
    from lohan_core.states import StateVector

__all__ = ["FILE", "MEASURED", "FileProfilerConfig", "MeasuredProfilerConfig"]


@frozen(kw_only=True)
class FileProfilerConfig:
    """Where the facts are: in a profile, or in a hardware file, from which the model's part is derived by its config.

    Attributes:
        path: A profile (`.json`, as `lohan profile -o` writes it) or a hardware file (`.yaml`).
        hardware: A machine that comes with LoHan, instead of `path`: `rtx-4090`, `gaming-pc-1-drive`, …
        drives: Number of drives, other than the hardware file says.
        host: Main memory, other than the hardware file says.
    """

    path: Path | None = None
    hardware: str | None = None
    drives: int | None = field(default=None, validator=optional(ge(1)))
    host: Bytes | None = field(default=None, validator=optional(gt(Bytes(0))))

    def __attrs_post_init__(self) -> None:
        if (self.path is None) == (self.hardware is None):
            raise ValueError("'path' or 'hardware' must be given, and not both")
        measured = self.path is not None and self.path.suffix == ".json"
        if measured and (self.drives is not None or self.host is not None):
            raise ValueError("'path' must be a hardware file where drives or host are given, not a profile")


@frozen(kw_only=True)
class MeasuredProfilerConfig:
    """How long to measure.

    Attributes:
        seconds: Time for each of the machine's rates; more is steadier.
        cache: Whether what was measured is kept, and used again for the same machine, model and batch, in
            `$XDG_CACHE_HOME/lohan/profiles` (`~/.cache` where that is not set). What is free on each tier is looked up
            every time.
    """

    seconds: float = field(default=0.2, validator=[gt(0.0), le(10.0)])
    cache: bool = True


class ProfileFile(Profiler):
    """Reads a profile, and checks that it is one of the model at hand."""

    def __init__(self, path: Path) -> None:
        """Read it. Raises ConfigError if it is missing or malformed."""
        from lohan_core.profile import Profile

        self._path = path
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"profiler.path: {path}: {error.strerror}; write one with lohan profile -o") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"profiler.path: {path}: not UTF-8 text; write one with lohan profile -o") from error
        self._profile = Profile.from_json(text, source=str(path))

    def profile(self, subject: Subject) -> Profile:
        """Return the profile. Raises ConfigError if it is one of another model, dtype or batch."""
        measured = [(block.name, block.elements) for block in self._profile.blocks]
        present = [(block.name, block.elements) for block in subject.model.blocks]
        if measured != present:
            raise ConfigError(f"profiler.path: {self._path} is the profile of another model: its blocks differ")
        _require_same_step(self._profile, subject, self._path)
        return _without_missing_updates(self._profile, subject)


class HardwareFile(Profiler):
    """Derives a profile from a machine's published rates and the model at hand."""

    def __init__(self, config: FileProfilerConfig) -> None:
        """Read the rates. Raises ConfigError if the file is missing or malformed, or no machine has the name given."""
        from lohan_core.hardware import find_hardware, load_hardware, with_overrides

        with _of_key("profiler.path: " if config.path else "profiler.hardware: "):
            hardware = load_hardware(config.path) if config.path else find_hardware(config.hardware or "")
        with _of_key("profiler."):
            self._hardware = with_overrides(hardware, drives=config.drives, host=config.host)

    def profile(self, subject: Subject) -> Profile:
        """Derive it."""
        from lohan_core.engine.derive import derive_profile
        from lohan_core.engine.states import StateFormat

        rows, length = subject.batch.micro_batches[0]["input_ids"].shape
        return derive_profile(
            subject.model.model.config,
            self._hardware,
            micro_batch_size=rows,
            sequence_length=length,
            dtype=subject.model.dtype,
            states=StateFormat(subject.optimizer, subject.model.dtype).states,
            gpu_updates=subject.optimizer.on_device(subject.model.device) is not None,
            attention=subject.model.attention,
            loss=subject.model.loss,
            compiles=subject.model.compiled is not None,
            trust_remote_code=True,  # if the model has any, it was run to make the subject
        )


@contextmanager
def _of_key(key: str) -> Iterator[None]:
    """Say of every mistake in which key it is."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError("\n".join(key + line for line in str(error).splitlines())) from None


def _open_file(config: FileProfilerConfig) -> Profiler:
    if config.path is not None and config.path.suffix == ".json":
        return ProfileFile(config.path)
    return HardwareFile(config)


def _without_missing_updates(profile: Profile, subject: Subject) -> Profile:
    """Leave no states on the GPU to a plan if the optimizer at hand cannot update them there, as another may have."""
    machine = profile.machine
    if machine.gpu_parameters_per_second is None or subject.optimizer.on_device(subject.model.device) is not None:
        return profile
    return evolve(profile, machine=evolve(machine, gpu_parameters_per_second=None))


def _require_same_step(profile: Profile, subject: Subject, path: Path) -> None:
    """Refuse what was found for other weights, states or batches: plans and buffers are sized by it.

    Raises:
        ConfigError: names what differs, and the key that decides about it.
    """
    from lohan_core.engine.states import StateFormat

    form = StateFormat(subject.optimizer, subject.model.dtype)
    rows, length = subject.batch.micro_batches[0]["input_ids"].shape
    # Rows that are all shorter than the config allows are padded to the longest only: so the remedy says how long.
    for key, what, there, here, remedy in (
        ("run.dtype", "bytes per weight", profile.weight_bytes, form.weights.value_bytes, ""),
        ("optimizer.backend", "states", _in_words(profile.states), _in_words(form.states), ""),
        ("run.micro_batch_size", "rows", profile.micro_batch_size, rows, f" --set run.micro_batch_size={rows}"),
        ("data.sequence_length", "tokens", profile.sequence_length, length, f" --set data.sequence_length={length}"),
    ):
        if there != here:
            raise ConfigError(
                f"profiler.path: {path} is the profile of another {key}: {what}: {there} there, {here} here; write one "
                f"of this run with lohan profile -o{remedy}"
            )


def _in_words(states: Sequence[StateVector]) -> str:
    return ", ".join(f"{state.name} ({state.value_bytes} bytes for {state.elements_per_value})" for state in states)


class MeasuredProfiler(Profiler):
    """Measures: one look at each kind of block, and each lane on its own."""

    def __init__(self, config: MeasuredProfilerConfig) -> None:
        self._config = config

    def profile(self, subject: Subject) -> Profile:
        """Measure this machine and this model, unless that was done before."""
        from lohan_core.engine.measure import measure, with_free_memory
        from lohan_core.engine.profile_cache import ProfileCache

        if not self._config.cache:
            return measure(subject, seconds=self._config.seconds)
        cache = ProfileCache.of_user()
        key = cache.key(subject, seconds=self._config.seconds)
        known = cache.get(key)
        if known is not None:
            return _without_missing_updates(with_free_memory(known, subject), subject)
        profile = measure(subject, seconds=self._config.seconds)
        cache.put(key, profile)
        return profile


FILE: ProfilerBackend = ProfilerBackend(
    name="file",
    summary="reads a profile measured elsewhere, or derives one from a machine's published rates",
    config=FileProfilerConfig,
    open=_open_file,
)

MEASURED: ProfilerBackend = ProfilerBackend(
    name="measured",
    summary="measures this machine and this model",
    config=MeasuredProfilerConfig,
    open=MeasuredProfiler,
)
