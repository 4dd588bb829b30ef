"""What the lanes have to do in a step: how much of each resource each phase uses, by a plan's decisions.

How long that takes is said by :mod:`lohan_core.lane_model`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import cache
from typing import TypeAlias

import numpy as np
from attrs import evolve
from numpy.typing import NDArray

from lohan_core.plan import Plan, Tier, Workload
from lohan_core.profile import BlockProfile, Profile, Role
from lohan_core.schedule.sizes import keeping_seconds, kept_bytes, recomputing_seconds
from lohan_core.states import StateVector, chunk_record_bytes

__all__ = [
    "Amounts",
    "Number",
    "Phase",
    "Resource",
    "activation_amounts",
    "add_amounts",
    "fixed_amounts",
    "gpu_state_amounts",
    "gradient_amounts",
    "plan_amounts",
    "state_amounts",
    "update_amounts",
    "update_phase",
    "weight_loads",
]


class Phase(StrEnum):
    """A part of the step that is as long as its busiest lane."""

    FORWARD = "forward"
    BACKWARD = "backward"
    UPDATE = "update"
    """After backward, where gradients wait and updates are not deferred; else this phase is empty."""


class Resource(StrEnum):
    """What a phase uses: seconds of the GPU, parameters on the CPU, else bytes."""

    GPU = "gpu"
    H2D = "h2d"
    D2H = "d2h"
    READ = "read"
    WRITE = "write"
    STATE_READ = "state_read"
    """Read by updates: P32 and OS32."""
    STATE_WRITE = "state_write"
    """Written by updates: P32, OS32 and P16."""
    CPU = "cpu"


Number: TypeAlias = float | NDArray[np.float64]
Amounts: TypeAlias = Mapping[tuple[Phase, Resource], Number]
"""How much of each resource each phase uses; what is not named is not used."""


def plan_amounts(plan: Plan, profile: Profile, workload: Workload) -> Amounts:
    """How much of each resource a plan uses: the work of its schedule's tasks, by phase and lane."""
    parts = [fixed_amounts(profile, workload)]
    recomputed = keeping = 0.0
    for index, (block, decisions) in enumerate(zip(profile.blocks, plan.blocks, strict=True)):
        when, deferred = workload, decisions.deferred
        if decisions.speculative:  # all goes well: as if there were nothing to wait for, but for gradients that do
            when, deferred = evolve(workload, clips=False), False
        parts.append(update_amounts(profile, when, index, deferred=deferred))
        if decisions.states is Tier.SSD:
            parts.append(state_amounts(profile, when, index, deferred=deferred))
        if decisions.states is Tier.GPU:
            parts.append(gpu_state_amounts(profile, when, index, deferred=deferred))
        if decisions.gradients is Tier.SSD and decisions.speculative:
            parts.append({(Phase.BACKWARD, Resource.WRITE): block.elements * profile.weight_bytes})
        elif decisions.gradients is Tier.SSD:
            parts.append(gradient_amounts(profile, when, index, deferred=deferred))
        held = kept_bytes(block, decisions)
        parts.append(activation_amounts(block, workload, Tier.HOST, held.host))
        parts.append(activation_amounts(block, workload, Tier.SSD, held.ssd))
        recomputed += recomputing_seconds(block, decisions)
        keeping += keeping_seconds(block, decisions)
    parts.append({(Phase.BACKWARD, Resource.GPU): workload.micro_batches * recomputed})
    parts.append({(Phase.FORWARD, Resource.GPU): workload.micro_batches * keeping})
    return add_amounts(parts)


def fixed_amounts(profile: Profile, workload: Workload) -> Amounts:
    """What every plan uses: forward, backward without recomputation, weights up, gradients down."""
    forward, backward = weight_loads(profile, workload.layer_slots)
    seconds = [workload.micro_batches * block.seconds for block in profile.blocks]
    weights = [block.elements * profile.weight_bytes for block in profile.blocks]
    return {
        (Phase.FORWARD, Resource.GPU): sum(seconds[:-1]),  # the postlude's one pass is part of its turn, in backward
        (Phase.BACKWARD, Resource.GPU): workload.micro_batches
        * sum(block.backward_seconds for block in profile.blocks),
        (Phase.FORWARD, Resource.H2D): sum(n * size for n, size in zip(forward, weights, strict=True)),
        (Phase.BACKWARD, Resource.H2D): sum(n * size for n, size in zip(backward, weights, strict=True)),
        (Phase.BACKWARD, Resource.D2H): sum(weights),
    }


