"""Computing alike every time: on a GPU, two runs of one plan may differ in the last bits, and then so may two plans."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["deterministic_kernels"]


@contextmanager
def deterministic_kernels(device: torch.device) -> Iterator[None]:
    """Have torch take kernels that give the same bits each time, where there is a choice; it warns where there is none.

    The CPU's do anyway.
    """
    if device.type != "cuda":
        yield
        return
    # Read when cuBLAS starts: with one workspace of its own per stream, its results do not depend on the stream.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings: Any = torch.utils.deterministic
    fills, before = settings.fill_uninitialized_memory, torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False  # it would be a pass over every buffer
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        settings.fill_uninitialized_memory = fills
