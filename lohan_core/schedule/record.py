"""A step's record: how it was predicted and how it went, two timelines of one schedule, as a compact JSON file.

The schedule is written once, by columns, and times as whole nanoseconds, so that a record takes some 80 bytes per task.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import asdict, frozen

from lohan_core.errors import DataError
from lohan_core.plan import Tier
from lohan_core.schedule.task import Op, Pool, Schedule, Slot, Task
from lohan_core.schedule.timeline import Span, Timeline

__all__ = ["StepRecord"]

FORMAT = 1
_NUMBERS = ("block", "micro_batch", "chunk", "source", "work")
_SLOTS = ("touches", "takes", "gives")


@frozen(kw_only=True)
class StepRecord:
    """One step of a run.

    ``predicted`` and ``measured`` are timelines of the same schedule.
    """

    step: int
    predicted: Timeline
    measured: Timeline

    def to_json(self) -> str:
        """Write the record on one line. Times are rounded to nanoseconds."""
        return json.dumps(
            {
                "format": FORMAT,
                "step": self.step,
                "schedule": _schedule_values(self.measured.schedule),
                "predicted_nanoseconds": _span_values(self.predicted.spans),
                "measured_nanoseconds": _span_values(self.measured.spans),
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str, source: str = "step record") -> StepRecord:
        """Read what :meth:`to_json` wrote; ``source`` names the file in errors.

        Raises:
            DataError: not a step's record, or one of another version of LoHan.
        """
        try:
            values = json.loads(text)
            if values["format"] != FORMAT:
                raise DataError(f"{source}: format {values['format']}, this version of LoHan reads {FORMAT}")
            schedule = _read_schedule(values["schedule"])
            return cls(
                step=values["step"],
                predicted=_read_timeline(schedule, values["predicted_nanoseconds"]),
                measured=_read_timeline(schedule, values["measured_nanoseconds"]),
            )
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(f"{source}: not a step's record ({type(error).__name__}: {error})") from error


def _schedule_values(schedule: Schedule) -> dict[str, Any]:
    tasks = schedule.tasks
    slots = sorted({slot for task in tasks for name in _SLOTS for slot in getattr(task, name)})
    number = {slot: index for index, slot in enumerate(slots)}
    return {
        "op": [task.op.value for task in tasks],
        **{name: [getattr(task, name) for task in tasks] for name in _NUMBERS},
        "after": [task.after for task in tasks],
        "slots": [[slot.pool, slot.index] for slot in slots],
        **{name: [[number[slot] for slot in getattr(task, name)] for task in tasks] for name in _SLOTS},
        "pools": [asdict(pool) for pool in schedule.pools.values()],
        "resident_bytes": {tier.value: size for tier, size in schedule.resident_bytes.items()},
    }


def _read_schedule(values: dict[str, Any]) -> Schedule:
    slots = [Slot(pool, index) for pool, index in values["slots"]]
    columns = zip(
        values["op"],
        values["after"],
        zip(*(values[name] for name in _NUMBERS), strict=True),
        zip(*(values[name] for name in _SLOTS), strict=True),
        strict=True,
    )
    return Schedule(
        tasks=tuple(
            Task(index=index, op=Op(op), after=tuple(after), **_read_fields(numbers, uses, slots))
            for index, (op, after, numbers, uses) in enumerate(columns)
        ),
        pools={pool["name"]: Pool(**{**pool, "tier": Tier(pool["tier"])}) for pool in values["pools"]},
        resident_bytes={Tier(tier): size for tier, size in values["resident_bytes"].items()},
    )


def _read_fields(numbers: Iterable[float], uses: Iterable[Sequence[int]], slots: Sequence[Slot]) -> dict[str, Any]:
    read: dict[str, Any] = dict(zip(_NUMBERS, numbers, strict=True))
    read.update({name: tuple(slots[index] for index in used) for name, used in zip(_SLOTS, uses, strict=True)})
    return read


def _span_values(spans: Iterable[Span]) -> list[list[int]]:
    """List starts and durations: a duration has fewer digits than an end."""
    pairs = [(round(span.start * 1e9), round(span.end * 1e9)) for span in spans]
    return [[start for start, _ in pairs], [end - start for start, end in pairs]]


def _read_timeline(schedule: Schedule, values: Sequence[Sequence[int]]) -> Timeline:
    starts, durations = values
    spans = tuple(Span(start / 1e9, (start + length) / 1e9) for start, length in zip(starts, durations, strict=True))
    if len(spans) != len(schedule.tasks):
        raise ValueError(f"{len(spans)} times for {len(schedule.tasks)} tasks")
    return Timeline(schedule=schedule, spans=spans)