def weight_loads(profile: Profile, layer_slots: int) -> tuple[list[int], list[int]]:
    """How often forward, and how often backward, bring each block's weights to the GPU.

    The last ``layer_slots`` layers stay there in between; borrowed weights are brought for the borrower too.
    """
    postlude = len(profile.blocks) - 1
    stay = postlude - min(layer_slots, postlude - 1)
    forward = [1] * (postlude + 1)
    backward = [int(index < stay) for index in range(postlude + 1)]
    for owner in profile.blocks[postlude].borrows:
        forward[owner] += 1
    return forward, backward


def update_phase(workload: Workload, *, deferred: bool) -> Phase:
    """In which phase a block is updated."""
    if deferred:
        return Phase.FORWARD
    return Phase.UPDATE if workload.all_updates_wait else Phase.BACKWARD


def update_amounts(profile: Profile, workload: Workload, index: int, *, deferred: bool) -> Amounts:
    """What a block's update uses wherever its states live."""
    return {(update_phase(workload, deferred=deferred), Resource.CPU): profile.blocks[index].elements}


def state_amounts(profile: Profile, workload: Workload, index: int, *, deferred: bool) -> Amounts:
    """What a block uses more when its states live on the drives. A deferred update hands its fresh weights on."""
    block = profile.blocks[index]
    updates = update_phase(workload, deferred=deferred)
    weights = block.elements * profile.weight_bytes
    forward, backward = weight_loads(profile, workload.layer_slots)
    states = _states_bytes(profile.states, block.elements, workload.chunk_elements)
    return {
        (Phase.FORWARD, Resource.READ): (forward[index] - deferred) * weights,
        (Phase.BACKWARD, Resource.READ): backward[index] * weights,
        (updates, Resource.STATE_READ): states,
        (updates, Resource.STATE_WRITE): states + weights,
    }


@cache
def _states_bytes(vectors: tuple[StateVector, ...], elements: int, chunk_elements: int) -> int:
    """Bytes of a block's states, chunk by chunk; all chunks but the last are alike."""
    whole, rest = divmod(elements, chunk_elements)
    return whole * chunk_record_bytes(vectors, chunk_elements) + (chunk_record_bytes(vectors, rest) if rest else 0)


def gpu_state_amounts(profile: Profile, workload: Workload, index: int, *, deferred: bool) -> Amounts:
    """What a layer uses more, and less, when its states live on the GPU: it is updated there, and moves nothing."""
    rate = profile.machine.gpu_parameters_per_second
    if rate is None:
        raise ValueError("states on the GPU, and the profile has no rate of updates there")
    elements = profile.blocks[index].elements
    weights = elements * profile.weight_bytes
    forward, backward = weight_loads(profile, workload.layer_slots)
    return add_amounts(
        [
            {
                (Phase.FORWARD, Resource.H2D): -forward[index] * weights,
                (Phase.BACKWARD, Resource.H2D): -backward[index] * weights,
                (Phase.BACKWARD, Resource.D2H): -weights,
            },
            {
                (update_phase(workload, deferred=deferred), Resource.CPU): -elements,
                (update_phase(workload, deferred=deferred), Resource.GPU): elements / rate,
            },
        ]
    )


def gradient_amounts(profile: Profile, workload: Workload, index: int, *, deferred: bool) -> Amounts:
    """What a block uses more when its gradients wait on the drives; nothing where they need not wait."""
    updates = update_phase(workload, deferred=deferred)
    if updates is Phase.BACKWARD:
        return {}
    gradients = profile.blocks[index].elements * profile.weight_bytes
    return {(Phase.BACKWARD, Resource.WRITE): gradients, (updates, Resource.READ): gradients}


def activation_amounts(block: BlockProfile, workload: Workload, tier: Tier, size_bytes: Number) -> Amounts:
    """What a block uses when ``size_bytes`` of each micro-batch wait on ``tier``: there and back. Layers only move."""
    moved = workload.micro_batches * size_bytes
    if block.role is not Role.LAYER or tier is Tier.GPU:
        return {}
    pcie = {(Phase.FORWARD, Resource.D2H): moved, (Phase.BACKWARD, Resource.H2D): moved}
    if tier is Tier.HOST:
        return pcie
    return pcie | {(Phase.FORWARD, Resource.WRITE): moved, (Phase.BACKWARD, Resource.READ): moved}


def add_amounts(parts: Iterable[Amounts]) -> Amounts:
    """Add amounts up, use by use."""
    total: defaultdict[tuple[Phase, Resource], Number] = defaultdict(float)
    for part in parts:
        for key, amount in part.items():
            total[key] = total[key] + amount
    return dict(total)
