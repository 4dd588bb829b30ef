"""What ``ilp`` promises: the optimum of the lane model, whichever way the blocks are put together."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace

import pytest
from attrs import evolve
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from keeping import that_keeps_dearly

from lohan_core.backend import Kind
from lohan_core.errors import PlanError
from lohan_core.evaluate import TimeModel, evaluate
from lohan_core.plan import BlockPlan, Budget, Plan, Tier, Update, Workload
from lohan_core.profile import Role
from lohan_core.registry import load_registry
from lohan_core.testing.planner_problems import PROBLEMS, example_profile
from lohan_planner_ilp.config import CheckmateConfig, IlpConfig
from lohan_planner_ilp.decisions import Freedom
from lohan_planner_ilp.formulate import Formulation
from lohan_planner_ilp.groups import Group, group_blocks, spread_evenly
from lohan_planner_ilp.plugin import lohan_planner
from lohan_planner_ilp.program import Linear, Program, total
from lohan_planner_ilp.updates import declare_updates

highspy = pytest.importorskip("highspy", reason="the extra 'ilp' is not installed")

from lohan_planner_ilp.planner import checkmate, ilp  # noqa: E402  # needs highspy
from lohan_planner_ilp.solve import solve  # noqa: E402

PLENTY = Budget(gpu_bytes=2**50, host_bytes=2**50, ssd_bytes=2**50)
ROUNDING = 1 + 1e-9
EXACT = IlpConfig(gap=0.0)
ANYTHING = Freedom(inputs=frozenset(Tier), candidates=frozenset(Tier), states=frozenset(Tier), balances=True)


def lanes(plan, profile, workload, budget=PLENTY):
    return evaluate(plan, profile, workload, budget, TimeModel.LANES)


def budgets():
    sizes = st.integers(min_value=0, max_value=14).map(lambda exponent: 2**20 * 2**exponent)
    return st.builds(Budget, gpu_bytes=sizes, host_bytes=sizes, ssd_bytes=sizes)


def choices(block, workload, machine):
    """Every way to decide about one block."""
    inputs = [Tier.GPU] if not block.input_bytes else list(Tier)
    for deferred in (False, True) if workload.may_defer else (False,):
        waits = deferred or workload.clips
        places = [(Tier.HOST, Tier.HOST), (Tier.SSD, Tier.HOST), *([(Tier.SSD, Tier.SSD)] if waits else [])]
        places += [(Tier.GPU, Tier.HOST)] if block.role is Role.LAYER and machine.gpu_parameters_per_second else []
        for (states, waiting), where, *kept in itertools.product(
            places, inputs, *((None, *Tier) for _ in block.candidates)
        ):
            keep = {c.index: tier for c, tier in zip(block.candidates, kept, strict=True) if tier is not None}
            yield BlockPlan(states=states, gradients=waiting, inputs=where, keep=keep, deferred=deferred)


def tiny(seed, candidates):
    """One layer of so many candidates between edges without any."""
    profile = example_profile(layers=1, width=512, tokens=2**13, seed=seed, candidates=candidates)
    *blocks, postlude = profile.blocks
    return evolve(profile, blocks=(*blocks, evolve(postlude, candidates=())))


@pytest.mark.parametrize(
    ("update", "clips", "candidates", "seed"),
    [
        (Update.SERIAL, False, 2, 0),
        (Update.NAIVE, False, 2, 1),
        (Update.OPTIMIZED, False, 2, 2),
        (Update.OPTIMIZED, True, 1, 3),
        (Update.DEFERRED, False, 1, 3),
        (Update.DEFERRED, True, 0, 4),
    ],
)
def test_trying_everything_finds_nothing_better(update, clips, candidates, seed):
    """States, inputs, candidates, gradients and updates as they can be, under budgets between nothing and plenty."""
    profile = tiny(seed, candidates)
    workload = Workload(micro_batches=2, update=update, clips=clips, chunk_elements=2**18)
    graded = [
        lanes(Plan(planner="brute force", blocks=blocks), profile, workload)
        for blocks in itertools.product(*(list(choices(block, workload, profile.machine)) for block in profile.blocks))
    ]
    dice = random.Random(seed)
    sizes = {tier: sorted({grade.peak_bytes[tier] for grade in graded}) for tier in Tier}
    for _ in range(12):
        budget = Budget(**{f"{tier}_bytes": dice.choice(sizes[tier]) for tier in Tier})
        fitting = [
            grade.seconds
            for grade in graded
            if all(grade.peak_bytes[tier] <= getattr(budget, f"{tier}_bytes") for tier in Tier)
        ]
        if not fitting:
            with pytest.raises(PlanError, match=r"\b(gpu|host|ssd)\b"):
                ilp(EXACT).plan(profile, budget, workload)
            continue
        plan = ilp(EXACT).plan(profile, budget, workload)
        assert lanes(plan, profile, workload).seconds <= min(fitting) * ROUNDING


OTHERS = ("keep_nothing", "keep_all", "greedy", "zero", "capuchin", "g10", "recompute_all", "checkmate")


@pytest.fixture(scope="module")
def others():
    """Every other shipped planner, and that there are no more than these."""
    registry = load_registry()
    opened = {}
    for offer in registry.offers:
        if offer.kind is Kind.PLANNER and offer.backend.name in OTHERS:
            opened[offer.backend.name] = offer.backend.open(offer.backend.config())
    assert set(opened) == set(OTHERS)
    return opened


@settings(max_examples=40, deadline=None)
@given(problem=st.sampled_from(PROBLEMS), budget=budgets())
def test_no_shipped_planner_is_better_by_the_model_that_it_minimizes(others, problem, budget):
    plans = {}
    for name, planner in others.items():
        try:
            plans[name] = planner.plan(problem.profile, budget, problem.workload)
        except PlanError:
            continue
    if not plans:
        return
    seconds = lanes(
        ilp(EXACT).plan(problem.profile, budget, problem.workload), problem.profile, problem.workload
    ).seconds
    for name, plan in plans.items():
        assert seconds <= lanes(plan, problem.profile, problem.workload).seconds * ROUNDING, name


def with_slots(problem):
    """The same problem, with any number of slots on the GPU, and with or without extents for states in host memory."""
    return st.builds(
        lambda layers, gradients, extents: evolve(
            problem,
            workload=evolve(problem.workload, layer_slots=layers, gradient_slots=gradients, host_extents=extents),
        ),
        st.integers(1, 3),
        st.integers(1, 2),
        st.booleans(),
    )


@settings(max_examples=40, deadline=None)
@given(problem=st.sampled_from([*PROBLEMS, *map(that_keeps_dearly, PROBLEMS)]).flatmap(with_slots), budget=budgets())
def test_the_program_predicts_what_the_grader_says(problem, budget):
    """Its objective is the plan's length by the lanes, and what its constraints admit fits."""
    formulation = Formulation(
        profile=problem.profile,
        workload=problem.workload,
        budget=budget,
        freedom=ANYTHING,
        groups=group_blocks(problem.profile, problem.workload),
    )
    solution = solve(formulation.program, gap=0.0, time_limit=60.0)
    if solution is None:
        return
    grade = lanes(formulation.plan("ilp", solution.values), problem.profile, problem.workload, budget)
    assert grade.feasible
    assert grade.seconds == pytest.approx(formulation.seconds(solution.objective), rel=1e-6)


