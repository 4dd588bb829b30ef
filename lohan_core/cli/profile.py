"""``lohan profile``: what a planner would know of this machine and this model, as a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lohan_core.cli.options import ConfigFile, Overrides

__all__ = ["profile"]


def profile(
    config: ConfigFile,
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="JSON file to write.")],
    overrides: Overrides = None,
) -> None:
    """Profile machine and model by the config's profiler and write what it found, to be planned with anywhere.

    Reads no weights and no data.
    """
    from rich.console import Console

    from lohan_core.backend import Kind
    from lohan_core.cli.output import quiet_transformers, require_writable
    from lohan_core.config import load_config
    from lohan_core.durable_files import replace_durably
    from lohan_core.engine.device import resolve_device
    from lohan_core.engine.subject import open_subject
    from lohan_core.errors import ConfigError
    from lohan_core.registry import load_registry
    from lohan_core.train.progress import RunProgress

    quiet_transformers()
    require_writable("--out", out)
    if out.suffix != ".json":
        raise ConfigError(f"--out: {out} could not be read back as a profile; give a file that ends in .json")
    registry = load_registry()
    settings = load_config(config, overrides or [], registry)
    profiler = registry.open_backend(Kind.PROFILER, settings.profiler.name, settings.profiler.settings)
    with (
        RunProgress(Console(file=sys.stderr)) as progress,
        open_subject(settings, registry, resolve_device(settings.run.device), progress.show) as subject,
    ):
        found = profiler.profile(subject)
    replace_durably(out, found.to_json().encode())
    print(f"the profile of {found.machine.name} is in {out}")
