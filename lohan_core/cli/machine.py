"""The machine that a command is asked about, by its rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

if TYPE_CHECKING:
    from lohan_core.config.sections import Config
    from lohan_core.hardware import Hardware

__all__ = ["Drives", "HostMemory", "machine_asked_about"]

Drives: TypeAlias = Annotated[int | None, typer.Option(help="Number of drives of that machine.", min=1)]
HostMemory: TypeAlias = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Main memory of that machine; memory.host is no limit then.")
]


def machine_asked_about(hardware: str, drives: int | None, host: str | None, config: Config) -> tuple[Hardware, Config]:
    """Find a machine, with other drives or memory if these are given, and the config of a run there.

    Raises:
        ConfigError: there is none, or it cannot be like that.
    """
    import attrs

    from lohan_core.errors import ConfigError
    from lohan_core.hardware import find_hardware, with_overrides
    from lohan_core.units import parse_bytes

    try:
        host_bytes = None if host is None else parse_bytes(host)
    except ValueError as error:
        raise ConfigError(f"--host: {error}") from None
    machine = find_hardware(hardware)
    try:
        machine = with_overrides(machine, drives=drives, host=host_bytes)
    except ConfigError as error:
        raise ConfigError(f"--{error}") from None
    if host_bytes is not None:  # what is asked about is that machine, not this one's limit
        config = attrs.evolve(config, memory=attrs.evolve(config.memory, host=None))
    return machine, config