def equal_layers(layers, candidates):
    profile = example_profile(layers=layers, width=512, tokens=2**14, seed=3, candidates=candidates)
    prelude, first, *_, postlude = profile.blocks
    copies = [evolve(first, name=f"layers.{number}") for number in range(layers)]
    return evolve(profile, blocks=(prelude, *copies, postlude))


@pytest.mark.parametrize("host_mib", [150, 300, 600, 2400])
def test_putting_identical_blocks_together_loses_little(host_mib):
    """Together they share one worst case of buffers, which is all that may be lost; nothing where memory is plenty."""
    profile = equal_layers(8, 3)
    workload = Workload(micro_batches=2, update=Update.OPTIMIZED, clips=True, chunk_elements=2**18)
    budget = Budget(gpu_bytes=2**31, host_bytes=host_mib * 2**20, ssd_bytes=2**40)
    seconds = []
    for groups in (group_blocks(profile, workload, small=0), [Group((index,)) for index in range(len(profile.blocks))]):
        formulation = Formulation(profile=profile, workload=workload, budget=budget, freedom=ANYTHING, groups=groups)
        solution = solve(formulation.program, gap=1e-4, time_limit=60.0)
        plan = formulation.plan("ilp", solution.values)
        grade = lanes(plan, profile, workload, budget)
        assert grade.feasible
        assert grade.seconds == pytest.approx(formulation.seconds(solution.objective), rel=1e-6)
        seconds.append(grade.seconds)
    together, apart = seconds
    assert apart <= together * (1 + 2e-4)
    assert together <= apart * 1.1


def test_a_large_model_is_a_small_program():
    """175B has 96 layers of 60 operators; the program has a few hundred variables, and they are solved in no time."""
    profile = equal_layers(96, 60)
    workload = Workload(micro_batches=4, update=Update.DEFERRED, clips=False, chunk_elements=2**20)
    budget = Budget(gpu_bytes=2**32, host_bytes=2**32, ssd_bytes=2**45)
    groups = group_blocks(profile, workload)
    assert [group.size for group in groups] == [1, 93, 3, 1]
    formulation = Formulation(profile=profile, workload=workload, budget=budget, freedom=ANYTHING, groups=groups)
    assert len(formulation.program.columns) < 1000
    plan = ilp(IlpConfig()).plan(profile, budget, workload)
    assert lanes(plan, profile, workload, budget).feasible


