"""A profile corrected by a step that was really carried out: what planning anew begins from. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve

from lohan_core.profile import BlockProfile, Machine, Profile
from lohan_core.schedule.simulate import PROCESSOR_LANES, simulate
from lohan_core.schedule.task import Lane
from lohan_core.schedule.timeline import Span, Timeline

__all__ = ["calibrate", "departure"]


def departure(profile: Profile, measured: Timeline) -> float:
    """Return by which share of the prediction a measured step was longer (above 0) or shorter (below 0)."""
    return measured.seconds / simulate(measured.schedule, profile.machine).seconds - 1.0


def calibrate(profile: Profile, measured: Timeline) -> Profile:
    """Correct each lane's rate to what the step showed; a lane that the step did not use keeps its rate.

    Args:
        profile: the profile that the step was planned with.
        measured: the step's timeline.

    Returns:
        The profile with the measured rates. What copies take from updates is in the updates' rate that the step showed;
        where it showed none, that stays as it was. Blocks keep their proportions: their seconds, and their candidates',
        are all scaled by the ``gpu`` lane's measured time over its predicted one.
    """
    busy, work = _own_seconds(measured, shared=profile.machine.cpu_computes), measured.work()

    def rate(lane: Lane, known: float) -> float:
        return work[lane] / busy[lane] if work[lane] > 0 and busy[lane] > 0 else known

    machine = profile.machine
    slower = busy[Lane.GPU] / work[Lane.GPU] if work[Lane.GPU] > 0 and busy[Lane.GPU] > 0 else 1.0
    corrected = evolve(
        machine,
        h2d_bytes_per_second=rate(Lane.H2D, machine.h2d_bytes_per_second),
        d2h_bytes_per_second=rate(Lane.D2H, machine.d2h_bytes_per_second),
        cpu_parameters_per_second=rate(Lane.CPU, machine.cpu_parameters_per_second),
        gpu_flops_per_second=machine.gpu_flops_per_second / slower,
        gpu_parameters_per_second=there / slower if (there := machine.gpu_parameters_per_second) else None,
        memory_bytes_per_second=machine.memory_bytes_per_second if work[Lane.CPU] == 0 else None,
    )
    return evolve(
        profile,
        machine=_with_drives(corrected, measured),
        blocks=tuple(_scaled(block, slower) for block in profile.blocks),
    )


def _own_seconds(timeline: Timeline, *, shared: bool) -> dict[Lane, float]:
    """How long each lane would have been busy alone: while several share the processor, each has its part of it."""
    busy = timeline.busy_seconds()
    if not shared:
        return busy
    changes = sorted(
        (when, step, task.lane)
        for task, span in zip(timeline.schedule.tasks, timeline.spans, strict=True)
        if task.lane in PROCESSOR_LANES
        for when, step in ((span.start, 1), (span.end, -1))
    )
    busy.update(dict.fromkeys(PROCESSOR_LANES, 0.0))
    active = dict.fromkeys(PROCESSOR_LANES, 0)
    before = 0.0
    for when, step, lane in changes:
        sharing = [each for each in PROCESSOR_LANES if active[each]]
        for each in sharing:
            busy[each] += (when - before) / len(sharing)
        active[lane] += step
        before = when
    return busy


def _scaled(block: BlockProfile, factor: float) -> BlockProfile:
    return evolve(
        block,
        seconds=block.seconds * factor,
        backward_seconds=block.backward_seconds * factor,
        recomputed_seconds=block.recomputed_seconds * factor,
        candidates=tuple(
            evolve(candidate, seconds=candidate.seconds * factor, keeping_seconds=candidate.keeping_seconds * factor)
            for candidate in block.candidates
        ),
    )


def _with_drives(machine: Machine, measured: Timeline) -> Machine:
    """Correct the drives' rates. All three are scaled alike: one step cannot tell them apart.

    The factor is the bytes that were moved, over those that the known rates would have moved in the same time.
    """
    reads, writes = _spans_on(measured, Lane.SSD_READ), _spans_on(measured, Lane.SSD_WRITE)
    together = _overlap(reads, writes)
    expected = (
        together * machine.ssd_mixed_bytes_per_second
        + (_length(reads) - together) * machine.ssd_read_bytes_per_second
        + (_length(writes) - together) * machine.ssd_write_bytes_per_second
    )
    work = measured.work()
    moved = work[Lane.SSD_READ] + work[Lane.SSD_WRITE]
    factor = moved / expected if expected > 0 else 1.0
    return evolve(
        machine,
        ssd_read_bytes_per_second=machine.ssd_read_bytes_per_second * factor,
        ssd_write_bytes_per_second=machine.ssd_write_bytes_per_second * factor,
        ssd_mixed_bytes_per_second=machine.ssd_mixed_bytes_per_second * factor,
    )


def _spans_on(timeline: Timeline, lane: Lane) -> list[Span]:
    return [span for task, span in zip(timeline.schedule.tasks, timeline.spans, strict=True) if task.lane is lane]


def _length(spans: Sequence[Span]) -> float:
    return sum(span.end - span.start for span in spans)


def _overlap(first: Sequence[Span], second: Sequence[Span]) -> float:
    """Seconds during which a span of each is active; the spans of one lane do not overlap and are in order."""
    seconds = 0.0
    i = j = 0
    while i < len(first) and j < len(second):
        start, end = max(first[i].start, second[j].start), min(first[i].end, second[j].end)
        seconds += max(0.0, end - start)
        if first[i].end <= second[j].end:
            i += 1
        else:
            j += 1
    return seconds
