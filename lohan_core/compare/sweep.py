"""T_iter over the bytes that leave the GPU: the curve on which planners choose a point. Pure arithmetic.

Each point is a plan: block inputs leave the GPU first, then operators' outputs by the seconds of recomputation that
they save per byte, to host memory as long as there is room and to the drives from then on. States stay where one plan
put them and its deferred updates deferred, so that there is a curve for every such placement.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from attrs import evolve, frozen

from lohan_core.equations import paper_step_seconds
from lohan_core.lane_model import step_lane_seconds
from lohan_core.plan import BlockPlan, Budget, Plan, Tier, Workload
from lohan_core.profile import Profile, Role
from lohan_core.schedule.build import build_memory
from lohan_core.schedule.sizes import kept_bytes

__all__ = ["Sweep", "SweepPoint", "moved_bytes", "sweep"]

POINTS = 64


@frozen
class SweepPoint:
    """One plan: bytes of activations that leave the GPU in a step, and the step's length by two models."""

    moved_bytes: int
    lanes_seconds: float
    paper_seconds: float


@frozen(kw_only=True)
class Sweep:
    """A curve, and how many blocks have states on the GPU and in host memory, gradients there, and deferred updates."""

    gpu_states: int
    host_states: int
    host_gradients: int
    deferred: int
    points: tuple[SweepPoint, ...]


@frozen
class _Item:
    """Something that may leave the GPU: a block's input (no candidate), or an operator's output."""

    block: int
    candidate: int | None
    bytes: int


def moved_bytes(plan: Plan, profile: Profile, workload: Workload) -> int:
    """Count the bytes of activations that a plan sends off the GPU in a step."""
    return workload.micro_batches * sum(
        kept_bytes(block, decisions).moved
        for block, decisions in zip(profile.blocks, plan.blocks, strict=True)
        if block.role is Role.LAYER
    )


def sweep(profile: Profile, workload: Workload, budget: Budget, placement: Plan) -> Sweep:
    """Predict steps that move more and more, with states where ``placement`` has them."""
    nothing = tuple(evolve(decisions, inputs=Tier.GPU, keep={}) for decisions in placement.blocks)
    memory = build_memory(evolve(placement, blocks=nothing), profile, workload)
    room = max(0, budget.host_bytes - memory.bytes_on(Tier.HOST)) // workload.micro_batches
    return Sweep(
        gpu_states=sum(decisions.states is Tier.GPU for decisions in nothing),
        host_states=sum(decisions.states is Tier.HOST for decisions in nothing),
        host_gradients=sum(decisions.gradients is Tier.HOST for decisions in nothing),
        deferred=sum(decisions.deferred for decisions in nothing),
        points=tuple(
            SweepPoint(
                moved_bytes(plan, profile, workload),
                step_lane_seconds(plan, profile, workload),
                paper_step_seconds(plan, profile, workload, budget.host_bytes),
            )
            for plan in _plans(evolve(placement, blocks=nothing), _items(profile), room)
        ),
    )


def _items(profile: Profile) -> list[_Item]:
    layers = [(index, block) for index, block in enumerate(profile.blocks) if block.role is Role.LAYER]
    inputs = [_Item(index, None, block.input_bytes) for index, block in layers]
    candidates = [(c.seconds / c.bytes, index, c) for index, block in layers for c in block.candidates]
    candidates.sort(key=lambda entry: (-entry[0], entry[1], entry[2].index))
    return inputs + [_Item(index, candidate.index, candidate.bytes) for _, index, candidate in candidates]


def _plans(nothing: Plan, items: Sequence[_Item], room_bytes: int) -> Iterator[Plan]:
    """Make plans that move a growing part of ``items``; ``room_bytes`` of a micro-batch find room in host memory."""
    inputs = [Tier.GPU] * len(nothing.blocks)
    keep: list[dict[int, Tier]] = [{} for _ in nothing.blocks]
    step_bytes = sum(item.bytes for item in items) / POINTS
    moved, due = 0, 0.0
    for item in items:
        if moved >= due:
            yield _plan(nothing, inputs, keep)
            due = moved + step_bytes
        moved += item.bytes
        tier = Tier.HOST if moved <= room_bytes else Tier.SSD
        if item.candidate is None:
            inputs[item.block] = tier
        else:
            keep[item.block][item.candidate] = tier
    yield _plan(nothing, inputs, keep)


def _plan(nothing: Plan, inputs: Sequence[Tier], keep: Sequence[Mapping[int, Tier]]) -> Plan:
    blocks: list[BlockPlan] = [
        evolve(decisions, inputs=tier, keep=dict(kept))
        for decisions, tier, kept in zip(nothing.blocks, inputs, keep, strict=True)
    ]
    return evolve(nothing, blocks=tuple(blocks))
