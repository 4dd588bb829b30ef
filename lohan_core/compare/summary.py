"""A comparison in plain values, for JSON and for the page, and as text. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lohan_core.compare.records import Comparison, Contender, Measurement, Prediction
from lohan_core.compare.sweep import moved_bytes
from lohan_core.plan import Tier
from lohan_core.schedule.task import Lane
from lohan_core.schedule.timeline import Timeline
from lohan_core.text import columns
from lohan_core.units import format_bytes, format_seconds

__all__ = ["render", "summarize", "title", "verdict"]


def summarize(comparison: Comparison) -> dict[str, Any]:
    """Return what was compared, and a row of values for every planner; a value that there is not is None."""
    profile, workload = comparison.profile, comparison.workload
    rows = workload.micro_batches * profile.micro_batch_size
    return {
        "machine": profile.machine.name,
        "blocks": len(profile.blocks),
        "batch_size": rows,
        "micro_batch_size": profile.micro_batch_size,
        "sequence_length": profile.sequence_length,
        "tokens": rows * profile.sequence_length,
        "groups": [list(group) for group in comparison.groups],
        "losses_identical": comparison.losses_identical,
        "planners": [_row(contender, comparison) for contender in comparison.contenders],
    }


def title(summary: Mapping[str, Any]) -> str:
    """Say on one line what was compared."""
    return (
        f"{summary['machine']}: {summary['blocks']} blocks, {summary['batch_size']} sequences of "
        f"{summary['sequence_length']} tokens a step, {summary['micro_batch_size']} at once"
    )


def _row(contender: Contender, comparison: Comparison) -> dict[str, Any]:
    prediction, measurement = contender.prediction, contender.measurement
    return {
        "planner": contender.planner,
        "reason": contender.reason,
        "note": prediction and prediction.plan.note,
        "predicted": prediction and _predicted(prediction, comparison),
        "measured": measurement and _measured(measurement, comparison),
    }


def _predicted(prediction: Prediction, comparison: Comparison) -> dict[str, Any]:
    work = prediction.timeline.work()
    return {
        **_step(prediction.timeline.seconds, prediction.timeline, comparison),
        "read_bytes": round(work[Lane.SSD_READ]),
        "written_bytes": round(work[Lane.SSD_WRITE]),
        "h2d_bytes": round(work[Lane.H2D]),
        "d2h_bytes": round(work[Lane.D2H]),
        "activation_bytes": moved_bytes(prediction.plan, comparison.profile, comparison.workload),
        "peak_bytes": {tier.value: prediction.peak_bytes[tier] for tier in Tier},
    }


def _measured(measurement: Measurement, comparison: Comparison) -> dict[str, Any]:
    typical = measurement.typical
    return {
        **_step(typical.seconds, typical.timeline, comparison),
        "read_bytes": typical.storage_read_bytes,
        "written_bytes": typical.storage_write_bytes,
        "gpu_peak_bytes": typical.gpu_peak_bytes,
        "step_seconds": [step.seconds for step in measurement.steps],
        "losses": list(measurement.losses),
    }


def _step(seconds: float, timeline: Timeline, comparison: Comparison) -> dict[str, Any]:
    rows = comparison.workload.micro_batches * comparison.profile.micro_batch_size
    return {
        "seconds": seconds,
        "tokens_per_second": rows * comparison.profile.sequence_length / seconds,
        "busy_seconds": {lane.value: busy for lane, busy in timeline.busy_seconds().items()},
    }


def verdict(comparison: Comparison) -> str | None:
    """Say whether the runs came to the same losses; None if fewer than two ran."""
    runs = [c.measurement for c in comparison.contenders if c.measurement]
    if comparison.losses_identical is None:
        return None
    if comparison.losses_identical:
        return f"Losses are identical, bit for bit, in {len(runs[0].losses)} steps of {len(runs)} planners."
    first = next(c.planner for c in comparison.contenders if c.measurement)
    return (
        f"LOSSES DIFFER: those of {', '.join(comparison.differing)} are not those of {first}. This is a bug in LoHan."
    )


def render(comparison: Comparison) -> str:
    """Write a comparison as text: steps, then lanes, then the verdict on losses."""
    summary = summarize(comparison)
    rows = [row for row in summary["planners"] if row["predicted"]]
    parts = [title(summary)]
    if rows:
        parts += [_step_table(rows), _lane_table(rows)]
    for row in summary["planners"]:
        if row["reason"]:
            failed = "was not carried out" if row["predicted"] else "has no plan"
            parts.append(f"{row['planner']} {failed}: {row['reason']}")
    parts += [f"In turn, step by step: {', '.join(group)}." for group in summary["groups"] if len(group) > 1]
    return "\n\n".join([*parts, *filter(None, [verdict(comparison)])])


def _step_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write what each step takes. Columns in which there is nothing are left out: those of what was not measured."""
    cells = [_cells(row) for row in rows]
    used = [name for name in cells[0] if any(row[name] for row in cells)]
    return columns([used, *([row[name] for name in used] for row in cells)])


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    predicted, measured = row["predicted"], row["measured"]
    known = measured or predicted
    used = measured and measured["gpu_peak_bytes"]
    return {
        "planner": row["planner"],
        "predicted": format_seconds(predicted["seconds"]),
        "measured": format_seconds(measured["seconds"]) if measured else "",
        "off by": f"{measured['seconds'] / predicted['seconds'] - 1:+.0%}" if measured else "",
        "tokens/s": f"{known['tokens_per_second']:,.0f}",
        "read": format_bytes(known["read_bytes"]),
        "written": format_bytes(known["written_bytes"]),
        "activations": format_bytes(predicted["activation_bytes"]),
        **{f"{tier} peak": format_bytes(predicted["peak_bytes"][tier]) for tier in Tier},
        "gpu measured": "" if used is None else format_bytes(used),
    }


def _lane_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write how long each lane works, predicted and, where the plan was carried out, measured."""
    lanes = [lane.value for lane in Lane]
    cells = [["busy", *lanes]]
    for row in rows:
        for kind in ("predicted", "measured"):
            if row[kind]:
                busy = row[kind]["busy_seconds"]
                cells.append([f"{row['planner']} {kind}", *(format_seconds(busy[lane]) for lane in lanes)])
    return columns(cells)
