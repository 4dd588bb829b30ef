"""``lohan export``: a run's model as a directory that other tools load."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export"]


class _Dtype(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def export(
    run_dir: Annotated[Path, typer.Argument(help="The run's directory.")],
    out: Annotated[Path, typer.Argument(help="Directory to make.")],
    *,
    dtype: Annotated[_Dtype, typer.Option(help="Type of the parameters written.")] = _Dtype.BFLOAT16,
) -> None:
    """Write the model of a run's last durable step as a directory that ``from_pretrained`` loads."""
    import torch
    from rich.console import Console

    from lohan_core.cli.output import quiet_transformers
    from lohan_core.config import load_config
    from lohan_core.engine.export import export_run
    from lohan_core.errors import ConfigError
    from lohan_core.registry import load_registry
    from lohan_core.train.progress import RunProgress

    quiet_transformers()
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(f"{run_dir}: no config.yaml here; give the directory of a run")
    registry = load_registry()
    config = load_config(run_dir / "config.yaml", [f"run.dir={run_dir.absolute()}"], registry)
    with RunProgress(Console(highlight=False)) as progress:
        step = export_run(config, out.absolute(), getattr(torch, dtype), registry=registry, report=progress.show)
        progress.say(f"the model of step {step} is in {out}")
