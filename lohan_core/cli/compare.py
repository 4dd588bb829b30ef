"""``lohan compare``: planners side by side, predicted and carried out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from lohan_core.cli.machine import Drives, HostMemory, machine_asked_about
from lohan_core.cli.options import ConfigFile, Overrides

__all__ = ["compare"]

LOSSES_DIFFER = 1
"""Exit code of a comparison in which a plan changed what was computed."""
NOTHING_FITS = 2
DEFAULT_STEPS = 3


def compare(
    config: ConfigFile,
    *,
    planners: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME:KEY=VALUE,…", help="Planners, as `lohan plugins` lists them, with settings if you like."
        ),
    ],
    hardware: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Predict for a machine known by its rates; nothing is run then."),
    ] = None,
    drives: Drives = None,
    host: HostMemory = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Steps of each plan that count, 3 by default; one is taken before them.", min=1),
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Write a page with charts and timelines too.")
    ] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Let planners plan the same run, predict each plan's step, and carry the plans out on the run's first data.

    Every plan starts from the model's own weights, in a store of its own that goes afterwards; the run itself is left
    alone. Exit code 1: losses differ. Exit code 2: no plan fits.
    """
    from rich.console import Console

    from lohan_core.cli.output import quiet_transformers, require_writable
    from lohan_core.compare.here import compare_here
    from lohan_core.compare.summary import render, summarize
    from lohan_core.compare.there import compare_on
    from lohan_core.config import load_config
    from lohan_core.errors import ConfigError
    from lohan_core.registry import load_registry
    from lohan_core.report import comparison_page, write_page
    from lohan_core.train.progress import RunProgress

    if hardware is not None and steps is not None:
        raise ConfigError("--steps: nothing is run with --hardware; leave one of them out")
    if hardware is None and (drives is not None or host is not None):
        raise ConfigError("--drives and --host are about the machine of --hardware: give that too")
    quiet_transformers()
    if page is not None:
        require_writable("--report", page)
    registry = load_registry()
    settings = load_config(config, overrides or [], registry)
    names = [name.strip() for name in planners.split(",") if name.strip()]
    with RunProgress(Console(file=sys.stderr)) as progress:
        if hardware is None:
            found = compare_here(settings, names, registry, progress.show, steps=steps or DEFAULT_STEPS)
        else:
            machine, settings = machine_asked_about(hardware, drives, host, settings)
            found = compare_on(machine, settings, names, registry, progress.show)
    print(json.dumps(summarize(found), indent=1) if as_json else render(found))
    if page is not None:
        write_page(page, comparison_page(found))
    if not any(contender.prediction for contender in found.contenders):
        raise typer.Exit(NOTHING_FITS)
    if found.losses_identical is False:
        raise typer.Exit(LOSSES_DIFFER)
