"""One self-contained page: what it shows, as plain values, and the file. Drawing is the templates' business."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from lohan_core.compare.predict import predict
from lohan_core.compare.records import Comparison, Contender
from lohan_core.compare.summary import summarize, title, verdict
from lohan_core.compare.sweep import Sweep, sweep
from lohan_core.durable_files import replace_durably
from lohan_core.plan import Budget, Plan, Workload
from lohan_core.profile import Profile
from lohan_core.report.pieces import Piece, cut_into_pieces
from lohan_core.report.waits import find_waits, waited_seconds
from lohan_core.schedule.record import StepRecord
from lohan_core.schedule.task import Lane, Op
from lohan_core.schedule.timeline import Timeline
from lohan_core.units import format_bytes, format_seconds

__all__ = ["Page", "comparison_page", "plan_page", "record_page", "write_page"]

TEMPLATES = Path(__file__).parent / "templates"
_TICK_SECONDS = 1e-7
"""Times on a page are rounded to this."""


@frozen(kw_only=True)
class Page:
    """What a page shows. ``comparison`` and ``sweeps`` may be missing; ``steps`` are by name."""

    heading: str
    subtitle: str
    verdict: str | None = None
    agrees: bool = True
    comparison: Mapping[str, Any] | None = None
    steps: tuple[Mapping[str, Any], ...] = ()
    sweeps: Mapping[str, Any] | None = None


def comparison_page(comparison: Comparison) -> Page:
    """Show planners side by side: table, timelines, and where on the curves their plans lie."""
    summary = summarize(comparison)
    return Page(
        heading="Planners compared" if len(comparison.contenders) > 1 else "Plan",
        subtitle=title(summary),
        verdict=verdict(comparison),
        agrees=comparison.losses_identical is not False,
        comparison=summary,
        steps=tuple(
            _step(
                contender.planner,
                {
                    "predicted": contender.prediction.timeline,
                    **({"measured": contender.measurement.typical.timeline} if contender.measurement else {}),
                },
            )
            for contender in comparison.contenders
            if contender.prediction
        ),
        sweeps=_sweeps(comparison, summary),
    )


def plan_page(plan: Plan, profile: Profile, workload: Workload, budget: Budget) -> Page:
    """Show one plan, predicted."""
    contender = Contender(planner=plan.planner, prediction=predict(plan, profile, workload, budget))
    return comparison_page(Comparison(profile=profile, workload=workload, budget=budget, contenders=(contender,)))


def record_page(record: StepRecord, run: str) -> Page:
    """Show a step that was taken, below what was predicted of it."""
    predicted, measured = record.predicted.seconds, record.measured.seconds
    return Page(
        heading=f"Step {record.step} of {run}",
        subtitle=f"predicted {format_seconds(predicted)}, measured {format_seconds(measured)}",
        steps=(_step(f"step {record.step}", {"predicted": record.predicted, "measured": record.measured}),),
    )


def write_page(path: Path, page: Page) -> None:
    """Write a page as one HTML file that needs nothing else.

    Raises:
        StorageError: the file cannot be written; a page that was there stays.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters["size"] = format_bytes
    environment.filters["time"] = format_seconds
    text = environment.get_template("page.html").render(
        page=page, lanes=[lane.value for lane in Lane], drawn={"steps": page.steps, "sweeps": page.sweeps}
    )
    replace_durably(path, text.encode())


def _step(name: str, timelines: Mapping[str, Timeline]) -> dict[str, Any]:
    """Describe timelines that are drawn above each other, on one scale."""
    longest = max(timeline.seconds for timeline in timelines.values())
    return {
        "name": name,
        "seconds": longest,
        "ops": [op.value for op in Op],
        "timelines": [_timeline(kind, timeline, longest) for kind, timeline in timelines.items()],
    }


def _timeline(kind: str, timeline: Timeline, longest: float) -> dict[str, Any]:
    busy, waited = timeline.busy_seconds(), waited_seconds(find_waits(timeline))
    return {
        "kind": kind,
        "seconds": timeline.seconds,
        "lanes": [
            {
                "lane": row.lane.value,
                "pieces": [_piece(piece) for piece in row.pieces],
                "waits": [[_tick(wait.start), _tick(wait.end), wait.cause and wait.cause.value] for wait in row.waits],
                "busy_seconds": busy[row.lane],
                "waited_seconds": {
                    cause.value: seconds for cause, seconds in waited[row.lane].items() if cause is not None
                },
            }
            for row in cut_into_pieces(timeline, longest)
        ],
    }


def _piece(piece: Piece) -> list[float]:
    first = piece.first
    return [
        _tick(piece.start),
        _tick(piece.end),
        list(Op).index(piece.op),
        piece.tasks,
        first.block,
        first.micro_batch,
        first.chunk,
        first.work,
    ]


def _tick(seconds: float) -> float:
    return round(seconds / _TICK_SECONDS) * _TICK_SECONDS


def _sweeps(comparison: Comparison, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Draw a curve for every placement of states that planners chose, and way to update; mark the planners' choices."""
    curves: dict[Any, Sweep] = {}
    for contender in comparison.contenders:
        if contender.prediction:
            plan, workload = contender.prediction.plan, contender.prediction.workload
            placement = tuple((decided.states, decided.gradients, decided.deferred) for decided in plan.blocks)
            if placement not in curves:
                curves[placement] = sweep(comparison.profile, workload, comparison.budget, plan)
    if not curves:
        return None
    return {
        "blocks": summary["blocks"],
        "curves": [asdict(curve) for curve in curves.values()],
        "marks": [
            {
                "planner": row["planner"],
                "moved_bytes": row["predicted"]["activation_bytes"],
                "predicted_seconds": row["predicted"]["seconds"],
                "measured_seconds": row["measured"] and row["measured"]["seconds"],
            }
            for row in summary["planners"]
            if row["predicted"]
        ],
    }
