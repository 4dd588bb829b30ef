"""``lohan train``: carry a run out, or on from where it stopped."""

from __future__ import annotations

import logging

import typer

from lohan_core.cli.options import ConfigFile, Overrides

__all__ = ["train"]


def train(
    config: ConfigFile,
    *,
    overrides: Overrides = None,
) -> None:
    """Fine-tune a model; in a run directory that was begun before, go on from its last durable step.

    Ctrl-C and SIGTERM finish the step in progress and save it; a second one ends the process at once.
    """
    from rich.console import Console

    from lohan_core.cli.output import quiet_transformers
    from lohan_core.config import load_config
    from lohan_core.registry import load_registry
    from lohan_core.train import train as carry_out

    logging.addLevelName(logging.WARNING, "warning")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    quiet_transformers()
    registry = load_registry()
    complete = carry_out(load_config(config, overrides or [], registry), registry, Console(highlight=False))
    raise typer.Exit(0 if complete else STOPPED)


STOPPED = 3
"""Exit code of a run that a signal stopped in good order."""
