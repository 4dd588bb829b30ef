"""The figures of ``lohan bench step``: from what was measured to rows, and from rows to a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from attrs import frozen

from lohan_core.model.choices import Attention, Loss
from lohan_core.units import format_bytes

if TYPE_CHECKING:
    from lohan_core.bench.plain_trainer import PlainStep
    from lohan_core.engine.step import StepResult
    from lohan_core.schedule.timeline import Timeline

__all__ = [
    "DrivesFigures",
    "PlainFigures",
    "StepBench",
    "StepBenchRow",
    "busy_by_resource",
    "chain_seconds",
    "compare_plain",
    "render",
]

DRIVES = "ssd"


@frozen(kw_only=True)
class DrivesFigures:
    """What the drives did in a step, beside what they can do with this mix of reads and writes alone."""

    read_bytes: int
    write_bytes: int
    bytes_per_parameter: float
    bytes_per_second: float
    own_bytes_per_second: float
    ratio: float


@frozen(kw_only=True)
class PlainFigures:
    """Plain PyTorch on the same model, tokens and device. ``ratio`` is its step's time over LoHan's, step by step.

    ``attention`` and ``loss_computed`` are as for LoHan's side. Its loss is always whole.
    """

    attention: Attention
    loss_computed: Loss
    step_seconds: tuple[float, ...]
    tokens_per_second: float
    losses: tuple[float, ...]
    peak_gpu_bytes: int
    ratio: float


@frozen(kw_only=True)
class StepBenchRow:
    """One batch size. Single figures are medians over the steps.

    ``attention`` and ``loss_computed`` say by which kernels, and whether in slices, LoHan's side computed them.

    ``busy_seconds`` is by lane, and for ``ssd`` the time in which reads or writes or both were on their way; a lane of
    the drives is slower while the other is busy, so that of the two ``ssd`` is the resource. ``step_per_busiest`` is
    the step's time over that of the resource that was busy longest. ``chain_seconds`` is what a step cannot go below
    where gradients are clipped, whatever overlaps: head and backward on the GPU, and only then, when the norm is known,
    the CPU's updates, without which the next backward cannot begin; 0 where nothing clips, or where updates were made
    on the speculation that nothing would be. ``step_per_bound`` is over the longer of both. ``clipped_steps`` are those
    counted whose gradients were scaled down, ``speculative_steps`` those whose speculative updates came to count.
    ``predicted_*`` are the simulation's of the same schedule; ``departure`` is by which share of the prediction the
    step was longer.

    ``planned_*_bytes`` are what the plan reckons with on each tier, on the GPU with the allocator's fragments.
    ``step_gpu_bytes`` is what was allocated there at most during the steps, ``peak_gpu_bytes`` what torch's allocator
    took from the device at most, profiling included. ``gpu_retries``: how often in all steps it ran out and gave all
    free pages back before it went on; each time all streams stop. ``pinned_bytes`` is what was registered with the
    driver; ``start_host_bytes`` the process's resident memory before the run was opened, and ``peak_host_bytes`` its
    most so far, start-up and pinned pages included.

    ``drives`` is None where a step moves nothing there, or where they could not be measured, for the reason that
    ``without_drives`` gives; ``plain`` where it was not measured, for the reason that ``without_plain`` gives.
    """

    batch_size: int
    plan: str
    attention: Attention
    loss_computed: Loss
    step_seconds: tuple[float, ...]
    seconds: float
    tokens_per_second: float
    busy_seconds: Mapping[str, float]
    busiest: str
    step_per_busiest: float
    chain_seconds: float
    step_per_bound: float
    predicted_seconds: float
    predicted_busy_seconds: Mapping[str, float]
    departure: float
    losses: tuple[float, ...]
    clipped_steps: int
    speculative_steps: int
    planned_gpu_bytes: int
    step_gpu_bytes: int
    peak_gpu_bytes: int
    gpu_retries: int
    planned_host_bytes: int
    pinned_bytes: int
    start_host_bytes: int
    peak_host_bytes: int
    planned_ssd_bytes: int
    drives: DrivesFigures | None
    without_drives: str | None
    plain: PlainFigures | None
    without_plain: str | None


@frozen(kw_only=True)
class StepBench:
    """What was measured, and on what."""

    workload: str
    parameters: int
    sequence_length: int
    settings: Mapping[str, Any]
    device: str
    cores: int
    torch: str
    rows: tuple[StepBenchRow, ...]


def busy_by_resource(timeline: Timeline) -> dict[str, float]:
    """Return for how many seconds each lane was busy, and the drives as a whole."""
    from lohan_core.schedule.task import DRIVE_LANES

    busy = {lane.value: seconds for lane, seconds in timeline.busy_seconds().items()}
    return {**busy, DRIVES: timeline.occupied_seconds(DRIVE_LANES)}


def chain_seconds(timeline: Timeline) -> float:
    """Return for how long a step's head, backward and updates on the CPU ran, which clipping puts one after another."""
    from lohan_core.schedule.task import Op

    chain = {Op.TURN, Op.BACKWARD, Op.UPDATE}
    spans = zip(timeline.schedule.tasks, timeline.spans, strict=True)
    return sum(span.end - span.start for task, span in spans if task.op in chain)


