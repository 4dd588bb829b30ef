"""On a CUDA device as on the CPU: whatever the plan, the gradients are those of plain backward, to the bit."""

from __future__ import annotations

import pytest
import torch
from attrs import evolve
from tiny_lms import CONFIGS, load_lm, make_batch
from tiny_runs import different, open_run, plain_step, recorded_gradients

pytestmark = pytest.mark.gpu

PLANNERS = {
    "keep nothing": {"backend": "keep_nothing"},
    "keep nothing, states on host": {"backend": "keep_nothing", "states": "host", "inputs": "gpu"},
    "keep nothing, states on gpu": {"backend": "keep_nothing", "states": "gpu"},
    "keep all on gpu": {"backend": "keep_all", "candidates": "gpu", "inputs": "gpu"},
    "keep all on host": {"backend": "keep_all", "candidates": "host", "states": "host"},
    "keep all on ssd": {"backend": "keep_all", "candidates": "ssd", "inputs": "ssd"},
    "dice 1": {"backend": "dice", "seed": 1},
    "dice 2": {"backend": "dice", "seed": 2},
}
GPU_LANES = ("gpu", "h2d", "d2h")


def to_device(batch, device):
    return evolve(
        batch,
        micro_batches=tuple(
            {name: tensor.to(device) for name, tensor in group.items()} for group in batch.micro_batches
        ),
    )


def plain_gradients(path, dtype, batch, device):
    loss, gradients = plain_step(load_lm(path, dtype).to(device), to_device(batch, device), step=1)
    return loss, {name: gradient.cpu() for name, gradient in gradients.items()}


def check_gradients(tmp_path, model, batch, backends, *, device, dtype, planner, prepare=lambda _: None):
    sections = {"run": {"dtype": dtype, "device": "cuda"}, "planner": PLANNERS[planner]}
    with open_run(tmp_path, model, batch, backends, **sections) as engine:
        prepare(engine)
        result = engine.step(batch, lr=0.0)
        ours = recorded_gradients(engine, backends.recorder)
    loss, theirs = plain_gradients(model, getattr(torch, dtype), batch, device)
    assert not different(ours, theirs)
    assert result.loss == pytest.approx(loss, rel=1e-12)  # micro-batches' losses are added in another order


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_those_of_plain_backward(*, tmp_path, models, backends, cuda, dtype, architecture, planner):
    check_gradients(tmp_path, models[architecture], make_batch(1), backends, device=cuda, dtype=dtype, planner=planner)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("planner", ["keep nothing", "keep all on host", "dice 1"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_several_micro_batches_are_summed_in_fp32(*, tmp_path, models, backends, cuda, dtype, planner, packed):
    batch = make_batch(2, micro_batches=3, packed=packed)
    check_gradients(tmp_path, models["mixtral"], batch, backends, device=cuda, dtype=dtype, planner=planner)


@pytest.mark.parametrize(
    "planner",
    ["keep nothing, states on host", "keep nothing, states on gpu", "keep all on host", "keep all on ssd", "dice 2"],
)
@pytest.mark.parametrize("slow", GPU_LANES)
def test_no_lane_overtakes_what_it_waits_for(*, tmp_path, models, backends, cuda, slow, planner):
    """Holding a stream up before each of its tasks would let the others run into it, were a dependency missing."""

    def hold_up(engine):
        def slowed(action):
            def act(task):
                if task.lane == slow:
                    torch.cuda._sleep(2_000_000)  # cycles: about a millisecond, longer than any task here takes
                action(task)

            return act

        machinery = engine._machinery
        machinery.actions = {op: slowed(action) for op, action in machinery.actions.items()}

    batch = make_batch(3, micro_batches=3)
    check_gradients(
        tmp_path,
        models["llama"],
        batch,
        backends,
        device=cuda,
        dtype="bfloat16",
        planner=planner,
        prepare=hold_up,
    )


@pytest.mark.parametrize("update", ["serial", "optimized", "deferred"])
def test_twenty_steps_come_out_the_same_twice(tmp_path, models, cuda, update):
    def train(directory, planner):
        batches = [make_batch(seed, micro_batches=2) for seed in range(20)]
        sections = {
            "run": {"dtype": "bfloat16", "device": "cuda", "update": update},
            "optimizer": {"backend": "torch_adamw", "max_grad_norm": 1.0},
            "planner": PLANNERS[planner],
        }
        with open_run(directory, models["gpt2"], batches[0], **sections) as engine:
            results = [engine.step(batch, lr=1e-3) for batch in batches]
            engine.export(directory / "model", torch.float32)
        return [(result.loss, result.gradient_norm) for result in results], load_lm(directory / "model", torch.float32)

    losses, model = train(tmp_path / "one", "keep nothing")
    for directory, planner in ((tmp_path / "two", "keep nothing"), (tmp_path / "three", "keep all on host")):
        again, other = train(directory, planner)
        assert again == losses
        assert not different(dict(model.named_parameters()), dict(other.named_parameters()))
    assert cuda.type == "cuda"
    assert losses[0] != losses[-1]
