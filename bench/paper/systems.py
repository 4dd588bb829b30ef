"""How each published system carries a step out, in the words of our own plans and schedules.

What is assumed of them, beside the machine's hardware file:

- Ratel keeps all states on the drives, chooses activations by its Algorithm 1 (``greedy`` with the paper's model and
  ranking), and updates each tensor as soon as its gradient is there: read, update, write, one after the other. (The
  paper describes an overlapped update too; the published code reads nothing before it is needed.) It updates in three
  passes over main memory, not in one: gradients to fp32, Adam, weights back to 16 bit.
- The ZeRO systems: see ``zero.py``.

The model is cut into micro-batches of eight rows for Ratel and LoHan: what its blocks take beside weights fits a 24 GB
GPU then, and by the rates alone larger ones are no faster. The ZeRO systems take the batch whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
from attrs import evolve, frozen
from passes import RATEL_BYTES
from transformers import GPT2Config
from zero import ZERO_INFINITY, ZERO_OFFLOAD, ZERO_STATES, PageableRates, ZeroSystem, zero_seconds

from lohan_core.backend import Kind
from lohan_core.engine.derive import Outline
from lohan_core.forecast.family import SHAPES, Shape
from lohan_core.hardware import Hardware
from lohan_core.interfaces.planner import Planner
from lohan_core.plan import Budget, Plan, Tier, Update, Workload
from lohan_core.planning import plan_step
from lohan_core.profile import Profile
from lohan_core.registry import Registry
from lohan_core.schedule.build import build_schedule
from lohan_core.schedule.simulate import simulate
from lohan_core.states import StateVector

__all__ = [
    "SYSTEMS",
    "ZERO_SYSTEMS",
    "Setting",
    "lohan_seconds",
    "outline_of",
    "shape_of",
    "zero_system_seconds",
]

CHUNK_ELEMENTS = 16 * 2**20
MICRO_BATCH_SIZE = 8

ADAM = tuple(StateVector(name=name, value_bytes=4) for name in ("master", "exp_avg", "exp_avg_sq"))


@frozen
class Setting:
    """One step of one model on one machine."""

    registry: Registry
    hardware: Hardware
    outline: Outline
    sequence_length: int
    batch_size: int

    def profile(self, micro_batch_size: int, states: tuple[StateVector, ...], *, passes_bytes: int | None) -> Profile:
        """Derive the profile; ``passes_bytes`` of main memory traffic per parameter, None for one fused pass."""
        profile = _derive(
            self.outline,
            self.hardware,
            micro_batch_size,
            self.sequence_length,
            states,
            gpu_updates=passes_bytes is None,  # LoHan's own
        )
        if passes_bytes is None:
            return profile
        rate = self.hardware.host.memory_bandwidth / passes_bytes
        return evolve(profile, machine=evolve(profile.machine, cpu_parameters_per_second=rate))

    def planner(self, name: str, **settings: str) -> Planner:
        """Open a planner with these keys of its config."""
        from lohan_core.config.structure import structure_values

        backend = self.registry.find(Kind.PLANNER, name)
        return self.registry.open_backend(
            Kind.PLANNER, name, structure_values(backend.config, settings, f"planner {name}")
        )


@cache
def _derive(
    outline: Outline,
    hardware: Hardware,
    micro_batch_size: int,
    sequence_length: int,
    states: tuple[StateVector, ...],
    *,
    gpu_updates: bool,
) -> Profile:
    return outline.profile(
        hardware,
        micro_batch_size=micro_batch_size,
        sequence_length=sequence_length,
        states=states,
        gpu_updates=gpu_updates,
    )


def shape_of(name: str) -> Shape:
    """Find a model of the paper."""
    return next(shape for shape in SHAPES if shape.name == name)


@cache
def outline_of(shape: Shape) -> Outline:
    """Outline a GPT of this shape, with the paper's vocabulary."""
    config = GPT2Config(
        n_layer=shape.layers, n_head=shape.heads, n_embd=shape.hidden, n_positions=1024, vocab_size=50257
    )
    return Outline(config, torch.bfloat16)


def ratel_seconds(setting: Setting) -> float:
    """Length of Ratel's step, as published."""
    profile = setting.profile(MICRO_BATCH_SIZE, ADAM, passes_bytes=RATEL_BYTES)
    workload = _workload(setting.batch_size // MICRO_BATCH_SIZE, Update.NAIVE, clips=False)
    planner = setting.planner("greedy", model="paper", ranking="flops")
    plan = _with_states(planner.plan(profile, _budget(profile), workload), Tier.SSD)
    return simulate(build_schedule(plan, profile, workload), profile.machine).seconds


def lohan_seconds(setting: Setting) -> float:
    """Length of LoHan's own step: states wherever there is room, fused and overlapped updates."""
    profile = setting.profile(MICRO_BATCH_SIZE, ADAM, passes_bytes=None)
    workload = _workload(setting.batch_size // MICRO_BATCH_SIZE, Update.OPTIMIZED, clips=False)
    plan, workload = plan_step(setting.planner("greedy"), profile, _budget(profile), workload)
    return simulate(build_schedule(plan, profile, workload), profile.machine).seconds


def zero_system_seconds(system: ZeroSystem, setting: Setting, pageable: PageableRates | None = None) -> float:
    """Length of a ZeRO system's step; ``pageable`` as in :func:`zero.zero_seconds`."""
    profile = setting.profile(setting.batch_size, ZERO_STATES, passes_bytes=system.memory_bytes)
    return zero_seconds(system, profile, pageable)


def _with_states(plan: Plan, tier: Tier) -> Plan:
    return evolve(plan, blocks=tuple(evolve(block, states=tier, gradients=tier) for block in plan.blocks))


def _budget(profile: Profile) -> Budget:
    machine = profile.machine
    return Budget(gpu_bytes=machine.gpu_bytes, host_bytes=machine.host_bytes, ssd_bytes=machine.ssd_bytes)


def _workload(micro_batches: int, update: Update, *, clips: bool) -> Workload:
    return Workload(micro_batches=micro_batches, update=update, clips=clips, chunk_elements=CHUNK_ELEMENTS, versions=1)


ZERO_SYSTEMS: Mapping[str, ZeroSystem] = {"ZeRO-Infinity": ZERO_INFINITY, "ZeRO-Offload": ZERO_OFFLOAD}
SYSTEMS: Mapping[str, Callable[[Setting], float]] = {
    "Ratel": ratel_seconds,
    **{name: partial(zero_system_seconds, system) for name, system in ZERO_SYSTEMS.items()},
}
