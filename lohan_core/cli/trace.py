"""``lohan trace``: one of a run's newest steps, as it was predicted and as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["trace"]


def trace(
    run_dir: Annotated[Path, typer.Argument(help="The run's directory.")],
    *,
    page: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Where the page goes.", show_default="RUN_DIR")
    ] = None,
    perfetto: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Write every task in the trace format of Chrome and Perfetto too."),
    ] = None,
) -> None:
    """Draw the timeline of one of a run's newest steps, predicted above measured, as a page that needs nothing else."""
    from lohan_core.cli.output import require_writable
    from lohan_core.durable_files import replace_durably
    from lohan_core.report import record_page, to_perfetto, write_page
    from lohan_core.report.run_file import read_record
    from lohan_core.report.table import render_record

    record = read_record(run_dir)
    page = page or run_dir / "timeline.html"
    require_writable("--report", page)
    if perfetto is not None:
        require_writable("--perfetto", perfetto)
    print(render_record(record))
    write_page(page, record_page(record, run_dir.absolute().name))
    print(f"\nthe page is {page}")
    if perfetto is not None:
        replace_durably(perfetto, to_perfetto({"predicted": record.predicted, "measured": record.measured}).encode())
        print(f"the trace is {perfetto}; open it in https://ui.perfetto.dev")
