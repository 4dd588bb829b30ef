"""``lohan train``: carry a run out, or on from where it stopped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["train"]


def train(
    config: Annotated[Path, typer.Argument(help="The run's config file.")],
    *,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key; may be repeated.")
    ] = None,
) -> None:
    """Fine-tune a model; in a run directory that was begun before, go on from its last durable step.

    Ctrl-C and SIGTERM finish the step in progress and save it; a second one ends the process at once.
    """
    from rich.console import Console
    from transformers.utils import logging as transformers_logging

    from lohan_core.config import load_config
    from lohan_core.registry import load_registry
    from lohan_core.train import train as carry_out

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    registry = load_registry()
    complete = carry_out(load_config(config, overrides or [], registry), registry, Console(highlight=False))
    raise typer.Exit(0 if complete else STOPPED)


STOPPED = 3
"""Exit code of a run that a signal stopped in good order."""
