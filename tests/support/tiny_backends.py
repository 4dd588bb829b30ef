"""Backends that tests plug in: an optimizer that records gradients, a planner that rolls dice, a quick profiler."""

from __future__ import annotations

import random
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from unittest.mock import patch

import torch
from attrs import define, field, frozen
from torch import Tensor

from lohan_core.backend import Backend
from lohan_core.engine import stopwatch
from lohan_core.engine.profile_blocks import arguments_bytes, profile_blocks
from lohan_core.engine.states import StateFormat
from lohan_core.hookspecs import PROJECT, hookimpl
from lohan_core.interfaces.optimizer import Hyperparameters, Optimizer, OptimizerConfig, StateField
from lohan_core.interfaces.planner import Planner
from lohan_core.interfaces.profiler import Profiler, Subject
from lohan_core.plan import BlockPlan, Budget, Plan, Tier, Workload
from lohan_core.profile import Machine, Profile, Role
from lohan_core.registry import Provider, Registry, load_registry

MACHINE = Machine(
    name="a test's",
    gpu_flops_per_second=1e12,
    h2d_bytes_per_second=8e9,
    d2h_bytes_per_second=8e9,
    ssd_read_bytes_per_second=3e9,
    ssd_write_bytes_per_second=2e9,
    ssd_mixed_bytes_per_second=4e9,
    cpu_parameters_per_second=1e9,
    gpu_parameters_per_second=2e10,
    gpu_bytes=2**34,
    host_bytes=2**34,
    ssd_bytes=2**34,
)


@frozen(kw_only=True)
class RecorderConfig(OptimizerConfig):
    """The keys that every optimizer has."""


@define
class Recorder(Optimizer):
    """Changes no weight and writes down every gradient it is given, in the order of the schedule's updates.

    ``there``: what was updated where the GPU computes.
    """

    calls: list[tuple[Tensor, Hyperparameters]] = field(factory=list)
    device_type: str = "cpu"
    there: Recorder | None = None

    @property
    def fields(self) -> tuple[StateField, ...]:
        """None: there is nothing to keep."""
        return ()

    def _update(
        self,
        master: Tensor,
        states: Mapping[str, Tensor],
        gradient: Tensor,
        weights: Tensor,
        hyperparameters: Hyperparameters,
    ) -> None:
        del states
        self.calls.append((gradient.to("cpu", copy=True), hyperparameters))
        weights.copy_(master)

    def on_device(self, device: torch.device) -> Recorder:
        """One more, with a list of its own."""
        self.there = Recorder(device_type=device.type)
        return self.there


@frozen(kw_only=True)
class DicePlannerConfig:
    """Which plan is rolled."""

    seed: int


@frozen
class DicePlanner(Planner):
    """Puts everything anywhere: any plan that is drawn is a valid one."""

    config: DicePlannerConfig

    def plan(self, profile: Profile, budget: Budget, workload: Workload) -> Plan:
        """Roll for every state, input, gradient and candidate."""
        del budget
        dice = random.Random(self.config.seed)
        blocks = tuple(roll_block(dice, block, may_defer=workload.may_defer) for block in profile.blocks)
        return Plan(planner="dice", blocks=blocks)


def roll_block(dice: random.Random, block, *, may_defer: bool) -> BlockPlan:
    """Decide for one block: a candidate is kept on each tier, or recomputed, with equal chances."""
    states = dice.choice(tuple(Tier) if block.role is Role.LAYER else (Tier.HOST, Tier.SSD))
    kept = {candidate.index: dice.choice((None, *Tier)) for candidate in block.candidates if block.role is Role.LAYER}
    return BlockPlan(
        states=states,
        inputs=dice.choice(tuple(Tier)),
        keep={index: tier for index, tier in kept.items() if tier is not None},
        gradients=dice.choice((Tier.HOST, Tier.SSD)) if states is Tier.SSD else Tier.HOST,
        deferred=dice.choice((False, True)) and may_defer,
    )


@frozen(kw_only=True)
class QuickProfilerConfig:
    """There is nothing to configure."""


@frozen
class QuickProfiler(Profiler):
    """Looks at the model briefly, and takes the machine as given: measuring would be most of a test's time."""

    config: QuickProfilerConfig

    def profile(self, subject: Subject) -> Profile:
        """Trace the model."""
        form = StateFormat(subject.optimizer, subject.model.dtype)
        inputs = subject.batch.micro_batches[0]
        rows, length = inputs["input_ids"].shape
        with patch.multiple(stopwatch, LEAST_LOOKS=1, LOOK_SECONDS=0.0, largest_cache_bytes=lambda: 0):
            blocks = profile_blocks(subject.model, inputs, subject.model.device, warm_up_seconds=0.0)
        return Profile(
            machine=MACHINE,
            micro_batch_size=rows,
            sequence_length=length,
            weight_bytes=subject.model.dtype.itemsize,
            states=form.states,
            blocks=blocks,
            arguments_bytes=arguments_bytes(subject.model, subject.batch.micro_batches, subject.model.device),
        )


@define(eq=False)
class TestBackends:
    """A plugin with the three, as a stranger's would offer them; it holds on to the last recorder that was opened."""

    __test__ = False  # pytest would take it for a class of tests

    recorder: Recorder | None = None

    @hookimpl
    def lohan_optimizer(self):
        """Offer ``recorder``."""
        yield Backend(name="recorder", summary="a test's", config=RecorderConfig, open=self._open_recorder)

    @hookimpl
    def lohan_planner(self):
        """Offer ``dice``."""
        yield Backend(name="dice", summary="a test's", config=DicePlannerConfig, open=DicePlanner)

    @hookimpl
    def lohan_profiler(self):
        """Offer ``quick``."""
        yield Backend(name="quick", summary="a test's", config=QuickProfilerConfig, open=QuickProfiler)

    def _open_recorder(self, config: RecorderConfig, *, threads: int) -> Recorder:
        del config, threads
        self.recorder = Recorder()
        return self.recorder


def make_registry(backends: TestBackends) -> Registry:
    """Collect all installed plugins, or the shipped ones from the checkout where nothing is installed, and a test's."""
    installed = list(entry_points(group=PROJECT)) or [
        EntryPoint("storage_aio", "lohan_storage_aio.plugin", PROJECT),
        EntryPoint("optim_cpuadam", "lohan_optim_cpuadam.plugin", PROJECT),
    ]
    registry = load_registry(installed)
    registry.add(Provider(plugin="tests", distribution="tests", version="0"), lambda: backends)
    return registry
