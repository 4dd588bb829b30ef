"""A plan report for people: what fits, how fast, what bounds it, what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lohan_core.forecast.advise import End
from lohan_core.forecast.forecast import Forecast
from lohan_core.forecast.parts import Part
from lohan_core.forecast.report import PlanReport
from lohan_core.units import format_bytes

__all__ = ["render"]

_BAR_CELLS = 24
_PART_NAMES = {
    Part.GPU: "the GPU",
    Part.GPU_MEMORY: "the GPU's memory",
    Part.PCIE: "the PCIe link",
    Part.PROCESSOR: "the processor",
    Part.MAIN_MEMORY: "the main memory",
    Part.DRIVES: "the drives",
}
_WORTH_NAMING = 1.02
_WHY_NO_LARGER_BATCH = {
    End.SPEED: "a larger batch is hardly faster",
    End.MEMORY: "a larger batch does not fit",
    End.SEARCH: "larger ones were not tried",
}


def render(report: PlanReport) -> RenderableType:
    """Lay a report out."""
    parts: list[RenderableType] = []
    if report.forecast is not None:
        parts += _forecast(report.forecast, report.speedups)
    else:
        parts.append(Text(f"Does not fit: {report.refusal}", style="bold red"))
    parts.append(Text("\n".join(_advice(report))))
    return Group(*parts)


def _forecast(forecast: Forecast, speedups: Mapping[Part, float]) -> list[RenderableType]:
    verdict = Text("Fits.", style="bold green") if forecast.fits else Text("Does not fit.", style="bold red")
    subject = f"{_billions(forecast.parameters)} parameters on {forecast.machine}, planner {forecast.planner}"
    batch = f"{forecast.batch_size} sequences of {forecast.sequence_length} tokens"
    lines = [
        f"{subject}: {batch} a step, {forecast.micro_batch_size} at once",
        *forecast.shortfalls,
        f"{_seconds(forecast.seconds)} a step, {forecast.tokens_per_second:,.0f} tokens/s; {_bound(forecast)}",
        *_worth_buying(speedups),
    ]
    if forecast.clipped_seconds is not None:
        lines.append(f"So long as steps are not clipped; one that is takes {_seconds(forecast.clipped_seconds)}")
    if not forecast.saved:
        lines.append("States in memory are not saved, for lack of space on the drives: the run cannot be resumed")
    elif forecast.saving_seconds:
        every = f"every {forecast.save_every} steps" if forecast.save_every > 1 else "every step"
        lines.append(f"Saving states in memory takes {_seconds(forecast.saving_seconds)} more, {every}")
    return [verdict, Text("\n".join(lines)), _lanes(forecast), _memory(forecast), Text(_wear(forecast))]


def _bound(forecast: Forecast) -> str:
    name = _PART_NAMES[forecast.bounds]
    share = f"{forecast.occupied[forecast.bounds]:.0%}"
    if forecast.clearly_bound:
        return f"bound by {name} ({share} busy)"
    return f"{name} busiest ({share}): parts wait in turn"


def _worth_buying(speedups: Mapping[Part, float]) -> Iterator[str]:
    worth = [
        f"twice {_PART_NAMES[part]} ({factor:.2f} times)"
        for part, factor in sorted(speedups.items(), key=lambda item: -item[1])
        if factor >= _WORTH_NAMING
    ]
    if worth:
        yield f"Faster with {', '.join(worth)}"


def _lanes(forecast: Forecast) -> Table:
    table = Table("lane", "busy", "", box=None, pad_edge=False)
    for lane, share in forecast.busy.items():
        table.add_row(lane.value, f"{share:.0%}", "█" * round(share * _BAR_CELLS))
    return table


def _memory(forecast: Forecast) -> Table:
    table = Table("tier", "needed", "allowed", box=None, pad_edge=False)
    for tier, needed in forecast.peak_bytes.items():
        table.add_row(tier.value, format_bytes(needed), format_bytes(forecast.budget_bytes[tier]))
    return table


def _wear(forecast: Forecast) -> str:
    written = format_bytes(round(forecast.ssd_written_bytes))
    text = f"The drives read {format_bytes(round(forecast.ssd_read_bytes))} and take {written} a step"
    if forecast.saved_bytes:
        text += f", and {format_bytes(forecast.saved_bytes)} more with each save"
    if forecast.drive_life_steps is None:
        return f"{text}."
    days = forecast.drive_life_steps * forecast.seconds_with_saves / 86400
    life = f"{forecast.drive_life_steps:,.0f} steps, {days:,.0f} days without a pause"
    return f"{text}: {life}{', saves included' if forecast.saved_bytes else ''}, are their rated life."


def _advice(report: PlanReport) -> Iterator[str]:
    if report.advice is not None:
        advice = report.advice
        why = _WHY_NO_LARGER_BATCH[advice.ends_at]
        alone = "; other micro-batches were not tried" if len(advice.tried) == 1 else ""
        yield (
            f"Recommended: run.batch_size: {advice.batch_size}, run.micro_batch_size: {advice.micro_batch_size} "
            f"({advice.tokens_per_second:,.0f} tokens/s): {why}{alone}."
        )
    else:
        yield "No batch size fits."
    if report.largest is not None:
        largest = report.largest
        yield (
            f"Largest model of this family that fits: {_billions(largest.parameters)} parameters "
            f"({largest.layers} layers, {largest.heads} heads, hidden size {largest.hidden})."
        )
    elif report.searched_largest:
        yield "No model of this family fits, of the sizes that are tried."


def _billions(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
