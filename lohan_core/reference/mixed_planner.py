"""Two planners as one: the activations of one's plan, the states of the other's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve, field, frozen
from attrs.validators import min_len

from lohan_core.errors import BackendError, ConfigError, PlanError
from lohan_core.interfaces.planner import Planner, PlannerBackend
from lohan_core.plan import Budget, Plan, Tier, Workload

if TYPE_CHECKING:
    from lohan_core.evaluate import Shortfall
    from lohan_core.profile import Profile

__all__ = ["MIXED", "MixedPlannerConfig"]

_NAME = "mixed"
HALVINGS = 4
"""How often what the planner of states must do without is halved, to find how little of it is enough."""
_BOUNDLESS = Budget(gpu_bytes=2**60, host_bytes=2**60, ssd_bytes=2**60)


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
        asked again with less: with what was missing taken off, then with twice as much, and so on. If that does not
        help, states may have filled the host memory: their planner is asked again with less of it, likewise, and then
        with some of that given back, as much as it can have.

        Raises:
            PlanError: one of the two has no plan, or together they have none that fits; said of the budget as given.
        """
        from lohan_core.evaluate import require_feasible

        def with_less(less_bytes: int) -> _Joined:
            given = evolve(budget, host_bytes=budget.host_bytes - less_bytes)
            return self._join(self._states.plan(profile, given, workload), profile, budget, workload)

        joined = nearest = with_less(0)
        too_little = less_bytes = 0
        while joined.shortfalls:
            too_little, less_bytes = less_bytes, less_bytes + max(joined.missing_on(Tier.HOST), less_bytes)
            if less_bytes == too_little or less_bytes >= budget.host_bytes:
                break
            try:
                joined = with_less(less_bytes)
            except PlanError:
                break
            nearest = min(nearest, joined, key=lambda each: each.missing_bytes)
        if joined.shortfalls:
            return require_feasible(nearest.plan, profile, workload, budget)
        for _ in range(HALVINGS if less_bytes else 0):
            between = (too_little + less_bytes) // 2
            try:
                other = with_less(between)
            except PlanError:
                too_little = between
                continue
            if other.shortfalls:
                too_little = between
            else:
                joined, less_bytes = other, between
        return joined.plan

    def _join(self, of_states: Plan, profile: Profile, budget: Budget, workload: Workload) -> _Joined:
        """Join activations to states; what does not fit at last is returned too.

        Raises:
            PlanError: the planner of activations has no plan for the whole budget.
        """
        from lohan_core.evaluate import TimeModel, evaluate

        cut, credit = dict.fromkeys(Tier, 0), dict.fromkeys(Tier, 0)
        refusal: PlanError | None = None
        joined: _Joined | None = None
        while True:
            left = Budget(
                gpu_bytes=max(0, budget.gpu_bytes + credit[Tier.GPU] - cut[Tier.GPU]),
                host_bytes=max(0, budget.host_bytes + credit[Tier.HOST] - cut[Tier.HOST]),
                ssd_bytes=max(0, budget.ssd_bytes + credit[Tier.SSD] - cut[Tier.SSD]),
            )
            try:
                activations = self._activations.plan(profile, left, workload)
            except PlanError as error:
                if refusal is None:
                    refusal = error
                    credit = self._credit(of_states, profile, workload)
                    if any(credit.values()):
                        continue
                if joined is None:  # the first refusal is said of the budget as given
                    raise refusal from None
                return joined
            plan = _combine(activations, of_states)
            joined = _Joined(plan, evaluate(plan, profile, workload, budget, TimeModel.LANES).shortfalls)
            given = {
                shortfall.tier: shortfall.available_bytes + credit[shortfall.tier] for shortfall in joined.shortfalls
            }
            if all(cut[tier] >= size for tier, size in given.items()):  # it fits, or there is nothing left to take off
                return joined
            for tier in given:
                cut[tier] += max(joined.missing_on(tier), cut[tier])

    def _credit(self, of_states: Plan, profile: Profile, workload: Workload) -> dict[Tier, int]:
        """Find what the planner of activations thinks that states take, more than they do in the plan that counts.

        A planner that puts all states on the drives finds no plan where there is too little space for that, though
        here they live elsewhere: it is given so much more. 0 where it has no plan at all.
        """
        from lohan_core.schedule.build import build_memory

        try:
            own = self._activations.plan(profile, _BOUNDLESS, workload)
        except PlanError:
            return dict.fromkeys(Tier, 0)
        thought, counted = (build_memory(plan, profile, workload) for plan in (own, _combine(own, of_states)))
        return {tier: max(0, thought.bytes_on(tier) - counted.bytes_on(tier)) for tier in Tier}


@frozen
class _Joined:
    """Two plans as one, and what it lacks."""

    plan: Plan
    shortfalls: tuple[Shortfall, ...]

    def missing_on(self, tier: Tier) -> int:
        """Bytes that are missing on a tier; 0 where it fits."""
        return sum(each.needed_bytes - each.available_bytes for each in self.shortfalls if each.tier is tier)

    @property
    def missing_bytes(self) -> int:
        """Bytes that are missing on all tiers."""
        return sum(self.missing_on(tier) for tier in Tier)


def _combine(activations: Plan, states: Plan) -> Plan:
    return Plan(
        planner=_NAME,
        blocks=tuple(
            evolve(
                decided,
                states=other.states,
                gradients=other.gradients,
                deferred=other.deferred,
                speculative=other.speculative,
            )
            for decided, other in zip(activations.blocks, states.blocks, strict=True)
        ),
        note=f"activations by {_signed(activations)}, states by {_signed(states)}",
    )


def _signed(plan: Plan) -> str:
    return plan.planner if plan.note is None else f"{plan.planner} ({plan.note})"


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
