"""Buffers as a storage wants them, and whole writes and reads of them."""

from __future__ import annotations

import torch

from lohan_core.interfaces.storage import Storage

__all__ = ["aligned_buffer", "random_buffer", "read", "write"]


def aligned_buffer(storage: Storage, units: int) -> torch.Tensor:
    """Make a host buffer of ``units`` times the storage's alignment, at an aligned address."""
    size = units * storage.alignment
    raw = torch.zeros(size + storage.alignment, dtype=torch.uint8)
    start = -raw.data_ptr() % storage.alignment
    return raw[start : start + size]


def random_buffer(storage: Storage, units: int, seed: int) -> torch.Tensor:
    """Make a host buffer of random bytes."""
    buffer = aligned_buffer(storage, units)
    generator = torch.Generator().manual_seed(seed)
    return buffer.random_(0, 256, generator=generator)


def write(storage: Storage, name: str, buffer: torch.Tensor, offset: int = 0) -> None:
    """Write and wait."""
    storage.write(name, offset, buffer).wait()


def read(storage: Storage, name: str, units: int, offset: int = 0) -> torch.Tensor:
    """Read and wait."""
    buffer = aligned_buffer(storage, units)
    storage.read(name, offset, buffer).wait()
    return buffer
