"""Two planners as one: the activations of one's plan, the states of the other's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve, field, frozen
from attrs.validators import min_len

from lohan_core.errors import BackendError, ConfigError
from lohan_core.interfaces.planner import Planner, PlannerBackend
from lohan_core.plan import Budget, Plan, Tier, Workload

if TYPE_CHECKING:
    from lohan_core.evaluate import Shortfall
    from lohan_core.profile import Profile

__all__ = ["MIXED", "MixedPlannerConfig"]

_NAME = "mixed"


@frozen(kw_only=True)
class MixedPlannerConfig:
    """Which planner decides what; each is opened with its default settings.

    Attributes:
        activations: Name of the planner that decides where block inputs and operators' outputs wait.
        states: Name of the planner that decides where weights, optimizer states and waiting gradients live, and which
            updates are deferred.
    """

    activations: str = field(validator=min_len(1))
    states: str = field(validator=min_len(1))


class MixedPlanner(Planner):
    """Asks both and takes from each what it is asked for."""

    def __init__(self, activations: Planner, states: Planner) -> None:
        """Mix two open planners."""
        self._activations = activations
        self._states = states

    def plan(self, profile: Profile, budget: Budget, workload: Workload) -> Plan:
        """Put the two plans together.

        Neither knows what the other takes. While together they take more than there is, the planner of activations is
        asked again with less: with what was missing taken off, then with twice as much, and so on.

        Raises:
            PlanError: one of the two has no plan, or the planner of activations takes more than it is given.
        """
        from lohan_core.evaluate import TimeModel, evaluate, require_feasible

        of_states = self._states.plan(profile, budget, workload)
        cut = dict.fromkeys(Tier, 0)
        while True:
            left = Budget(
                gpu_bytes=max(0, budget.gpu_bytes - cut[Tier.GPU]),
                host_bytes=max(0, budget.host_bytes - cut[Tier.HOST]),
                ssd_bytes=max(0, budget.ssd_bytes - cut[Tier.SSD]),
            )
            plan = _combine(self._activations.plan(profile, left, workload), of_states)
            shortfalls = evaluate(plan, profile, workload, budget, TimeModel.LANES).shortfalls
            if not shortfalls:
                return plan
            if all(cut[shortfall.tier] >= shortfall.available_bytes for shortfall in shortfalls):
                return require_feasible(plan, profile, workload, budget)
            for shortfall in shortfalls:
                cut[shortfall.tier] += max(_missing(shortfall), cut[shortfall.tier])


def _combine(activations: Plan, states: Plan) -> Plan:
    return Plan(
        planner=_NAME,
        blocks=tuple(
            evolve(decided, states=other.states, gradients=other.gradients, deferred=other.deferred)
            for decided, other in zip(activations.blocks, states.blocks, strict=True)
        ),
        note=f"activations by {activations.planner} ({activations.note}), states by {states.planner} ({states.note})",
    )


def _missing(shortfall: Shortfall) -> int:
    return shortfall.needed_bytes - shortfall.available_bytes


def _open(config: MixedPlannerConfig) -> Planner:
    from lohan_core.backend import Kind
    from lohan_core.registry import load_registry

    registry = load_registry()

    def open_named(key: str, name: str) -> Planner:
        if name == _NAME:
            raise ConfigError(f"planner.{key}: {_NAME} cannot be a part of itself; name a planner that decides")
        try:
            return registry.open_backend(Kind.PLANNER, name, registry.find(Kind.PLANNER, name).config())
        except BackendError as error:
            raise ConfigError(f"planner.{key}: {error}") from error

    return MixedPlanner(open_named("activations", config.activations), open_named("states", config.states))


MIXED: PlannerBackend = PlannerBackend(
    name=_NAME,
    summary="activations as one planner decides, states as another does",
    config=MixedPlannerConfig,
    open=_open,
)
