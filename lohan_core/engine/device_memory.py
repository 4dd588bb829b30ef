"""Device memory as torch's allocator has it: capped as the user says, settled before steps, named where too little."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from lohan_core.config.sections import Config
from lohan_core.errors import PlanError
from lohan_core.model.choices import Loss
from lohan_core.schedule.task import Op, Schedule, Task

if TYPE_CHECKING:
    from lohan_core.engine.lanes import Lanes

__all__ = [
    "cap_device_memory",
    "give_back_workspaces",
    "in_short",
    "out_of_memory_told",
    "settle_device_memory",
    "smaller_block",
]

ALLOCATOR_VARIABLES = frozenset({"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"})
ALLOCATOR_SETTINGS = "expandable_segments:True"


@contextmanager
def out_of_memory_told(loss: Loss) -> Iterator[None]:
    """Make torch's own error one that the user can act on, where head and loss are computed as ``loss`` says."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise PlanError(
            f"memory.gpu: too little for one block of the model ({in_short(error)}); {smaller_block(loss)}, or raise "
            "memory.gpu"
        ) from error


def in_short(error: torch.OutOfMemoryError) -> str:
    """Say what torch said without the state of its allocator: what it could not do, and how much was asked for."""
    first = str(error).partition("\n")[0]
    told = re.match(r"(.*?)\. Tried( to allocate [\d.]+ \w+)", first)
    return f"{told[1]}: tried{told[2]}" if told else first


def smaller_block(loss: Loss) -> str:
    """Say what makes a block of the model take less device memory."""
    chunked = ", set model.loss: chunked" if loss is Loss.WHOLE else ""
    return f"lower run.micro_batch_size or data.sequence_length{chunked}"


def cap_device_memory(config: Config, device: torch.device) -> None:
    """Make the user's cap one that torch enforces, and its allocator one that leaves few fragments below it.

    Without a cap, one that an earlier run of this process had is taken off.
    """
    if device.type != "cuda":
        return
    # What the user has set stays. Not by the variable: that is read when the allocator starts, maybe long ago.
    if not ALLOCATOR_VARIABLES & os.environ.keys():
        _set_allocator(ALLOCATOR_SETTINGS)
    cap = config.memory.gpu
    share = 1.0 if cap is None else min(1.0, cap / torch.cuda.get_device_properties(device).total_memory)
    torch.cuda.set_per_process_memory_fraction(share, device)


def give_back_workspaces(device: torch.device) -> None:
    """Give back what cuBLAS keeps for every stream that it has computed on: they may be no more.

    All of them, since torch does not tell them apart. Whoever still computes takes new ones.
    """
    if device.type == "cuda":
        torch._C._cuda_clearCublasWorkspaces()  # noqa: SLF001 - torch has no public way


def settle_device_memory(lanes: Lanes, device: torch.device, dtype: torch.dtype) -> None:
    """Leave on the device only what stays, and nothing of that among what will come and go.

    What start-up held for a while is given back, because no other stream could use it. Then cuBLAS takes its
    workspaces, which every thread has for every stream, and keeps: taken by the first matrix product of a step they
    would lie between activations, and cut in two the pages that larger ones need later.
    """
    if device.type != "cuda":
        return
    torch.cuda.empty_cache()
    square = torch.ones(16, 16, dtype=dtype, device=device, requires_grad=True)

    def multiply(_: Task) -> None:
        (square @ square).sum().backward()  # backward runs on a thread of autograd's

    lanes.execute(Schedule(tasks=(Task(index=0, op=Op.FORWARD),), pools={}), {Op.FORWARD: multiply})


def _set_allocator(settings: str) -> None:
    """Give the allocator its settings. torch offers no public way, and each version another of its own."""
    newer = getattr(torch._C, "_accelerator_setAllocatorSettings", None)  # noqa: SLF001
    (newer or torch.cuda.memory._set_allocator_settings)(settings)  # noqa: SLF001
