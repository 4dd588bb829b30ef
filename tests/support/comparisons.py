"""Comparisons without a run: a small model's plans, predicted, and measurements made up of the same timelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tiny_backends import MACHINE

from lohan_core.compare.predict import predict
from lohan_core.compare.records import Comparison, Contender, MeasuredStep, Measurement, Prediction
from lohan_core.layout import BLOCK_ALIGNMENT
from lohan_core.plan import BlockPlan, Budget, Plan, Tier, Update, Workload
from lohan_core.profile import BlockProfile, Candidate, Profile, Role
from lohan_core.states import StateVector

LAYERS = 4
BUDGET = Budget(gpu_bytes=2**34, host_bytes=2**34, ssd_bytes=2**34)
WORKLOAD = Workload(micro_batches=2, update=Update.OPTIMIZED, clips=True, chunk_elements=8 * BLOCK_ALIGNMENT)


def _block(name: str, role: Role) -> BlockProfile:
    operators = [("mm", 40_000, 0.004), ("gelu", 80_000, 0.001)] if role is Role.LAYER else []
    return BlockProfile(
        name=name,
        role=role,
        elements=20 * BLOCK_ALIGNMENT,
        input_bytes=0 if role is Role.PRELUDE else 20_000,
        flops=1e9,
        seconds=0.006,
        transient_bytes=10**6,
        candidates=tuple(
            Candidate(index=index, operator=operator, occurrence=0, bytes=size, flops=5e8, seconds=seconds)
            for index, (operator, size, seconds) in enumerate(operators)
        ),
    )


PROFILE = Profile(
    machine=MACHINE,
    micro_batch_size=3,
    sequence_length=50,
    weight_bytes=2,
    states=tuple(StateVector(name=name, value_bytes=4) for name in ("master", "exp_avg", "exp_avg_sq")),
    blocks=(
        _block("prelude", Role.PRELUDE),
        *(_block(f"layers.{number}", Role.LAYER) for number in range(LAYERS)),
        _block("postlude", Role.POSTLUDE),
    ),
)


def plan_of(
    planner: str, states: Tier = Tier.SSD, keep: Mapping[int, Tier] | None = None, *, deferred: bool = False
) -> Plan:
    """Decide for all blocks alike; layers keep ``keep``."""
    return Plan(
        planner=planner,
        blocks=tuple(
            BlockPlan(
                states=states,
                gradients=states,
                keep=keep or {} if block.role is Role.LAYER else {},
                deferred=deferred,
            )
            for block in PROFILE.blocks
        ),
        note=f"what {planner} thinks",
    )


def measured(prediction: Prediction, losses: Sequence[float], gpu_peak_bytes: int | None = None) -> Measurement:
    """Measure twice what was predicted, in as many steps as there are losses; the first does not count."""
    return Measurement(
        losses=tuple(losses),
        steps=tuple(
            MeasuredStep(
                seconds=2 * prediction.timeline.seconds + number,
                storage_read_bytes=1000,
                storage_write_bytes=2000,
                gpu_peak_bytes=gpu_peak_bytes,
                timeline=prediction.timeline,
            )
            for number in range(len(losses) - 1)
        ),
    )


def comparison(losses: Mapping[str, Sequence[float]] | None = None) -> Comparison:
    """Compare three planners, one of which fits nowhere; those that ``losses`` names were run."""
    plans = [plan_of("keeper", keep={0: Tier.HOST, 1: Tier.GPU}), plan_of("</script>&", states=Tier.HOST)]
    contenders = []
    for plan in plans:
        prediction = predict(plan, PROFILE, WORKLOAD, BUDGET)
        run = (losses or {}).get(plan.planner)
        measurement = measured(prediction, run) if run else None
        contenders.append(Contender(planner=plan.planner, prediction=prediction, measurement=measurement))
    return Comparison(
        profile=PROFILE,
        workload=WORKLOAD,
        budget=BUDGET,
        contenders=(*contenders, Contender(planner="greedier", reason="it needs 3 GiB more")),
        groups=(tuple(losses),) if losses else (),
    )
