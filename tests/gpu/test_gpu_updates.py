"""States on the GPU are updated there, to the bits of the processor's updates."""

from __future__ import annotations

import pytest
import torch
from tiny_lms import make_batch
from tiny_runs import different, open_run

from lohan_core.testing.optimizer_places import OptimizerPlaces
from lohan_optim_cpuadam.agreement import same_bits
from lohan_optim_cpuadam.config import CpuAdamConfig
from lohan_optim_cpuadam.optimizer import CpuAdam
from lohan_optim_cpuadam.plugin import lohan_optimizer

pytestmark = pytest.mark.gpu


class TestWhereTensorsLie(OptimizerPlaces):
    """The suite's part that looks at a GPU, if there is one."""

    (backend,) = lohan_optimizer()


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.3, 0.95)])
def test_the_gpus_kernel_gives_the_processors_bits(cuda, betas):
    optimizer = CpuAdam(CpuAdamConfig(betas=betas), threads=2)
    there = optimizer.on_device(cuda)
    assert there is not None
    assert same_bits(optimizer, there, cuda)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("update", ["optimized", "deferred"])
def test_a_run_does_not_depend_on_where_its_states_live(*, tmp_path, models, cuda, clip, update):
    """Losses, and masters after five steps, one of them after a restart by another plan."""
    batches = [make_batch(seed, micro_batches=2) for seed in range(5)]

    def masters(name, places):
        losses = []
        for states, some in places:
            with open_run(
                tmp_path / name,
                models["llama"],
                batches[0],
                run={"dtype": "bfloat16", "device": str(cuda), "update": update},
                optimizer={"backend": "cpuadam", "weight_decay": 0.1, "max_grad_norm": clip},
                storage={"backend": "aio"},
                planner={"backend": "keep_nothing", "states": states},
            ) as engine:
                losses += [engine.step(batch, lr=1e-3).loss for batch in some]
                engine.save({})
                found = {
                    key: t for block in engine._machinery.states.parameters(torch.float32) for key, t in block.items()
                }
        return losses, found

    expected_losses, expected = masters("host", [("host", batches)])
    for places in ([("gpu", batches)], [("gpu", batches[:3]), ("ssd", batches[3:])]):
        losses, found = masters(f"{places[0][0]} {len(places)}", places)
        assert losses == expected_losses
        assert not different(found, expected)
