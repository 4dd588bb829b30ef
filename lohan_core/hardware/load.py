"""Finding and reading hardware files, shipped ones by name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from attrs import evolve

from lohan_core.config.document import read_document
from lohan_core.config.structure import Problems, structure
from lohan_core.errors import ConfigError
from lohan_core.hardware.sections import Hardware
from lohan_core.suggest import choose_one_of
from lohan_core.units import Bytes, format_bytes

__all__ = ["find_hardware", "load_hardware", "shipped_names", "with_overrides"]

_SUFFIX = ".yaml"


def _shipped_directory() -> Path:
    return Path(str(files("lohan_core.hardware"))) / "files"


def shipped_names() -> tuple[str, ...]:
    """Names of the machines that come with LoHan."""
    return tuple(sorted(path.stem for path in _shipped_directory().glob(f"*{_SUFFIX}")))


def find_hardware(name_or_path: str) -> Hardware:
    """Read a shipped machine by name, or a file by path: what has a suffix or a slash is a path.

    Raises:
        ConfigError: there is no such machine or file, or the file is not a hardware file.
    """
    if Path(name_or_path).suffix or "/" in name_or_path:
        return load_hardware(Path(name_or_path).expanduser())
    if name_or_path not in shipped_names():
        raise ConfigError(
            f"no machine is called {name_or_path!r}. {choose_one_of(name_or_path, shipped_names())}; or give the path "
            f"of a hardware file (NAME{_SUFFIX})"
        )
    return load_hardware(_shipped_directory() / f"{name_or_path}{_SUFFIX}")


def load_hardware(path: Path) -> Hardware:
    """Read a hardware file.

    Raises:
        ConfigError: a line per mistake, with file, line and key.
    """
    if path.suffix == ".json":
        raise ConfigError(
            f"{path}: a profile is no hardware file; plan with it by --set 'profiler={{backend: file, path: {path}}}'"
        )
    document = read_document(path)
    problems = Problems(document)
    hardware = structure(Hardware, document.values, (), document, problems)
    problems.raise_any()
    assert hardware is not None  # noqa: S101  # structure() notes a problem whenever it returns None
    return hardware


def with_overrides(hardware: Hardware, *, drives: int | None = None, host: Bytes | None = None) -> Hardware:
    """Return the same machine with another number of drives, or other main memory; its name says so.

    Raises:
        ConfigError: the number or size is impossible; begins with the name of the parameter.
    """
    parameter = "drives"
    changed = []
    try:
        if drives is not None:
            hardware = evolve(hardware, drives=evolve(hardware.drives, count=drives))
            changed.append(f"{drives} drive{'s' if drives > 1 else ''}")
        parameter = "host"
        if host is not None:
            hardware = evolve(hardware, host=evolve(hardware.host, memory=host))
            changed.append(f"{format_bytes(host)} of main memory")
    except ValueError as error:
        raise ConfigError(f"{parameter}: {error.args[0]}") from None
    return evolve(hardware, name=f"{hardware.name} (here with {' and '.join(changed)})") if changed else hardware
