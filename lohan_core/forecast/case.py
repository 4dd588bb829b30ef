"""What is forecast: a planner, a workload's settings and a budget, for profiles of any micro-batch size."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import Factory, evolve, frozen

from lohan_core.budget import make_budget
from lohan_core.config.sections import Config
from lohan_core.interfaces.planner import Planner
from lohan_core.plan import Budget, Plan, Tier, Workload
from lohan_core.planning import plan_step
from lohan_core.planning_inputs import limits_of, workload_of
from lohan_core.profile import Machine, Profile
from lohan_core.states import StateVector

__all__ = ["Case"]


@frozen(kw_only=True)
class Case:
    """A run's settings as far as a plan depends on them.

    ``workload`` is of the run's own step; others have as many micro-batches as is asked. ``limits`` are the user's own,
    in bytes; None: all that the machine has.
    """

    planner: Planner
    workload: Workload
    limits: Mapping[Tier, int | None] = Factory(lambda: dict.fromkeys(Tier))

    @classmethod
    def of(cls, config: Config, planner: Planner, states: tuple[StateVector, ...], weight_bytes: int) -> Case:
        """Take the settings of a config."""
        vectors = (*states, StateVector(name="weights", value_bytes=weight_bytes))
        return cls(planner=planner, workload=workload_of(config, vectors), limits=limits_of(config))

    def budget(self, machine: Machine) -> Budget:
        """Return what of the machine the run may use."""
        return make_budget(
            {Tier.GPU: machine.gpu_bytes, Tier.HOST: machine.host_bytes, Tier.SSD: machine.ssd_bytes},
            self.limits,
            one_memory=machine.cpu_computes,
        )

    def plan(self, profile: Profile, micro_batches: int) -> tuple[Plan, Workload]:
        """Let the planner decide on a step of so many micro-batches; see :func:`lohan_core.planning.plan_step`.

        Raises:
            PlanError: nothing fits.
        """
        workload = evolve(self.workload, micro_batches=micro_batches)
        return plan_step(self.planner, profile, self.budget(profile.machine), workload)
