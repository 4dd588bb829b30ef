"""The commands, one module each. Their heavy imports happen inside them, so that the command line answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

from lohan_core.cli import bench, compare, export, plan, plugins, preview, profile, trace, train
from lohan_core.registry import core_version

__all__ = ["app"]

app = typer.Typer(
    name="lohan",
    help="Fine-tune a language model that does not fit into the GPU, nor into host memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(bench.bench, name="bench")
app.command("plugins")(plugins.plugins)
app.command("preview")(preview.preview)
app.command("profile")(profile.profile)
app.command("plan")(plan.plan)
app.command("compare")(compare.compare)
app.command("train")(train.train)
app.command("trace")(trace.trace)
app.command("export")(export.export)


def _print_version(wanted: bool) -> None:  # noqa: FBT001  # typer calls it so
    if wanted:
        print(f"lohan {core_version()}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    del version