def test_blocks_are_put_together_if_they_differ_in_name_alone():
    profile = equal_layers(6, 20)
    odd = evolve(profile.blocks[2], seconds=2 * profile.blocks[2].seconds)
    profile = evolve(profile, blocks=(*profile.blocks[:2], odd, *profile.blocks[3:]))
    workload = PROBLEMS[0].workload
    assert [group.blocks for group in group_blocks(profile, workload)] == [(0,), (1, 3), (2,), (4, 5, 6), (7,)]
    assert all(group.size == 1 for group in group_blocks(profile, workload, small=1000))
    leaner = evolve(workload, layer_slots=1)
    assert [group.blocks for group in group_blocks(profile, leaner)] == [(0,), (1, 3, 4, 5), (2,), (6,), (7,)]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), update=st.sampled_from(Update), clips=st.booleans(), size=st.integers(1, 12))
def test_counts_of_updates_are_those_of_the_blocks_that_they_are_spread_over(data, update, clips, size):
    """Whatever the counts: states, gradients and deferral of every block together are what was counted."""
    workload = Workload(micro_batches=1, update=update, clips=clips, chunk_elements=2**18)
    program = Program()
    updates = declare_updates(
        program,
        workload,
        Group(tuple(range(size))),
        elements=2**20,
        states=frozenset(Tier),
        balances=True,
    )
    values = [float(data.draw(st.integers(0, size))) for _ in program.columns]
    assume(all(total([Linear(row.terms)]).value(values) <= row.upper for row in program.rows))
    blocks = updates.read(values)

    def counted(**decided):
        return sum(all(getattr(block, name) == value for name, value in decided.items()) for block in blocks)

    assert len(blocks) == size
    assert counted(deferred=True) == updates.deferred.value(values)
    for deferred in (False, True):
        assert counted(deferred=deferred, states=Tier.HOST) == updates.host_states[deferred].value(values)
        assert counted(deferred=deferred, states=Tier.GPU) == updates.gpu_states[deferred].value(values)
    assert counted(gradients=Tier.SSD) == updates.ssd_gradients.value(values)
    everyone_waits = clips or update is Update.SERIAL
    waiting = counted(states=Tier.SSD) if everyone_waits else counted(states=Tier.SSD, deferred=True)
    assert counted(gradients=Tier.SSD) + updates.host_gradients.value(values) == waiting


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 12)))
def test_what_is_spread_is_all_there_and_spread(counts):
    spread = spread_evenly(counts)
    assert {what: spread.count(what) for what in counts} == counts
    for what, count in counts.items():
        places = [place for place, entry in enumerate(spread) if entry == what]
        if count > 1:
            widest = max(after - before for before, after in itertools.pairwise(places))
            assert widest <= -(-len(spread) // count) + len(counts)


def test_binaries_are_rounded():
    """x <= 1 - 1e-10 as a constraint on a whole number still gives a whole number, not 0.9999999999."""
    program = Program()
    x = program.variable(1, whole=True)
    program.at_most(x, 1 - 1e-10)
    program.objective = -1.0 * x
    assert solve(program, gap=0.0, time_limit=10.0).values in ([0.0], [1.0])


def test_a_program_without_a_solution_has_none():
    program = Program()
    x = program.variable(1)
    program.equal(x, 2.0)
    program.objective = x
    assert solve(program, gap=0.0, time_limit=10.0) is None


def test_linear_expressions_add_up():
    x, y = Linear({0: 1.0}), Linear({1: 1.0})
    expression = total((2.0 * x, y, Linear(constant=3.0))) - 0.5 * x
    assert expression == Linear({0: 1.5, 1: 1.0}, 3.0)
    assert expression.value([2.0, 1.0]) == 7.0


@pytest.mark.parametrize("tier", Tier, ids=str)
def test_what_is_missing_is_named(tier):
    problem = PROBLEMS[3]
    budget = evolve(PLENTY, **{f"{tier}_bytes": 2**20})
    with pytest.raises(
        PlanError, match=rf"^planner 'ilp': the plan needs .* on {tier}, .* more than the 1.00 MiB available"
    ):
        ilp(EXACT).plan(problem.profile, budget, problem.workload)


def test_checkmate_recomputes_or_swaps_to_host_memory():
    problem = PROBLEMS[2]
    plan = checkmate(CheckmateConfig()).plan(problem.profile, PLENTY, problem.workload)
    assert {block.inputs for block in plan.blocks[1:]} == {Tier.HOST}
    assert {tier for block in plan.blocks for tier in block.keep.values()} == {Tier.HOST}
    assert {block.states for block in plan.blocks} == {Tier.SSD}


@pytest.mark.parametrize("planner", [ilp(EXACT), checkmate(CheckmateConfig())])
def test_updates_that_wait_for_the_norm_are_all_deferred_if_they_may(planner):
    problem = PROBLEMS[2]
    for update, deferred in ((Update.DEFERRED, True), (Update.OPTIMIZED, False)):
        workload = evolve(problem.workload, update=update)
        assert workload.clips
        plan = planner.plan(problem.profile, PLENTY, workload)
        assert {block.deferred for block in plan.blocks} == {deferred}


def test_of_updates_that_need_not_wait_only_as_many_are_deferred_as_pays():
    """Drives that bound the step: backward has twice the work of forward, which some updates balance."""
    profile = example_profile(layers=8, width=512, tokens=2**10, seed=3)
    workload = Workload(micro_batches=2, update=Update.DEFERRED, clips=False, chunk_elements=2**18)
    budget = evolve(PLENTY, host_bytes=2**27)
    plan = ilp(EXACT).plan(profile, budget, workload)
    at_once = ilp(EXACT).plan(profile, budget, evolve(workload, update=Update.OPTIMIZED))
    assert 0 < sum(block.deferred for block in plan.blocks) < len(plan.blocks)
    assert lanes(plan, profile, workload).seconds < 0.97 * lanes(at_once, profile, workload).seconds
    other = checkmate(CheckmateConfig()).plan(profile, budget, workload)
    assert not any(block.deferred for block in other.blocks)


def test_the_note_tells_gap_and_time():
    problem = PROBLEMS[2]
    plan = ilp(EXACT).plan(problem.profile, PLENTY, problem.workload)
    assert plan.note.startswith("optimal by the lane model: ")
    assert "gap 0.00%, solved in " in plan.note


def test_a_search_that_is_cut_short_says_so():
    profile = example_profile(layers=40, width=512, tokens=2**14, seed=2, candidates=20)
    workload = Workload(micro_batches=2, update=Update.OPTIMIZED, clips=True, chunk_elements=2**18)
    budget = Budget(gpu_bytes=2**31, host_bytes=2**30, ssd_bytes=2**40)
    with pytest.raises(PlanError, match=r"found no plan within 1e-09 s; raise planner\.time_limit$"):
        ilp(IlpConfig(time_limit=1e-9)).plan(profile, budget, workload)


def test_all_questions_together_keep_to_the_time_limit(monkeypatch):
    """Whether the first is answered, and a second follows, or not, and another is asked instead."""
    now, limits = [0.0], []

    def slow(program, *, gap, time_limit):
        limits.append(time_limit)
        now[0] += time_limit
        return solve(program, gap=gap, time_limit=60.0)

    monkeypatch.setattr("lohan_planner_ilp.planner.solve", slow)
    monkeypatch.setattr("lohan_planner_ilp.planner.time", SimpleNamespace(monotonic=lambda: now[0]))
    problem = PROBLEMS[0]
    ilp(IlpConfig(time_limit=10.0)).plan(problem.profile, PLENTY, problem.workload)
    assert limits == pytest.approx([8.0, 2.0])
    limits.clear()
    with pytest.raises(PlanError, match="on host"):
        ilp(IlpConfig(time_limit=10.0)).plan(problem.profile, evolve(PLENTY, host_bytes=0), problem.workload)
    assert limits == pytest.approx([8.0, 2.0])


def test_of_equal_steps_the_one_with_least_work_is_taken():
    """With room for all and the GPU the busiest lane by far, nothing need be moved, though it would cost no time."""
    problem = PROBLEMS[2]
    machine = evolve(problem.profile.machine, gpu_parameters_per_second=None)
    problem = evolve(problem, profile=evolve(problem.profile, machine=machine))
    plan = ilp(EXACT).plan(problem.profile, PLENTY, problem.workload)
    busy = lanes(plan, problem.profile, problem.workload).busy_seconds
    nowhere = [BlockPlan(states=Tier.HOST, inputs=Tier.GPU) for _ in problem.profile.blocks]
    least = lanes(Plan(planner="", blocks=tuple(nowhere)), problem.profile, problem.workload).busy_seconds
    assert {lane: seconds for lane, seconds in busy.items() if lane != "gpu"} == pytest.approx(
        {lane: seconds for lane, seconds in least.items() if lane != "gpu"}
    )


def test_without_highs_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("lohan_planner_ilp.plugin.find_spec", lambda _: None)
    for backend in lohan_planner():
        assert "pip install 'lohan[ilp]'" in backend.probe()
