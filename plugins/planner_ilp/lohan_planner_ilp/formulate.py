r"""The program: which block's states, inputs and candidates wait where, so that the core's lane model is shortest.

Legend, g a group of identical blocks (n of them), i a block input or a candidate, t a tier:

==================  ==========  ==============================================================================
``deferred``        0..n        blocks of g whose update is deferred; the others' follows at once, or after backward
``host_states[d]``  0..n        blocks of g, deferred or not as d says, whose states live in host memory; the others'
                                do on the drives
``gpu_states[d]``   0..n        likewise, on the GPU
``ssd_gradients``   0..n        blocks of g whose states live on the drives and whose gradients wait there too; those of
                                others with states on the drives wait in host memory
``placed[i][t]``    0..n        blocks of g whose i waits on t; where a candidate is on none, it is recomputed
``moves[i]``        0 or 1      whether i leaves the GPU in any block of g
``spills[i]``       0 or 1      whether i goes to the drives in any block of g
``recomputed``      seconds     of recomputation of one micro-batch in g
``moved``           MiB         the most that one block moves of one micro-batch
``spilled``         MiB         the most that one block has on the drives of one micro-batch
``any_on_ssd``      0 or 1      whether any block's states live on the drives
``any_in_memory``   0 or 1      whether any block's states do not
``seconds[phase]``  time units  length of forward, backward, and of updates that wait
``missing[tier]``   MiB         what the budget lacks (only in the elastic program, which finds the nearest plan)
==================  ==========  ==============================================================================
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from attrs import define, field, frozen

from lohan_core.lane_amounts import Amounts, Phase, Resource, activation_amounts, fixed_amounts
from lohan_core.lane_model import lane_limits, lane_seconds, unit_seconds
from lohan_core.layout import round_up
from lohan_core.plan import BlockPlan, Budget, Plan, Tier, Workload
from lohan_core.profile import Profile, Role
from lohan_core.schedule.build import SPILL_SLOTS, build_memory
from lohan_core.schedule.sizes import FRAGMENTS_SHARE, KEPT_IN_FLIGHT, saving_bytes, states_bytes, with_fragments
from lohan_core.states import SECTOR_BYTES
from lohan_planner_ilp.decisions import Freedom, GroupVariables, declare_group
from lohan_planner_ilp.groups import Group
from lohan_planner_ilp.program import Linear, Program, total

__all__ = ["Formulation"]

WITH_FRAGMENTS = 1 + 1 / FRAGMENTS_SHARE  # of what comes and goes on the GPU
MIB = float(2**20)
SAME = 1e-10  # a step is as short as another if it is not longer by more than this part of it


@frozen(kw_only=True)
class _Buffers:
    """The legend's variables of all groups together."""

    moved: Linear
    spilled: Linear
    any_on_ssd: Linear
    any_in_memory: Linear


