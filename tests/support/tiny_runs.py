"""Runs of tiny models by the engine, and the same by plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from tiny_backends import Recorder, TestBackends, make_registry
from torch import Tensor
from transformers import PreTrainedModel

from lohan_core.config.load import config_from_mapping
from lohan_core.data.batches import Batch
from lohan_core.engine.assemble import open_engine
from lohan_core.engine.engine import Engine
from lohan_core.engine.step import micro_batch_seed
from lohan_core.plan import Plan, Workload
from lohan_core.schedule.build import build_schedule, build_updates
from lohan_core.schedule.task import Op

SEED = 5


def open_run(
    directory: Path,
    model: Path,
    batch: Batch,
    backends: TestBackends | None = None,
    /,
    *,
    plan: Plan | None = None,
    workload: Workload | None = None,
    **sections: Mapping,
) -> Engine:
    """Open an engine on the CPU; ``sections`` add to the defaults below, or replace them."""
    registry = make_registry(backends or TestBackends())
    rows = len(batch.micro_batches[0]["input_ids"])
    values = {
        "model": {"path": str(model)},
        "data": {"train": str(directory / "none.jsonl"), "sequence_length": batch.micro_batches[0]["labels"].shape[1]},
        "run": {
            "dir": str(directory),
            "steps": 100,
            "seed": SEED,
            "device": "cpu",
            "dtype": "float32",
            "batch_size": rows * len(batch.micro_batches),
            "micro_batch_size": rows,
        },
        "memory": {"chunk": "32KiB"},
        "storage": {"backend": "memory"},
        "optimizer": {"backend": "recorder", "max_grad_norm": None},
        "planner": {"backend": "keep_nothing"},
        "profiler": {"backend": "quick"},
    }
    for section, changes in sections.items():
        base = values[section]
        values[section] = (
            dict(changes)
            if changes.get("backend", base.get("backend")) != base.get("backend")
            else {
                **base,
                **changes,
            }
        )
    config = config_from_mapping(values, registry)
    return open_engine(config, batch, registry=registry, plan=plan, workload=workload)


def recorded_gradients(engine: Engine, recorder: Recorder) -> dict[str, Tensor]:
    """Gradients of the only step so far, by parameter name: what the optimizer was given, in the schedules' order."""
    engine.finish_updates()
    decided = engine.plan, engine.profile, engine.workload
    tasks = [*build_schedule(*decided, pending=False).tasks, *build_updates(*decided).tasks]
    flat = [torch.zeros(block.elements, dtype=engine.model.dtype) for block in engine.model.blocks]
    calls = {
        Op.UPDATE: iter(recorder.calls),
        Op.UPDATE_ON_GPU: iter(recorder.there.calls if recorder.there is not None else ()),
    }
    for task in tasks:
        if task.op in calls:
            block = engine.model.blocks[task.block]
            chunks = block.chunks(engine.workload.chunk_elements)
            for chunk in [chunks[task.chunk]] if task.op is Op.UPDATE else block.chunks(block.elements):
                for start, stop, _ in block.spans(chunk):
                    flat[task.block][start:stop] = next(calls[task.op])[0]
    assert all(next(left, None) is None for left in calls.values())
    return {
        slot.name: flat[block.index][slot.offset : slot.stop].view(slot.shape)
        for block in engine.model.blocks
        for slot in block.slots
    }


def plain_step(model: PreTrainedModel, batch: Batch, step: int) -> tuple[float, dict[str, Tensor]]:
    """Compute loss and gradients by plain PyTorch, and leave no gradient behind.

    Every micro-batch draws from the seed that the engine gives it, and weighs as many tokens as it predicts. Gradients
    of one micro-batch are as backward left them; of several, they are summed in fp32 and rounded once.
    """
    total = sum(batch.loss_tokens)
    sums: dict[str, Tensor] = {}
    mean = 0.0
    for index, (inputs, tokens) in enumerate(zip(batch.micro_batches, batch.loss_tokens, strict=True)):
        torch.manual_seed(micro_batch_seed(SEED, step, index))
        loss = model(**inputs, use_cache=False).loss
        loss.backward(torch.full_like(loss, tokens / total))
        mean += tokens / total * float(loss.detach())
        for name, parameter in model.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            sums[name] = sums[name] + gradient.float() if name in sums else gradient.float()
        model.zero_grad(set_to_none=True)
    return mean, {name: total.to(model.dtype) for name, total in sums.items()}


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors are alike to the bit: zeros of another sign differ."""
    bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[one.dtype]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.view(bits), other.view(bits))


def different(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """Name the parameters that differ, or that only one side has."""
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not same_bits(ours[name].contiguous(), theirs[name].contiguous())]
