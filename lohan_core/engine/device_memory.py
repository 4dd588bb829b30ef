"""The user's cap on device memory: enforced by torch's allocator, and named where it is too little."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lohan_core.config.sections import Config
from lohan_core.errors import PlanError

__all__ = ["cap_device_memory", "out_of_memory_told"]

ALLOCATOR_VARIABLES = frozenset({"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"})
ALLOCATOR_SETTINGS = "expandable_segments:True"


@contextmanager
def out_of_memory_told() -> Iterator[None]:
    """Make torch's own error one that the user can act on."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise PlanError(
            f"memory.gpu: too little for one block of the model ({str(error).splitlines()[0]}); lower "
            "run.micro_batch_size or data.sequence_length, or raise memory.gpu"
        ) from error


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


def _set_allocator(settings: str) -> None:
    """Give the allocator its settings. torch offers no public way, and each version another of its own."""
    newer = getattr(torch._C, "_accelerator_setAllocatorSettings", None)  # noqa: SLF001
    (newer or torch.cuda.memory._set_allocator_settings)(settings)  # noqa: SLF001
