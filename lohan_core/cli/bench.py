"""``lohan bench``: what the shipped backends reach on this machine, beside what others reach."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import attrs
import typer

from lohan_core.bench.workloads import WORKLOADS

__all__ = ["bench"]

bench = typer.Typer(help="Measure a shipped backend beside its yardstick.", no_args_is_help=True, rich_markup_mode=None)

A = TypeVar("A", bound=attrs.AttrsInstance)

Rounds = Annotated[int | None, typer.Option(help="Measurements of each kind; medians are reported.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@bench.command()
def storage(
    *,
    directory: Annotated[
        list[Path], typer.Option(help="Where files are made, and removed; once for each drive.", show_default="here")
    ] = [Path()],  # noqa: B006  # typer copies it
    size: Annotated[str | None, typer.Option(help="Bytes in all, such as 8GiB.")] = None,
    block: Annotated[str | None, typer.Option(help="Largest single transfer, such as 1MiB.")] = None,
    depth: Annotated[int | None, typer.Option(help="Transfers in flight.")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, io_uring, libaio or threads.")] = None,
    rounds: Rounds = None,
    seconds: Annotated[float | None, typer.Option(help="Length of a measurement.")] = None,
    as_json: Json = False,
) -> None:
    """Measure the throughput of the aio backend, beside fio on the same files where fio is installed."""
    from lohan_core.bench.storage import StorageBenchOptions, render, run

    chosen = {
        "directories": [str(path) for path in directory],
        "size_bytes": size,
        "block_bytes": block,
        "depth": depth,
        "engine": engine,
        "rounds": rounds,
        "seconds": seconds,
    }
    result = run(_options(StorageBenchOptions, chosen))
    print(_json(result) if as_json else render(result))


@bench.command()
def adam(
    *,
    parameters: Annotated[int | None, typer.Option(help="Parameters to update; 62 bytes of memory each.")] = None,
    rounds: Rounds = None,
    simd: Annotated[list[str] | None, typer.Option(help="Path to measure; may be repeated.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Threads to use; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Measure the cpuadam backend beside torch's fused AdamW and beside copying memory."""
    from lohan_core.bench.adam import AdamBenchOptions, render, run

    chosen = {"parameters": parameters, "rounds": rounds, "simd": simd or None, "threads": threads or None}
    result = run(_options(AdamBenchOptions, chosen))
    print(_json(result) if as_json else render(result))


@bench.command()
def step(
    *,
    workload: Annotated[str, typer.Argument(help=f"One of: {', '.join(WORKLOADS)}.")],
    directory: Annotated[Path, typer.Option(help="Where the store is kept, and removed.")] = Path(),
    batch: Annotated[list[int] | None, typer.Option(help="Rows a step; may be repeated.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps counted; medians are reported.")] = None,
    warm_up: Annotated[int | None, typer.Option(help="Steps before them.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    plain: Annotated[bool, typer.Option(help="Whether to measure plain PyTorch too, where it fits.")] = True,
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value of the run's config.")] = None,
    timelines: Annotated[
        Path | None,
        typer.Option(metavar="DIRECTORY", help="Write a step of each batch here, to be drawn by lohan trace."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a named workload's training step, beside the same model trained by plain PyTorch with all it needs."""
    from lohan_core.bench.step import StepBenchOptions, render, run
    from lohan_core.config.document import Origin, document_from_mapping

    settings = document_from_mapping({}, Path.cwd())
    for assignment in set_ or ():
        settings.override(assignment, Origin.of_option("--set", assignment))
    chosen = {
        "workload": workload,
        "directory": str(directory),
        "batch_sizes": batch or None,
        "steps": steps,
        "warm_up": warm_up,
        "device": device,
        "plain": plain,
        "timelines": str(timelines) if timelines else None,
    }
    result = run(attrs.evolve(_options(StepBenchOptions, chosen), settings=settings.values))
    print(_json(result) if as_json else render(result))


@bench.command()
def memory(
    *,
    directory: Annotated[Path, typer.Option(help="Where models and stores are kept, and removed.")] = Path(),
    layers: Annotated[list[int] | None, typer.Option(help="A model's depth; may be repeated.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps of each run.")] = None,
    as_json: Json = False,
) -> None:
    """Measure the peak resident memory of runs that differ in nothing but the model's depth."""
    from lohan_core.bench.memory import MemoryBenchOptions, render, run

    chosen = {"directory": str(directory), "layers": layers or None, "steps": steps}
    result = run(_options(MemoryBenchOptions, chosen))
    print(_json(result) if as_json else render(result))


def _options(cls: type[A], chosen: Mapping[str, Any]) -> A:
    """Check what was chosen as a config file's keys are checked; the rest has defaults."""
    from lohan_core.config.structure import structure_values

    return structure_values(cls, {key: value for key, value in chosen.items() if value is not None}, "lohan bench")


def _json(result: attrs.AttrsInstance) -> str:
    return json.dumps(attrs.asdict(result), indent=1, default=str)