def busiest_resource(busy_seconds: Mapping[str, float]) -> str:
    """Return the resource that was busy longest; the drives are one."""
    from lohan_core.schedule.task import DRIVE_LANES

    return max(busy_seconds.keys() - set(DRIVE_LANES), key=lambda name: busy_seconds[name])


def compare_plain(ours: Sequence[StepResult], theirs: Sequence[PlainStep], warm_up: int, tokens: int) -> PlainFigures:
    """Reduce plain PyTorch's steps, of which each followed one of ours."""
    pairs = list(zip(ours, theirs, strict=True))[warm_up:]
    return PlainFigures(
        step_seconds=tuple(plain.seconds for _, plain in pairs),
        tokens_per_second=tokens / median(plain.seconds for _, plain in pairs),
        losses=tuple(plain.loss for plain in theirs),
        peak_gpu_bytes=pairs[-1][1].peak_gpu_bytes,
        attention=pairs[-1][1].attention,
        loss_computed=Loss.WHOLE,
        ratio=median(plain.seconds / our.seconds for our, plain in pairs),
    )


def render(result: StepBench) -> str:
    """Lay the result out for people."""
    head = f"{result.workload}: {result.parameters / 1e9:.3g} B parameters, {result.sequence_length} tokens a row"
    columns = ("batch", "tokens/s", "plain", "ratio", "seconds", "departs", "to busiest", "GPU", "plain GPU", "host")
    lines = [
        f"{head}; {result.device}, {result.cores} cores, torch {result.torch}",
        "".join(f"{name:>12}" for name in columns),
    ]
    for row in result.rows:
        plain = row.plain
        cells = (
            str(row.batch_size),
            f"{row.tokens_per_second:.0f}",
            f"{plain.tokens_per_second:.0f}" if plain else "-",
            f"{plain.ratio:.3f}" if plain else "-",
            f"{row.seconds:.3f}",
            f"{row.departure:+.1%}",
            f"{row.step_per_busiest:.3f}",
            format_bytes(row.peak_gpu_bytes),
            format_bytes(plain.peak_gpu_bytes) if plain else "-",
            format_bytes(row.peak_host_bytes),
        )
        lines.append("".join(f"{cell:>12}" for cell in cells))
        lines += [f"{'':12}{line}" for line in _details(row)]
    return "\n".join(lines)


def _details(row: StepBenchRow) -> list[str]:
    busy = ", ".join(
        f"{name} {seconds:.3f} ({row.predicted_busy_seconds[name]:.3f})" for name, seconds in row.busy_seconds.items()
    )
    plain = row.plain
    plain_kernels = f"; plain: {plain.attention} attention, loss {plain.loss_computed}" if plain else ""
    plain_loss = f", plain {plain.losses[-1]:.6f}" if plain else ""
    lines = [
        row.plan,
        f"{row.attention} attention, loss {row.loss_computed}{plain_kernels}",
        (
            f"{row.step_per_busiest:.3f} of the time that {row.busiest} is busy, {row.step_per_bound:.3f} of what "
            f"cannot overlap; predicted {row.predicted_seconds:.3f} s"
        ),
        f"seconds busy (predicted): {busy}",
        (
            f"host: planned {format_bytes(row.planned_host_bytes)}, pinned {format_bytes(row.pinned_bytes)}, resident "
            f"{format_bytes(row.start_host_bytes)} at the start and {format_bytes(row.peak_host_bytes)} at most"
        ),
        (
            f"GPU: planned {format_bytes(row.planned_gpu_bytes)}, {format_bytes(row.step_gpu_bytes)} in steps, "
            f"allocator ran out {row.gpu_retries} times; drives: planned {format_bytes(row.planned_ssd_bytes)}"
        ),
        f"loss of step {len(row.losses)}: {row.losses[-1]:.6f}{plain_loss}",
    ]
    if row.drives is not None:
        drives = row.drives
        lines.append(
            f"drives: {drives.bytes_per_parameter:.1f} bytes per parameter, {drives.bytes_per_second / 1e9:.2f} GB/s; "
            f"alone with this mix {drives.own_bytes_per_second / 1e9:.2f} GB/s: {drives.ratio:.3f}"
        )
    if row.without_drives is not None:
        lines.append(f"drives: not measured alone: {row.without_drives}")
    if row.without_plain is not None:
        lines.append(f"plain: {row.without_plain}")
    return lines
