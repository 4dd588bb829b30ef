"""What a comparison finds: for every planner a prediction and a measurement, or the reason why there is none."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from statistics import median_low

from attrs import field, frozen
from attrs.validators import min_len

from lohan_core.plan import Budget, Plan, Tier, Workload
from lohan_core.profile import Profile
from lohan_core.schedule.timeline import Timeline

__all__ = ["Comparison", "Contender", "MeasuredStep", "Measurement", "Prediction"]


@frozen(kw_only=True)
class Prediction:
    """A plan, the simulated timeline of its step, and the bytes that it takes on each tier.

    ``workload`` is what the plan is for: the comparison's, or with fewer slots on the GPU where only that fits.
    """

    plan: Plan
    workload: Workload
    timeline: Timeline
    peak_bytes: Mapping[Tier, int]


@frozen(kw_only=True)
class MeasuredStep:
    """One step as it was carried out.

    Bytes read and written are those that the storage moved; ``gpu_peak_bytes`` is the most device memory that the run's
    tensors took, None where the CPU computes.
    """

    seconds: float
    storage_read_bytes: int
    storage_write_bytes: int
    gpu_peak_bytes: int | None
    timeline: Timeline


@frozen(kw_only=True)
class Measurement:
    """What a plan's run came to.

    ``losses`` are those of all steps, from the first; ``steps`` those that count: not the first, in which memory is
    touched for the first time.
    """

    losses: tuple[float, ...]
    steps: Sequence[MeasuredStep] = field(validator=min_len(1))

    @property
    def typical(self) -> MeasuredStep:
        """The step of median length; of two in the middle, the shorter."""
        middle = median_low(step.seconds for step in self.steps)
        return next(step for step in self.steps if step.seconds == middle)


@frozen(kw_only=True)
class Contender:
    """One planner.

    ``reason`` says why there is no plan that fits, and then there is nothing else; or why a plan, which is then there,
    could not be carried out.
    """

    planner: str
    reason: str | None = None
    prediction: Prediction | None = None
    measurement: Measurement | None = None


@frozen(kw_only=True)
class Comparison:
    """All planners on one machine, model and workload, in the order in which they were named.

    ``groups`` are the planners that ran together, step by step in turn.
    """

    profile: Profile
    workload: Workload
    budget: Budget
    contenders: tuple[Contender, ...]
    groups: tuple[tuple[str, ...], ...] = ()

    @property
    def losses_identical(self) -> bool | None:
        """Whether all runs had the same losses, bit for bit; None if fewer than two ran."""
        runs = [contender for contender in self.contenders if contender.measurement]
        return None if len(runs) < 2 else not self.differing

    @property
    def differing(self) -> tuple[str, ...]:
        """Planners whose losses are not those of the first that ran, to the bit."""
        runs = [(contender.planner, contender.measurement) for contender in self.contenders]
        bits = [(name, _bits(measured.losses)) for name, measured in runs if measured]
        return tuple(name for name, losses in bits if losses != bits[0][1])


def _bits(losses: Sequence[float]) -> bytes:
    """Losses as they are stored: two that are not numbers are alike, and zeros of another sign differ."""
    return struct.pack(f"{len(losses)}d", *losses)
