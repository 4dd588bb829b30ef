"""Computing alike every time: on a GPU, two runs of one plan may differ in the last bits, and then so may two plans."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lohan_core.errors import ModelError

__all__ = ["deterministic_kernels"]


@contextmanager
def deterministic_kernels(device: torch.device) -> Iterator[None]:
    """Have torch take kernels that give the same bits each time. The CPU's do anyway.

    Raises:
        ModelError: an operator of the model has no such kernel on this device.
    """
    if device.type != "cuda":
        yield
        return
    # Read when cuBLAS starts: with one workspace of its own per stream, its results do not depend on the stream.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")  # read by transformers, whenever it calls flash-attn
    settings: Any = torch.utils.deterministic
    fills, before = settings.fill_uninitialized_memory, torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(mode=True)  # attention takes them only where warnings are errors
    settings.fill_uninitialized_memory = False  # it would be a pass over every buffer
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise ModelError(
            f"losses cannot be compared to the bit on {device}: {str(error).splitlines()[0]}; use run.device: cpu, or "
            "--hardware to predict only"
        ) from error
    finally:
        torch.set_deterministic_debug_mode(before)
        settings.fill_uninitialized_memory = fills
