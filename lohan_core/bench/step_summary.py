"""One row of ``lohan bench step``: what is counted of the steps that both sides took, beside what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from lohan_core.bench.drives import DrivesAlone
from lohan_core.bench.peaks import GpuPeak
from lohan_core.bench.plain_process import PlainContender
from lohan_core.bench.step_rows import (
    DrivesFigures,
    StepBenchRow,
    busiest_resource,
    busy_by_resource,
    chain_seconds,
    compare_plain,
)
from lohan_core.memory import pinned_bytes

if TYPE_CHECKING:
    from lohan_core.engine.engine import Engine
    from lohan_core.engine.step import StepResult

__all__ = ["summarise"]


def summarise(
    engine: Engine,
    ours: Sequence[StepResult],
    plain: PlainContender,
    memory: GpuPeak,
    drives: DrivesAlone,
    *,
    parameters: int,
    sequence_length: int,
    warm_up: int,
    start_host_bytes: int,
    peak_host_bytes: int,
) -> StepBenchRow:
    """Reduce the steps of one batch size to a row.

    Args:
        engine: still open: what it holds is counted.
        ours: all steps that it took.
        plain: what took a step after each of them, or is absent.
        memory: of LoHan's side, told when steps began.
        drives: what had a turn after each counted step.
        parameters: the model's.
        sequence_length: tokens a row.
        warm_up: how many of the first steps are not counted.
        start_host_bytes: what the process held before the engine was opened.
        peak_host_bytes: the most that it has held since.
    """
    from lohan_core.plan import Tier
    from lohan_core.schedule.simulate import simulate

    counted = ours[warm_up:]
    each = [busy_by_resource(result.timeline) for result in counted]
    busy = {name: median(step[name] for step in each) for name in each[0]}
    busiest = busiest_resource(busy)
    predicted = simulate(counted[-1].timeline.schedule, engine.profile.machine)
    held = [step.speculated and not step.clipped for step in counted]
    chains = [0.0 if fine else chain_seconds(step.timeline) for step, fine in zip(counted, held, strict=True)]
    chain = median(chains) if engine.workload.clips else 0.0
    seconds = median(result.seconds for result in counted)
    batch_size = engine.workload.micro_batches * engine.profile.micro_batch_size
    tokens = batch_size * sequence_length
    planned = {tier: engine.schedule.bytes_on(tier) for tier in Tier}
    return StepBenchRow(
        batch_size=batch_size,
        plan=engine.description[-1],
        attention=engine.model.attention,
        loss_computed=engine.model.loss,
        step_seconds=tuple(result.seconds for result in counted),
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        busy_seconds=busy,
        busiest=busiest,
        step_per_busiest=seconds / busy[busiest],
        chain_seconds=chain,
        step_per_bound=seconds / max(busy[busiest], chain),
        predicted_seconds=predicted.seconds,
        predicted_busy_seconds=busy_by_resource(predicted),
        departure=seconds / predicted.seconds - 1.0,
        losses=tuple(result.loss for result in ours),
        clipped_steps=sum(step.clipped for step in counted),
        speculative_steps=sum(held),
        planned_gpu_bytes=planned[Tier.GPU],
        step_gpu_bytes=memory.allocated_bytes(),
        peak_gpu_bytes=memory.reserved_bytes(),
        gpu_retries=memory.retries(),
        planned_host_bytes=planned[Tier.HOST],
        pinned_bytes=pinned_bytes(),
        start_host_bytes=start_host_bytes,
        peak_host_bytes=peak_host_bytes,
        planned_ssd_bytes=planned[Tier.SSD],
        drives=_compare_drives(counted, drives, parameters),
        without_drives=drives.failure,
        plain=compare_plain(ours, plain.steps, warm_up, tokens) if plain.steps else None,
        without_plain=plain.absence,
    )


def _compare_drives(steps: Sequence[StepResult], alone: DrivesAlone, parameters: int) -> DrivesFigures | None:
    """Set what steps moved beside what the drives did alone, in turn; None where one of the two is missing."""
    last = steps[-1]
    moved_bytes = last.storage_read_bytes + last.storage_write_bytes
    if not moved_bytes or alone.failure is not None:
        return None
    bytes_per_second = len(steps) * moved_bytes / sum(step.seconds for step in steps)
    return DrivesFigures(
        read_bytes=last.storage_read_bytes,
        write_bytes=last.storage_write_bytes,
        bytes_per_parameter=moved_bytes / parameters,
        bytes_per_second=bytes_per_second,
        own_bytes_per_second=alone.bytes_per_second,
        ratio=bytes_per_second / alone.bytes_per_second,
    )
