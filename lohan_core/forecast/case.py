"""What is forecast: a planner, a workload's settings and a budget, for profiles of any micro-batch size."""

from __future__ import annotations

from attrs import evolve, frozen

from lohan_core.budget import make_budget
from lohan_core.config.sections import Config
from lohan_core.errors import ConfigError
from lohan_core.interfaces.optimizer import OptimizerConfig
from lohan_core.interfaces.planner import Planner
from lohan_core.layout import round_up
from lohan_core.plan import Budget, Plan, Tier, Update, Workload
from lohan_core.planning import plan_step
from lohan_core.profile import Machine, Profile
from lohan_core.states import StateVector, chunk_alignment

__all__ = ["Case"]


@frozen(kw_only=True)
class Case:
    """A run's settings as far as a plan depends on them.

    ``chunk_elements`` is a whole number of what the states' sectors allow. ``limits`` are the user's own, in bytes;
    None: all that the machine has.
    """

    planner: Planner
    update: Update
    clips: bool
    chunk_elements: int
    versions: int
    gpu_limit_bytes: int | None = None
    host_limit_bytes: int | None = None
    ssd_limit_bytes: int | None = None

    @classmethod
    def of(cls, config: Config, planner: Planner, states: tuple[StateVector, ...], weight_bytes: int) -> Case:
        """Take the settings of a config.

        Raises:
            ConfigError: the optimizer's settings are not those of an optimizer.
        """
        settings = config.optimizer.settings
        if not isinstance(settings, OptimizerConfig):
            raise ConfigError(f"optimizer.backend: {config.optimizer.name}: its config class is not an OptimizerConfig")
        vectors = (*states, StateVector(name="weights", value_bytes=weight_bytes))
        return cls(
            planner=planner,
            update=config.run.update,
            clips=bool(settings.max_grad_norm),
            chunk_elements=round_up(config.memory.chunk // 4, chunk_alignment(vectors)),
            versions=config.run.most_versions,
            gpu_limit_bytes=config.memory.gpu,
            host_limit_bytes=config.memory.host,
            ssd_limit_bytes=config.memory.ssd,
        )

    def workload(self, micro_batches: int) -> Workload:
        """Return the workload of a step of so many micro-batches."""
        return Workload(
            micro_batches=micro_batches,
            update=self.update,
            clips=self.clips,
            chunk_elements=self.chunk_elements,
            versions=self.versions,
        )

    def budget(self, machine: Machine) -> Budget:
        """Return what of the machine the run may use."""
        return make_budget(
            {Tier.GPU: machine.gpu_bytes, Tier.HOST: machine.host_bytes, Tier.SSD: machine.ssd_bytes},
            {Tier.GPU: self.gpu_limit_bytes, Tier.HOST: self.host_limit_bytes, Tier.SSD: self.ssd_limit_bytes},
            one_memory=machine.cpu_computes,
        )

    def plan(self, profile: Profile, micro_batches: int) -> tuple[Plan, Workload]:
        """Let the planner decide; see :func:`lohan_core.planning.plan_step`.

        Raises:
            PlanError: nothing fits.
        """
        return plan_step(self.planner, profile, self.budget(profile.machine), self.workload(micro_batches))

    def with_planner(self, planner: Planner) -> Case:
        """Return the same case for another planner."""
        return evolve(self, planner=planner)
