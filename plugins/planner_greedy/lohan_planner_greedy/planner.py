"""The planners: each a ranking, a search and an objective over one family of plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from attrs import evolve, frozen

from lohan_core.errors import PlanError
from lohan_core.evaluate import TimeModel, evaluate, require_feasible
from lohan_core.interfaces.planner import Planner
from lohan_core.lane_amounts import Resource
from lohan_core.plan import Budget, Plan, Tier, Workload
from lohan_core.profile import Profile, Role
from lohan_core.units import format_bytes
from lohan_planner_greedy.choices import BlockCounts, Choice
from lohan_planner_greedy.choose_by_simulation import Course, finalists, shortest
from lohan_planner_greedy.config import GreedyConfig, GreedyModel, Ranking, StrategyConfig
from lohan_planner_greedy.family import Family
from lohan_planner_greedy.items import rank_items
from lohan_planner_greedy.objective import LaneObjective, Objective, PaperObjective
from lohan_planner_greedy.search import SHORTER, Graded, Search, first_shortest, kept_lengths

__all__ = ["FamilyPlanner", "Strategy", "capuchin", "g10", "greedy", "recompute_all", "zero"]

GPU_STATES = (*range(1, 33), 36, 40, 45, 50, 56, 63, 70, 78, 87, 97, 109, 122)
"""Numbers of layers whose states are tried on the GPU, beside none and all: the same for every budget, so that more
memory never leaves fewer of them."""

GLANCES = 32
"""How many lengths of the list a number of such layers is judged by, where plans are simulated in the end."""

HARDLY_LONGER = 1.05

_PCIE = frozenset({Resource.GPU, Resource.H2D, Resource.D2H})


@frozen(kw_only=True)
class Strategy:
    """What makes one planner differ from another.

    ``lengths``: how many items it may keep. ``all_states``: whether all states are in host memory, or none; None: it
    chooses. ``objective``: how it predicts a step in the search. ``balances``: whether it may defer updates that need
    not wait; where all must wait, for the norm to clip by, every strategy defers them all if it may. ``gpu_states``:
    whether states may live on the GPU. ``finalists``: how many plans that do without it are simulated to choose from;
    with 1, the search decides.
    """

    name: str
    ranking: Ranking
    tiers: frozenset[Tier]
    lengths: Callable[[Family], Sequence[int]]
    all_states: bool | None
    objective: Callable[[Family, BlockCounts, Budget], Objective]
    balances: bool = False
    gpu_states: bool = False
    finalists: int = 1


class FamilyPlanner(Planner):
    """Makes the plan of its strategy's family with the shortest predicted step."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy

    def plan(self, profile: Profile, budget: Budget, workload: Workload) -> Plan:
        """Decide, or raise PlanError if no plan of the family fits."""
        strategy = self._strategy
        family = Family(profile, workload, rank_items(profile, strategy.ranking))
        courses = self.courses(family, budget)
        if strategy.finalists > 1 and strategy.balances and workload.may_defer and not workload.all_updates_wait:
            # The lane model is too fond of deferred updates: look at what is best without any, too.
            courses += FamilyPlanner(evolve(strategy, balances=False)).courses(family, budget)
        if not courses:
            raise self._infeasible(family, self._counts(family), budget)

        def plan(course: Course, choice: Choice) -> Plan:
            a_plan = course.family.plan(strategy.name, choice, _describe(course.family, choice))
            return require_feasible(a_plan, profile, workload, budget)

        if strategy.finalists == 1:
            return plan(courses[0], courses[0].choices[0])
        return shortest(courses, plan, lambda a_plan: evaluate(a_plan, profile, workload, budget).seconds)

    def courses(self, family: Family, budget: Budget) -> list[Course]:
        """Search the families that are worth it, for plans with any number of layers' states on the GPU."""
        best, *others = self._families(family, budget)
        courses = [self._course(best, budget, self._strategy.finalists)]
        courses += [self._course(other, budget, 1) for other in others]
        return [course for course in courses if course.curve]

    def _counts(self, family: Family) -> BlockCounts:
        return family.block_counts(all_states=self._strategy.all_states, balances=self._strategy.balances)

    def _families(self, family: Family, budget: Budget) -> Sequence[Family]:
        """Return the family whose best plan has the shortest step: with so many layers' states on the GPU, in an order.

        Of equals it is the one with fewest there. If plans are simulated in the end, there are behind it the ones with
        none, with half as many, and with the most whose step is hardly longer: what lives on the GPU waits for nobody,
        which the lane model does not see.
        """
        strategy = self._strategy
        if strategy.all_states is not None:
            return [family]
        found = list(self._shortest_steps(family, budget))
        if not found:
            return [family]
        least = min(seconds for _, seconds in found)
        best = next(candidate for candidate, seconds in found if seconds <= least / SHORTER)
        if strategy.finalists == 1:
            return [best]
        *_, most = (candidate for candidate, seconds in found if seconds <= least * HARDLY_LONGER)
        fewer = [evolve(best, gpu_states=count) for count in (0, best.gpu_states // 2)]
        return list({(a.gpu_states, a.edges_last): a for a in (best, *fewer, most)}.values())

    def _shortest_steps(self, family: Family, budget: Budget) -> Iterator[tuple[Family, float]]:
        """Predict the best step with so many layers' states on the GPU, and for each order of blocks."""
        strategy = self._strategy
        layers = sum(block.role is Role.LAYER for block in family.profile.blocks)
        may = strategy.gpu_states and family.profile.machine.gpu_parameters_per_second is not None
        for count in (0, *(count for count in GPU_STATES if count < layers), layers) if may else (0,):
            for edges_last in (False, True):
                candidate = evolve(family, gpu_states=count, edges_last=edges_last)
                if candidate.fixed_gpu_bytes > budget.gpu_bytes:
                    return
                lengths = strategy.lengths(candidate)
                if strategy.finalists > 1:
                    lengths = lengths[:: -(-len(lengths) // GLANCES)]
                counts = self._counts(candidate)
                search = Search(lengths=lengths, tiers=strategy.tiers)
                curve = search.curve(candidate, counts, strategy.objective(candidate, counts, budget), budget)
                if curve:
                    yield candidate, first_shortest(curve).seconds

    def _course(self, family: Family, budget: Budget, count: int) -> Course:
        """Search a family; choose its best if ``count`` is 1, or what is worth a simulation; nothing if nothing fits.

        The lane model does not see that what waits on the drives arrives behind what updates read, nor that forward
        looks only a few layers ahead for the work that deferred updates give it. So the best plans that do without
        either are looked at too, and the best that defers half as many.
        """
        strategy, counts = self._strategy, self._counts(family)
        curve = self._curve(family, strategy.tiers, counts, budget)
        if not curve:
            return Course(family, curve, [])
        best = first_shortest(curve).choice
        if count == 1:
            return Course(family, curve, [best])
        chosen = [best]
        soon = counts.deferring_at_most(counts.must_defer)
        if best.deferred > counts.must_defer:
            fewer = counts.deferring_at_most((counts.must_defer + best.deferred) // 2)
            chosen.append(first_shortest(self._curve(family, strategy.tiers, fewer, budget)).choice)
        at_once = curve if len(chosen) == 1 else self._curve(family, strategy.tiers, soon, budget)
        without_drives = self._curve(family, strategy.tiers - {Tier.SSD}, soon, budget)
        chosen += finalists([at_once, without_drives], count)
        return Course(family, curve, list(dict.fromkeys(chosen)))

    def _curve(self, family: Family, tiers: frozenset[Tier], counts: BlockCounts, budget: Budget) -> Sequence[Graded]:
        strategy = self._strategy
        objective = strategy.objective(family, counts, budget)
        return Search(lengths=strategy.lengths(family), tiers=tiers).curve(family, counts, objective, budget)

    def _infeasible(self, family: Family, counts: BlockCounts, budget: Budget) -> PlanError:
        """Tell what the plan lacks that comes closest to fitting."""
        strategy = self._strategy
        kept = min(strategy.lengths(family))
        places = {Tier.GPU: (kept, 0), Tier.HOST: (0, kept), Tier.SSD: (0, 0)}
        rows = {int(counts.ssd_bytes.argmin()), int(counts.host_bytes.argmin())}
        grades = [
            evaluate(
                family.plan(
                    strategy.name,
                    Choice(
                        kept=kept,
                        gpu_cut=gpu_cut,
                        host_cut=host_cut,
                        host_states=int(counts.states[row]),
                        host_gradients=int(counts.gradients[row]),
                        deferred=int(counts.deferred[row]),
                    ),
                ),
                family.profile,
                family.workload,
                budget,
                TimeModel.LANES,
            )
            for tier, (gpu_cut, host_cut) in places.items()
            if tier in strategy.tiers
            for row in sorted(rows)
        ]
        nearest = min(grades, key=lambda grade: sum(s.needed_bytes - s.available_bytes for s in grade.shortfalls))
        return PlanError(f"planner {strategy.name!r}: " + "; ".join(str(shortfall) for shortfall in nearest.shortfalls))


def _describe(family: Family, choice: Choice) -> str:
    inputs = sum(item.candidate is None for item in family.items)
    case = {
        inputs: "nothing but block inputs is kept",
        len(family.items): "every candidate is kept",
    }.get(choice.kept, f"{choice.kept - inputs} of {len(family.items) - inputs} candidates are kept")
    cuts = [0, choice.gpu_cut, choice.host_cut, choice.kept]
    sizes = [int(family.item_bytes[start:stop].sum()) for start, stop in pairwise(cuts)]
    held = ", ".join(
        f"{format_bytes(family.workload.micro_batches * size)} on {tier}"
        for tier, size in zip(Tier, sizes, strict=True)
        if size
    )
    return f"{case} ({held}); {_describe_states(family, choice)}; updates of {choice.deferred} deferred"


def _describe_states(family: Family, choice: Choice) -> str:
    blocks = len(family.profile.blocks)
    host = sum(index not in family.on_gpu for index in family.block_order[: choice.host_states])
    on_gpu = f", of {family.gpu_states} on the GPU" if family.gpu_states else ""
    return f"states of {host} of {blocks} blocks in host memory{on_gpu}"


def _inputs_only(family: Family) -> Sequence[int]:
    return [sum(item.candidate is None for item in family.items)]


def _everything(family: Family) -> Sequence[int]:
    return [len(family.items)]


def _all_lanes(family: Family, counts: BlockCounts, budget: Budget) -> Objective:
    del budget
    return LaneObjective.over(family, counts)


def _pcie_only(family: Family, counts: BlockCounts, budget: Budget) -> Objective:
    del budget
    return LaneObjective.over(family, counts, _PCIE)


def _papers(family: Family, counts: BlockCounts, budget: Budget) -> Objective:
    del counts
    return PaperObjective.over(family, budget)


def greedy(config: GreedyConfig) -> Planner:
    """Open Algorithm 1 over all tiers."""
    return FamilyPlanner(
        Strategy(
            name="greedy",
            ranking=config.ranking,
            tiers=frozenset(Tier),
            lengths=kept_lengths,
            all_states=None if config.states == "auto" else Tier(config.states) is Tier.HOST,
            objective=_papers if config.model is GreedyModel.PAPER else _all_lanes,
            balances=True,
            gpu_states=config.states == "auto" and config.model is GreedyModel.LANES,
            finalists=config.finalists,
        )
    )


def _strategy(
    name: str,
    config: StrategyConfig,
    tiers: set[Tier],
    lengths: Callable[[Family], Sequence[int]],
    objective: Callable[[Family, BlockCounts, Budget], Objective] = _all_lanes,
) -> Planner:
    return FamilyPlanner(
        Strategy(
            name=name,
            ranking=Ranking.SECONDS,
            tiers=frozenset(tiers),
            lengths=lengths,
            all_states=Tier(config.states) is Tier.HOST,
            objective=objective,
        )
    )


def zero(config: StrategyConfig) -> Planner:
    """Open ZeRO-Infinity's: block inputs to host memory, the rest recomputed."""
    return _strategy("zero", config, {Tier.HOST}, _inputs_only)


def recompute_all(config: StrategyConfig) -> Planner:
    """Open plain checkpointing: inputs stay on the GPU, the rest is recomputed. With states on host, ZeRO-Offload's."""
    return _strategy("recompute_all", config, {Tier.GPU}, _inputs_only)


def capuchin(config: StrategyConfig) -> Planner:
    """Open Capuchin's: keep, recompute or swap to host memory by measured cost; it sees the GPU and PCIe, no drives."""
    return _strategy("capuchin", config, {Tier.GPU, Tier.HOST}, kept_lengths, _pcie_only)


def g10(config: StrategyConfig) -> Planner:
    """Open G10's: keep or swap everything to the drives; nothing is recomputed."""
    return _strategy("g10", config, {Tier.GPU, Tier.SSD}, _everything)
