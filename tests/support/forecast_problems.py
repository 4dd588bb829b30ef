"""Small models and machines of which all is known, and what is asked about them."""

from __future__ import annotations

from attrs import evolve

from lohan_core.forecast import Case
from lohan_core.layout import BLOCK_ALIGNMENT
from lohan_core.plan import Tier, Update, Workload
from lohan_core.profile import BlockProfile, Machine, Profile, Role
from lohan_core.reference.planners import KEEP_NOTHING
from lohan_core.states import StateVector

P = 10 * BLOCK_ALIGNMENT
LAYERS = 6
GIB = 2**30

MACHINE = Machine(
    name="example",
    gpu_flops_per_second=1e12,
    h2d_bytes_per_second=1e9,
    d2h_bytes_per_second=1e9,
    ssd_read_bytes_per_second=1e9,
    ssd_write_bytes_per_second=1e9,
    ssd_mixed_bytes_per_second=1e9,
    cpu_parameters_per_second=1e9,
    gpu_bytes=GIB,
    host_bytes=GIB,
    ssd_bytes=GIB,
)


def profile_of(micro_batch_size=1, *, gpu_seconds=0.01, row_bytes=GIB // 16, **rates):
    """A model whose time on the GPU does not depend on how a batch is cut, and whose memory there does."""

    def block(role, *, seconds=0.0, transient_bytes=0):
        return BlockProfile(
            name=role.value,
            role=role,
            elements=P,
            input_bytes=0 if role is Role.PRELUDE else 4096 * micro_batch_size,
            flops=1e12 * seconds,
            seconds=seconds,
            transient_bytes=transient_bytes,
        )

    layer = block(Role.LAYER, seconds=gpu_seconds * micro_batch_size, transient_bytes=row_bytes * micro_batch_size)
    return Profile(
        machine=evolve(MACHINE, **rates),
        micro_batch_size=micro_batch_size,
        sequence_length=100,
        weight_bytes=2,
        states=tuple(StateVector(name=name, value_bytes=4) for name in ("master", "exp_avg", "exp_avg_sq")),
        blocks=(block(Role.PRELUDE), *([layer] * LAYERS), block(Role.POSTLUDE)),
    )


def case_with(states=Tier.SSD, *, gpu=None, host=None, ssd=None):
    return Case(
        planner=KEEP_NOTHING.open(KEEP_NOTHING.config(states=states)),
        workload=Workload(micro_batches=1, update=Update.OPTIMIZED, clips=False, chunk_elements=P, versions=1),
        limits={Tier.GPU: gpu, Tier.HOST: host, Tier.SSD: ssd},
    )
