"""Random problems for the schedule: profiles, plans and workloads, as hypothesis strategies."""

from __future__ import annotations

from attrs import frozen
from hypothesis import strategies as st
from tiny_backends import MACHINE

from lohan_core.layout import BLOCK_ALIGNMENT
from lohan_core.plan import VERSIONS_TO_SPECULATE, BlockPlan, Plan, Tier, Update, Workload
from lohan_core.profile import BlockProfile, Candidate, Machine, Profile, Role
from lohan_core.states import StateVector

ADAM = tuple(StateVector(name=name, value_bytes=4) for name in ("master", "exp_avg", "exp_avg_sq"))
NARROW = (StateVector(name="master", value_bytes=4), StateVector(name="momentum", value_bytes=1))
SECONDS = st.floats(0, 1e-2)


@frozen(kw_only=True)
class Problem:
    """What a schedule is built from."""

    plan: Plan
    profile: Profile
    workload: Workload


@st.composite
def machines(draw) -> Machine:
    """A machine whose lanes are of any speed."""
    rate = st.floats(1e6, 1e11)
    read, write = draw(rate), draw(rate)
    return Machine(
        name="any",
        gpu_flops_per_second=draw(rate),
        h2d_bytes_per_second=draw(rate),
        d2h_bytes_per_second=draw(rate),
        ssd_read_bytes_per_second=read,
        ssd_write_bytes_per_second=write,
        ssd_mixed_bytes_per_second=draw(st.floats(0.3, 1)) * (read + write),
        cpu_parameters_per_second=draw(rate),
        gpu_parameters_per_second=draw(rate),
        gpu_bytes=MACHINE.gpu_bytes,
        host_bytes=MACHINE.host_bytes,
        ssd_bytes=MACHINE.ssd_bytes,
        cpu_computes=draw(st.booleans()),
        memory_bytes_per_second=draw(st.none() | rate),
    )


@st.composite
def block_profiles(draw, name: str, role: Role, *, borrows: tuple[int, ...] = ()) -> BlockProfile:
    """One block; layers have candidates. A postlude may own nothing if it computes with the embedding."""
    sizes = draw(st.lists(st.integers(1, 20000), max_size=4)) if role is Role.LAYER else []
    return BlockProfile(
        name=name,
        role=role,
        elements=BLOCK_ALIGNMENT * draw(st.integers(0 if borrows else 1, 9)),
        input_bytes=0 if role is Role.PRELUDE else draw(st.integers(1, 20000)),
        flops=1.0,
        seconds=draw(SECONDS),
        transient_bytes=draw(st.integers(0, 10**6)),
        borrows=borrows,
        candidates=tuple(
            Candidate(
                index=3 * number,
                operator="an operator",
                occurrence=number,
                bytes=size,
                flops=1.0,
                seconds=draw(SECONDS),
                keeping_seconds=draw(SECONDS),
            )
            for number, size in enumerate(sizes)
        ),
    )


@st.composite
def profiles(draw) -> Profile:
    """A model of up to five layers, its head tied to the embedding or not, on any machine."""
    layers = draw(st.integers(1, 5))
    tied = draw(st.booleans())
    return Profile(
        machine=draw(machines()),
        micro_batch_size=1,
        sequence_length=8,
        weight_bytes=draw(st.sampled_from((2, 4))),
        states=draw(st.sampled_from((ADAM, NARROW))),
        blocks=(
            draw(block_profiles("prelude", Role.PRELUDE)),
            *(draw(block_profiles(f"layers.{number}", Role.LAYER)) for number in range(layers)),
            draw(block_profiles("postlude", Role.POSTLUDE, borrows=(0,) if tied else ())),
        ),
        arguments_bytes=draw(st.integers(0, 20000)),
    )


@st.composite
def block_plans(draw, block: BlockProfile, workload: Workload) -> BlockPlan:
    """Any decisions for a block."""
    tiers = st.sampled_from((None, *Tier))
    states = draw(st.sampled_from(tuple(Tier) if block.role is Role.LAYER else (Tier.HOST, Tier.SSD)))
    kept = {candidate.index: draw(tiers) for candidate in block.candidates}
    deferred = draw(st.booleans()) and workload.may_defer
    can_copy = states is Tier.HOST or (states is Tier.SSD and workload.versions == VERSIONS_TO_SPECULATE)
    return BlockPlan(
        states=states,
        inputs=draw(st.sampled_from(Tier)),
        keep={index: tier for index, tier in kept.items() if tier is not None},
        gradients=draw(st.sampled_from((Tier.HOST, Tier.SSD))) if states is Tier.SSD else Tier.HOST,
        deferred=deferred,
        speculative=draw(st.booleans()) and deferred and workload.may_speculate and can_copy,
    )


@st.composite
def problems(draw) -> Problem:
    """Any plan for any model and workload."""
    profile = draw(profiles())
    workload = Workload(
        micro_batches=draw(st.integers(1, 4)),
        update=draw(st.sampled_from(Update)),
        clips=draw(st.booleans()),
        chunk_elements=BLOCK_ALIGNMENT * draw(st.integers(1, 6)),
        versions=draw(st.sampled_from((1, 2, 3))),
        layer_slots=draw(st.integers(1, 3)),
        gradient_slots=draw(st.integers(1, 2)),
        host_extents=draw(st.booleans()),
    )
    decisions = [draw(block_plans(block, workload)) for block in profile.blocks]
    return Problem(plan=Plan(planner="any", blocks=tuple(decisions)), profile=profile, workload=workload)