@define(kw_only=True)
class Formulation:
    """One program, and the way back from its values to a plan."""

    profile: Profile
    workload: Workload
    budget: Budget
    freedom: Freedom
    groups: Sequence[Group]
    elastic: bool = False
    program: Program = field(factory=Program)
    _variables: list[GroupVariables] = field(init=False)
    _unit_seconds: float = field(init=False)
    _lengths: Linear = field(init=False)
    _work: Linear = field(init=False)

    def __attrs_post_init__(self) -> None:
        machine, update = self.profile.machine, self.workload.update
        self._unit_seconds = float(lane_seconds(fixed_amounts(self.profile, self.workload), machine, update))
        self._variables = [
            declare_group(
                self.program,
                self.profile,
                self.workload,
                group,
                gpu_bytes=self.budget.gpu_bytes,
                freedom=self.freedom,
            )
            for group in self.groups
        ]
        missing = self._limit_memory()
        self._limit_time()
        self.program.objective = total(missing) if self.elastic else self._lengths

    def seconds(self, objective: float) -> float:
        """Length of the step whose objective this is."""
        return objective * self._unit_seconds

    def prefer_least_work(self, objective: float) -> None:
        """Turn to the second question: of plans whose step is as short as ``objective``, which works the lanes least?

        There are many, because only the busiest lane counts; less work is less waiting and less wear of the drives.
        """
        # [Constraint] The step is no longer than the shortest, but for what the solver's tolerance makes of equal sums.
        self.program.at_most(self._lengths, objective * (1 + SAME))
        self.program.objective = self._work

    def _buffers(self) -> _Buffers:
        """Add the constraints of what is there as soon as, or as large as, one block needs it."""
        program = self.program
        buffers = _Buffers(
            moved=program.variable(),
            spilled=program.variable(),
            any_on_ssd=program.variable(1, whole=True),
            any_in_memory=program.variable(1, whole=True),
        )
        for group, variables in zip(self.groups, self._variables, strict=True):
            # [Constraint] Buffers are as large as the largest block: where identical blocks differ, as all they hold.
            program.at_most(self._held(group, variables, {Tier.HOST, Tier.SSD}), buffers.moved)
            program.at_most(self._held(group, variables, {Tier.SSD}), buffers.spilled)
            in_memory = variables.updates.in_memory
            # [Constraint] Staging and record buffers are there as soon as one block's states live on the drives.
            program.at_most(Linear(constant=group.size) - in_memory, group.size * buffers.any_on_ssd)
            if self.profile.blocks[group.blocks[0]].elements:
                # [Constraint] The record by which states in memory are saved is there as soon as one block's are.
                program.at_most(in_memory, group.size * buffers.any_in_memory)
        return buffers

    def _limit_memory(self) -> list[Linear]:
        """Add the budget's constraints; return what the elastic program may exceed them by."""
        program, workload = self.program, self.workload
        saving = saving_bytes(self.profile) if workload.host_extents else 0
        buffers = self._buffers()
        fixed, state_buffers = self._fixed_bytes(saving)
        used = {tier: [Linear(constant=fixed[tier] / MIB)] for tier in Tier}
        used[Tier.GPU].append(WITH_FRAGMENTS * KEPT_IN_FLIGHT * buffers.moved)
        used[Tier.HOST].append(SPILL_SLOTS * buffers.spilled)
        used[Tier.HOST].append(state_buffers / MIB * buffers.any_on_ssd)
        used[Tier.HOST].append(saving / MIB * buffers.any_in_memory)
        for group, variables in zip(self.groups, self._variables, strict=True):
            block = self.profile.blocks[group.blocks[0]]
            weights, states = block.elements * self.profile.weight_bytes, states_bytes(block, self.profile)
            used[Tier.HOST].append(states / MIB * variables.updates.all_host_states)
            used[Tier.GPU].append(states / MIB * variables.updates.all_gpu_states)
            if not workload.host_extents:
                used[Tier.SSD].append(-workload.versions * states / MIB * variables.updates.in_memory)
            used[Tier.HOST].append(weights / MIB * variables.updates.host_gradients)
            used[Tier.SSD].append(weights / MIB * variables.updates.ssd_gradients)
            for index, tiers in variables.placed.items():
                for tier, count in tiers.items():
                    share = WITH_FRAGMENTS if tier is Tier.GPU else 1.0
                    used[tier].append(share * workload.micro_batches * variables.bytes[index] / MIB * count)
        missing = [program.variable() for _ in Tier] if self.elastic else [Linear() for _ in Tier]
        for tier, lacks in zip(Tier, missing, strict=True):
            # [Constraint] Each tier holds what waits on it, its buffers, and what every plan takes.
            program.at_most(total(used[tier]) - lacks, self.budget.by_tier[tier] / MIB)
        return missing

    def _held(self, group: Group, variables: GroupVariables, tiers: set[Tier]) -> Linear:
        """MiB that one block of the group has on ``tiers`` of one micro-batch, or more than any of them has."""
        parts = []
        for index, placed in variables.placed.items():
            count = total(variable for tier, variable in placed.items() if tier in tiers)
            if group.size > 1 and count.terms:
                anywhere = self.program.variable(1, whole=True)
                # [Constraint] What is there for one block counts for every block of the group.
                self.program.at_most(count, group.size * anywhere)
                count = anywhere
            parts.append(variables.bytes[index] / MIB * count)
        return total(parts)

    def _fixed_bytes(self, saving: int) -> tuple[dict[Tier, int], int]:
        """Bytes that every plan takes on each tier, and host bytes of buffers for states on the drives.

        Args:
            saving: host bytes that plans with states in memory take to save them.
        """
        waiting = {
            states: build_memory(
                Plan(
                    planner="",
                    blocks=tuple(
                        BlockPlan(states=states, inputs=Tier.GPU, gradients=Tier.HOST) for _ in self.profile.blocks
                    ),
                ),
                self.profile,
                self.workload,
            )
            for states in (Tier.HOST, Tier.SSD)
        }
        inputs = sum(
            round_up(block.input_bytes, SECTOR_BYTES) for block in self.profile.blocks if block.role is not Role.PRELUDE
        )
        weights = sum(block.elements for block in self.profile.blocks) * self.profile.weight_bytes
        states = sum(states_bytes(block, self.profile) for block in self.profile.blocks)
        gradients = weights if self.workload.all_updates_wait else 0
        without_buffers = waiting[Tier.HOST].bytes_on(Tier.HOST) - states - saving
        fixed = {
            Tier.GPU: waiting[Tier.SSD].bytes_on(Tier.GPU) - with_fragments(self.workload.micro_batches * inputs),
            Tier.HOST: without_buffers,
            Tier.SSD: waiting[Tier.SSD].bytes_on(Tier.SSD),
        }
        return fixed, waiting[Tier.SSD].bytes_on(Tier.HOST) - gradients - without_buffers

    def _limit_time(self) -> None:
        """Add the lanes' constraints; note the step's length, and the work of all lanes together."""
        program = self.program
        used: defaultdict[tuple[Phase, Resource], list[Linear]] = defaultdict(list)

        def use(amounts: Amounts, count: Linear) -> None:
            for key, amount in amounts.items():
                used[key].append(float(amount) * count)

        use(fixed_amounts(self.profile, self.workload), Linear(constant=1.0))
        for group, variables in zip(self.groups, self._variables, strict=True):
            block = self.profile.blocks[group.blocks[0]]
            for amounts, blocks in variables.updates.uses(self.profile):
                use(amounts, blocks)
            for index, tiers in variables.placed.items():
                for tier, count in tiers.items():
                    use(activation_amounts(block, self.workload, tier, variables.bytes[index]), count)
            for c in block.candidates if block.role is Role.LAYER else ():
                keeping = {(Phase.FORWARD, Resource.GPU): self.workload.micro_batches * c.keeping_seconds}
                use(keeping, total(variables.placed[c.index].values()))
            recomputed = program.variable()
            kept = total(c.seconds * total(variables.placed[c.index].values()) for c in block.candidates)
            # [Constraint] What is not kept is computed again; keeping more than there is gains nothing.
            program.at_most(
                1 / self._unit_seconds * (Linear(constant=block.recomputed_seconds * group.size) - kept), recomputed
            )
            use({(Phase.BACKWARD, Resource.GPU): self.workload.micro_batches * self._unit_seconds}, recomputed)

        lengths = {phase: program.variable() for phase in Phase}
        for phase, length in lengths.items():
            for limit in lane_limits(self.profile.machine, self.workload.update):
                busy = total(rate * part for resource, rate in limit.items() for part in used[phase, resource])
                # [Constraint] A phase lasts as long as each of its lanes is busy.
                program.at_most(1 / self._unit_seconds * busy, length)
        self._lengths = total(lengths.values())
        rates = unit_seconds(self.profile.machine)
        self._work = total(
            rates[resource] / self._unit_seconds * part for (_, resource), parts in used.items() for part in parts
        )

    def plan(self, planner: str, values: list[float], note: str | None = None) -> Plan:
        """Write a solution down: a group's counts are spread evenly over its blocks, so that lanes work evenly."""
        blocks: dict[int, BlockPlan] = {}
        for group, variables in zip(self.groups, self._variables, strict=True):
            blocks |= dict(zip(group.blocks, variables.read(values), strict=True))
        return Plan(planner=planner, blocks=tuple(blocks[index] for index in sorted(blocks)), note=note)
