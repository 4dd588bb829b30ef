"""``lohan preview``: the rows that a run would learn from."""

from __future__ import annotations

from typing import Annotated

import typer

from lohan_core.cli.options import ConfigFile, Overrides

__all__ = ["preview"]


def preview(
    config: ConfigFile,
    *,
    samples: Annotated[int, typer.Option(help="Rows to show.", min=1)] = 3,
    overrides: Overrides = None,
) -> None:
    """Check the training data, and show the tokens of a few rows and which are learned.

    The whole file is checked and tokenised, and kept in the run directory, where training finds it.
    """
    from rich.console import Console

    from lohan_core.config import load_config
    from lohan_core.data.preview import preview as show
    from lohan_core.data.run import open_run_dataset
    from lohan_core.registry import load_registry

    settings = load_config(config, overrides or [], load_registry())
    Console(highlight=False).print(show(open_run_dataset(settings, settings.data.train), samples), soft_wrap=True)
