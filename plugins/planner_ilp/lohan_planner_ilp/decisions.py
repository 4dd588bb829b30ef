"""What is decided about a group of identical blocks: how they are updated, where their inputs and candidates wait."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from lohan_core.layout import round_up
from lohan_core.plan import BlockPlan, Tier, Workload
from lohan_core.profile import BlockProfile, Profile, Role
from lohan_core.schedule.sizes import states_bytes
from lohan_core.states import SECTOR_BYTES
from lohan_planner_ilp.groups import Group, spread_evenly
from lohan_planner_ilp.program import Linear, Program, total
from lohan_planner_ilp.updates import GroupUpdates, declare_updates

__all__ = ["Freedom", "GroupVariables", "declare_group"]

INPUT = -1
"""Stands for a block's input where candidates are named by their index."""


@frozen(kw_only=True)
class Freedom:
    """What a planner may decide: tiers of inputs and of candidates, and of states (one of them: there they all are).

    On the GPU it may have states of layers only, where the optimizer can update them there.

    ``balances``: whether it may defer updates that need not wait. Where all must, for the norm to clip by, all are
    deferred if the workload lets them: the lanes then never have more to do, and forward's idle ones do it.
    """

    inputs: frozenset[Tier]
    candidates: frozenset[Tier]
    states: frozenset[Tier]
    balances: bool


@frozen(kw_only=True)
class GroupVariables:
    """The variables of one group: see the legend of :mod:`lohan_planner_ilp.formulate`.

    ``bytes``: of each input or candidate that is placed, of one micro-batch.
    """

    updates: GroupUpdates
    placed: Mapping[int, Mapping[Tier, Linear]]
    bytes: Mapping[int, int]

    def read(self, values: list[float]) -> list[BlockPlan]:
        """Spread a solution's counts evenly over the blocks."""
        size = self.updates.group.size
        updates = self.updates.read(values)
        tiers = {}
        for index, placed in self.placed.items():
            counts: dict[Tier | None, int] = {tier: round(blocks.value(values)) for tier, blocks in placed.items()}
            tiers[index] = spread_evenly({**counts, None: size - sum(counts.values())})
        plans = []
        for place in range(size):
            here = {item: chosen[place] for item, chosen in tiers.items()}
            plans.append(
                BlockPlan(
                    states=updates[place].states,
                    inputs=here.pop(INPUT, None) or Tier.GPU,
                    keep={item: tier for item, tier in here.items() if tier is not None},
                    gradients=updates[place].gradients,
                    deferred=updates[place].deferred,
                )
            )
        return plans


def declare_group(
    program: Program, profile: Profile, workload: Workload, group: Group, *, gpu_bytes: int, freedom: Freedom
) -> GroupVariables:
    """Add a group's variables to the program.

    Args:
        program: the program.
        profile: measurements of the model and the machine.
        workload: what the step does.
        group: the blocks.
        gpu_bytes: the GPU's budget; states that are larger do not live there.
        freedom: what may be decided.
    """
    block = profile.blocks[group.blocks[0]]
    sizes = {candidate.index: round_up(candidate.bytes, SECTOR_BYTES) for candidate in block.candidates}
    if block.role is not Role.PRELUDE:
        sizes[INPUT] = round_up(block.input_bytes, SECTOR_BYTES)
    variables = GroupVariables(
        updates=declare_updates(
            program,
            workload,
            group,
            elements=block.elements,
            states=_state_tiers(block, profile, gpu_bytes, freedom),
            balances=freedom.balances,
        ),
        placed={
            index: {
                tier: program.variable(group.size, whole=True)
                for tier in Tier
                if tier in (freedom.inputs if index == INPUT else freedom.candidates)
            }
            for index in sizes
        },
        bytes=sizes,
    )
    for index, tiers in variables.placed.items():
        # [Constraint] An input waits somewhere, a candidate in each block at most once.
        if index == INPUT:
            program.equal(total(tiers.values()), group.size)
        else:
            program.at_most(total(tiers.values()), group.size)
    return variables


def _state_tiers(block: BlockProfile, profile: Profile, gpu_bytes: int, freedom: Freedom) -> frozenset[Tier]:
    """Tiers on which the states of a block may live."""
    if (
        block.role is Role.LAYER
        and block.elements
        and states_bytes(block, profile) <= gpu_bytes
        and profile.machine.gpu_parameters_per_second is not None
    ):
        return freedom.states
    return freedom.states - {Tier.GPU}
