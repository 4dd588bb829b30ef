from __future__ import annotations

import pytest
import torch

from lohan_core.engine.buffers import Buffers
from lohan_core.engine.gradients import NORM_ELEMENTS, Gradients, norm_of
from lohan_core.engine.step import StepData, UpdateTerms
from lohan_core.layout import Borrowed, lay_out
from lohan_core.plan import Tier
from lohan_core.schedule.task import Op, Pool, Schedule, Slot, Task

PRELUDE = lay_out(0, "prelude", [("embedding", (3, 2), True), ("bias", (2,), False)])
POSTLUDE = lay_out(
    1,
    "postlude",
    [("norm", (2,), False)],
    (Borrowed(name="embedding", owner=0, slot=PRELUDE.slots[0]),),
)
MADE, OWNERS = Slot("edge_gradients", 0), Slot("owner_gradients", 0)
WEIGHTS = Slot("edge_weights", 0)
ELEMENTS = PRELUDE.elements + POSTLUDE.elements


def make_gradients(dtype, *, sums_apart):
    made = torch.float32 if sums_apart else dtype
    pools = [
        Pool(name=slot.pool, tier=Tier.GPU, slot_bytes=ELEMENTS * kind.itemsize, slots=1)
        for slot, kind in ((MADE, made), (OWNERS, made), (WEIGHTS, dtype))
    ]
    buffers = Buffers(Schedule(tasks=(), pools={pool.name: pool for pool in pools}), torch.device("cpu"))
    for pool in pools:
        buffers.slot(pool.name, 0).fill_(0x7F)  # what another block left
    return Gradients([PRELUDE, POSTLUDE], buffers, dtype, sums_apart=sums_apart)


def make_data():
    return StepData(terms=UpdateTerms(1, 0.0), inputs=[{}], weights=[1.0])


def task(block, *slots, takes=()):
    return Task(index=0, op=Op.BACKWARD, block=block, touches=slots, takes=takes)


def value_of(gradients, slot, entry):
    return gradients.chunk(slot, entry.offset, entry.stop).view(entry.shape)


@pytest.mark.parametrize("elements", [1, NORM_ELEMENTS - 1, 40 * NORM_ELEMENTS + 3])
def test_norms_of_large_blocks_are_as_exact_as_those_of_small_ones(elements):
    gradients = torch.rand(elements, generator=torch.Generator().manual_seed(0)).bfloat16().add_(0.5)
    assert float(norm_of(gradients)) == pytest.approx(float(gradients.double().norm()), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_micro_batch_s_gradients_are_written_as_they_are(dtype):
    """Added to a zero, a negative zero would lose its sign; what gets no gradient is zero, padding too."""
    gradients, data = make_gradients(dtype, sums_apart=False), make_data()
    work = task(0, WEIGHTS, MADE, takes=(MADE,))
    gradients.begin(work)
    gradients.add(work, data, "embedding", torch.full((3, 2), -0.0, dtype=dtype))
    gradients.finish(work, data)
    assert torch.signbit(value_of(gradients, MADE, PRELUDE.slots[0])).all()
    everything = gradients.chunk(MADE, 0, PRELUDE.elements)
    assert not everything.any()
    assert int(torch.signbit(everything).sum()) == 6
    assert data.norms[0] == 0


def test_several_are_summed_in_fp32_and_rounded_once_in_the_place_of_the_weights():
    """In bf16, 256 + 1 + 1 is 256 when rounded after each."""
    gradients, data = make_gradients(torch.bfloat16, sums_apart=True), make_data()
    gradients.begin(task(0, WEIGHTS, MADE, takes=(MADE,)))
    for value in (256.0, 1.0, 1.0):
        gradients.add(task(0, WEIGHTS, MADE), data, "embedding", torch.full((3, 2), value, dtype=torch.bfloat16))
    gradients.finish(task(0, WEIGHTS, MADE), data)
    assert value_of(gradients, WEIGHTS, PRELUDE.slots[0]).eq(258).all()
    assert value_of(gradients, WEIGHTS, PRELUDE.slots[1]).eq(0).all()
    assert data.norms[0].item() == pytest.approx(258 * 6**0.5, rel=1e-6)


@pytest.mark.parametrize("sums_apart", [False, True])
def test_a_tied_parameter_s_gradient_goes_to_its_owner(sums_apart):
    dtype = torch.bfloat16 if sums_apart else torch.float32
    gradients, data = make_gradients(dtype, sums_apart=sums_apart), make_data()
    turn, work = task(1, WEIGHTS, MADE, OWNERS, takes=(MADE, OWNERS)), task(0, WEIGHTS, OWNERS)
    own, owners = (WEIGHTS, WEIGHTS) if sums_apart else (MADE, OWNERS)
    gradients.begin(turn)
    gradients.add(turn, data, "norm", torch.ones(2, dtype=dtype))
    gradients.add(turn, data, "embedding", torch.ones(3, 2, dtype=dtype))
    gradients.finish(turn, data)
    assert value_of(gradients, own, POSTLUDE.slots[0]).eq(1).all()
    gradients.add(work, data, "embedding", torch.full((3, 2), 4.0, dtype=dtype))
    gradients.add(work, data, "bias", torch.ones(2, dtype=dtype))
    gradients.finish(work, data)
    assert value_of(gradients, owners, PRELUDE.slots[0]).eq(5).all()
    assert value_of(gradients, owners, PRELUDE.slots[1]).eq(1).all()
    assert data.norms[1].item() == pytest.approx(2**0.5)
    assert data.norms[0].item() == pytest.approx((25 * 6 + 2) ** 0.5)
