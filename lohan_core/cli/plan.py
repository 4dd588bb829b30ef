"""``lohan plan``: what a run will be like, before it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from lohan_core.cli.machine import Drives, HostMemory, machine_asked_about
from lohan_core.cli.options import ConfigFile, Overrides

__all__ = ["plan"]


def plan(
    config: ConfigFile,
    *,
    hardware: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Plan for a machine known by its rates, instead of measuring this one."),
    ] = None,
    drives: Drives = None,
    host: HostMemory = None,
    largest: Annotated[
        bool, typer.Option("--largest", help="Look for the largest model of the family that fits that machine.")
    ] = False,
    overrides: Overrides = None,
    page: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Write a page with charts and a timeline too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Predict a run's step, what bounds it, and the memory that it takes. Reads no weights and no data.

    Exit code 1: it does not fit.
    """
    from rich.console import Console

    from lohan_core.cli.output import quiet_transformers, require_writable
    from lohan_core.config import load_config
    from lohan_core.engine.device import resolve_device
    from lohan_core.errors import ConfigError
    from lohan_core.forecast.answer import plan_here, plan_on
    from lohan_core.forecast.render import render
    from lohan_core.registry import load_registry
    from lohan_core.report import plan_page, write_page
    from lohan_core.train.progress import RunProgress

    quiet_transformers()
    if hardware is None and (drives is not None or host is not None or largest):
        raise ConfigError("--drives, --host and --largest are about the machine of --hardware: give that too")
    if page is not None:
        require_writable("--report", page)
    registry = load_registry()
    settings = load_config(config, overrides or [], registry)
    with RunProgress(Console(file=sys.stderr)) as progress:
        if hardware is None:
            report = plan_here(settings, registry, resolve_device(settings.run.device), report=progress.show)
        else:
            machine, settings = machine_asked_about(hardware, drives, host, settings)
            report = plan_on(settings, registry, machine, largest=largest, report=progress.show)
    if as_json:
        print(json.dumps(report.plain(), indent=1))
    else:
        Console(highlight=False).print(render(report), soft_wrap=True)
    if page is not None and (planned := report.planned) is not None:
        write_page(page, plan_page(planned.plan, planned.profile, planned.workload, planned.budget))
    elif page is not None:
        print(f"warning: --report: {page} was not written, since there is no step to show", file=sys.stderr)
    raise typer.Exit(0 if report.fits else 1)
