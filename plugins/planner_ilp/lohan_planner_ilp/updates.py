"""How a group of identical blocks is updated: how many deferred, how many with states, or gradients, on which tier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import frozen

from lohan_core.lane_amounts import (
    Amounts,
    gpu_state_amounts,
    gradient_amounts,
    state_amounts,
    update_amounts,
)
from lohan_core.plan import Tier, Workload
from lohan_core.profile import Profile
from lohan_planner_ilp.groups import Group, spread_evenly
from lohan_planner_ilp.program import Linear, Program, total

__all__ = ["GroupUpdates", "Updated", "declare_updates"]


@frozen
class Updated:
    """What a plan says about one block's update."""

    states: Tier
    gradients: Tier
    deferred: bool


@frozen(kw_only=True)
class GroupUpdates:
    """The variables of one group: see the legend of :mod:`lohan_planner_ilp.formulate`."""

    group: Group
    workload: Workload
    deferred: Linear
    host_states: Mapping[bool, Linear]
    gpu_states: Mapping[bool, Linear]
    ssd_gradients: Linear

    @property
    def all_host_states(self) -> Linear:
        """Blocks whose states live in host memory."""
        return total(self.host_states.values())

    @property
    def all_gpu_states(self) -> Linear:
        """Blocks whose states live on the GPU."""
        return total(self.gpu_states.values())

    @property
    def in_memory(self) -> Linear:
        """Blocks whose states live in host memory or on the GPU."""
        return self.all_host_states + self.all_gpu_states

    @property
    def host_gradients(self) -> Linear:
        """Blocks whose gradients wait in host memory while their states are on the drives."""
        waiting = self._on_ssd(deferred=True)
        if self.workload.all_updates_wait:
            waiting += self._on_ssd(deferred=False)
        return waiting - self.ssd_gradients

    def _on_ssd(self, *, deferred: bool) -> Linear:
        return self._blocks(deferred=deferred) - self.host_states[deferred] - self.gpu_states[deferred]

    def _blocks(self, *, deferred: bool) -> Linear:
        return self.deferred if deferred else Linear(constant=self.group.size) - self.deferred

    def uses(self, profile: Profile) -> Iterator[tuple[Amounts, Linear]]:
        """List what the lanes have to do for a block, and for how many blocks."""
        first = self.group.blocks[0]
        for deferred in (False, True):
            blocks = self._blocks(deferred=deferred)
            yield update_amounts(profile, self.workload, first, deferred=deferred), blocks
            yield state_amounts(profile, self.workload, first, deferred=deferred), self._on_ssd(deferred=deferred)
            on_gpu = self.gpu_states[deferred]
            if on_gpu != Linear():
                yield gpu_state_amounts(profile, self.workload, first, deferred=deferred), on_gpu
        # Where updates may be deferred, all that wait are.
        yield gradient_amounts(profile, self.workload, first, deferred=self.workload.may_defer), self.ssd_gradients

    def read(self, values: list[float]) -> list[Updated]:
        """Spread a solution's counts evenly over the blocks."""

        def count(expression: Linear) -> int:
            return round(expression.value(values))

        kinds = spread_evenly(
            {
                (tier, deferred): count(blocks)
                for deferred in (False, True)
                for tier, blocks in (
                    (Tier.GPU, self.gpu_states[deferred]),
                    (Tier.HOST, self.host_states[deferred]),
                    (Tier.SSD, self._on_ssd(deferred=deferred)),
                )
            }
        )
        waiting = iter(spread_evenly({Tier.HOST: count(self.host_gradients), Tier.SSD: count(self.ssd_gradients)}))
        waits = self.workload.all_updates_wait
        return [
            Updated(states, next(waiting) if states is Tier.SSD and (waits or deferred) else Tier.HOST, deferred)
            for states, deferred in kinds
        ]


def declare_updates(
    program: Program, workload: Workload, group: Group, *, elements: int, states: frozenset[Tier], balances: bool
) -> GroupUpdates:
    """Add a group's variables to the program.

    Args:
        program: the program.
        workload: what the step does.
        group: the blocks.
        elements: parameters of each of them.
        states: where their states may live: any tiers, or one of host and ssd.
        balances: whether updates that need not wait may be deferred.
    """
    everyone, waits = Linear(constant=group.size), workload.all_updates_wait
    deferred = everyone if workload.may_defer and waits else Linear()
    if workload.may_defer and not waits and balances and elements:
        deferred = program.variable(group.size, whole=True)

    def some(blocks: Linear) -> Linear:
        part = program.variable(group.size, whole=True)
        # [Constraint] Some of these blocks are no more than there are.
        program.at_most(part, blocks)
        return part

    def on_host(blocks: Linear) -> Linear:
        if states == {Tier.HOST} or blocks == Linear():
            return blocks
        return Linear() if states == {Tier.SSD} else some(blocks)

    nobody = Linear()
    of = {False: everyone - deferred, True: deferred}
    gpu_states = {d: some(blocks) if Tier.GPU in states and blocks != nobody else nobody for d, blocks in of.items()}
    host_states = {d: on_host(blocks - gpu_states[d]) for d, blocks in of.items()}
    on_ssd = {d: blocks - gpu_states[d] - host_states[d] for d, blocks in of.items()}
    waiting = total(on_ssd.values()) if waits else on_ssd[True]
    return GroupUpdates(
        group=group,
        workload=workload,
        deferred=deferred,
        host_states=host_states,
        gpu_states=gpu_states,
        ssd_gradients=some(waiting) if elements and waiting != nobody else nobody,
    )
