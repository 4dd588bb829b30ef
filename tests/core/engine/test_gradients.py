from __future__ import annotations

import pytest
import torch

from lohan_core.engine.buffers import Buffers
from lohan_core.engine.gradients import Gradients
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
OWN, OWNERS = Slot("edge_gradients", 0), Slot("edge_gradients", 1)
SUM, OWNERS_SUM = Slot("edge_sums", 0), Slot("edge_sums", 1)


def make_gradients(dtype, *, sums):
    elements = max(PRELUDE.elements, POSTLUDE.elements)
    pools = [Pool(name="edge_gradients", tier=Tier.GPU, slot_bytes=elements * dtype.itemsize, slots=2)]
    pools += [Pool(name="edge_sums", tier=Tier.GPU, slot_bytes=elements * 4, slots=2)] if sums else []
    buffers = Buffers(Schedule(tasks=(), pools={pool.name: pool for pool in pools}), torch.device("cpu"))
    for pool in pools:
        for index in range(2):
            buffers.slot(pool.name, index).fill_(0x7F)  # what another block left
    return Gradients([PRELUDE, POSTLUDE], buffers, dtype)


def make_data():
    return StepData(terms=UpdateTerms(1, 0.0), inputs=[{}], weights=[1.0])


def task(block, *slots, takes=()):
    return Task(index=0, op=Op.BACKWARD, block=block, touches=slots, takes=takes)


def value_of(gradients, slot, entry):
    return gradients.chunk(slot, entry.offset, entry.stop).view(entry.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_micro_batch_s_gradients_are_written_as_they_are(dtype):
    """Added to a zero, a negative zero would lose its sign; what gets no gradient is zero, padding too."""
    gradients, data = make_gradients(dtype, sums=False), make_data()
    work = task(0, OWN, takes=(OWN,))
    gradients.begin(work)
    gradients.add(work, data, {"embedding": torch.full((3, 2), -0.0, dtype=dtype), "bias": None})
    gradients.finish(work, data)
    assert torch.signbit(value_of(gradients, OWN, PRELUDE.slots[0])).all()
    everything = gradients.chunk(OWN, 0, PRELUDE.elements)
    assert not everything.any()
    assert int(torch.signbit(everything).sum()) == 6
    assert data.norms[0] == 0


def test_several_are_summed_in_fp32_and_rounded_once():
    """In bf16, 256 + 1 + 1 is 256 when rounded after each."""
    gradients, data = make_gradients(torch.bfloat16, sums=True), make_data()
    slots = (OWN, SUM)
    gradients.begin(task(0, *slots, takes=slots))
    for value in (256.0, 1.0, 1.0):
        gradients.add(
            task(0, *slots),
            data,
            {"embedding": torch.full((3, 2), value, dtype=torch.bfloat16), "bias": None},
        )
    gradients.finish(task(0, *slots), data)
    assert value_of(gradients, OWN, PRELUDE.slots[0]).eq(258).all()
    assert data.norms[0].item() == pytest.approx(258 * 6**0.5, rel=1e-6)


@pytest.mark.parametrize("sums", [False, True])
def test_a_tied_parameter_s_gradient_goes_to_its_owner(sums):
    dtype = torch.bfloat16 if sums else torch.float32
    gradients, data = make_gradients(dtype, sums=sums), make_data()
    own, owners = ((OWN, SUM), (OWNERS, OWNERS_SUM)) if sums else ((OWN,), (OWNERS,))
    turn = [slot for pair in zip(own, owners, strict=True) for slot in pair]
    gradients.begin(task(1, *turn, takes=tuple(turn)))
    gradients.add(
        task(1, *turn), data, {"norm": torch.ones(2, dtype=dtype), "embedding": torch.ones(3, 2, dtype=dtype)}
    )
    gradients.finish(task(1, *turn), data)
    gradients.add(
        task(0, *owners), data, {"embedding": torch.full((3, 2), 4.0, dtype=dtype), "bias": torch.ones(2, dtype=dtype)}
    )
    gradients.finish(task(0, *owners), data)
    assert value_of(gradients, OWN, POSTLUDE.slots[0]).eq(1).all()
    assert value_of(gradients, OWNERS, PRELUDE.slots[0]).eq(5).all()
    assert value_of(gradients, OWNERS, PRELUDE.slots[1]).eq(1).all()
    assert data.norms[1].item() == pytest.approx(2**0.5)
    assert data.norms[0].item() == pytest.approx((25 * 6 + 2) ** 0.5)
