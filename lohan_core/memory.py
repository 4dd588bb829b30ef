"""Host buffers of exact size: whole pages mapped from the kernel, pinned for a GPU on request.

torch's own pinned allocator rounds up to a power of two, up to twice the bytes; here the pages are mapped at their
exact size and then registered with the driver.
"""

from __future__ import annotations

import mmap
import weakref
from contextlib import suppress
from typing import Self

import torch
from torch import Tensor

from lohan_core.errors import PlanError
from lohan_core.layout import round_up

__all__ = ["allocate_host", "pinned_bytes"]

_pinned: dict[int, int] = {}
"""Bytes registered with the driver, by address."""


class _Pages(mmap.mmap):
    """A mapping that the last tensor on it lets go of."""

    unregister: weakref.finalize[..., Self] | None = None

    def __del__(self) -> None:
        # Here the pages are still mapped; when a weak reference is called, they are not.
        if self.unregister is not None:
            self.unregister()


def allocate_host(size_bytes: int, *, pin: bool) -> Tensor:
    """Map ``size_bytes`` of zeroed, page-aligned host memory.

    Args:
        size_bytes: rounded up to whole pages; 0 gives an empty tensor.
        pin: register the pages with the CUDA driver, so that copies to and from a GPU run asynchronously.

    Returns:
        uint8, shape (size_bytes,). The pages are unmapped when the last view of it goes.

    Raises:
        PlanError: the kernel or the driver has not as much to give.
    """
    if size_bytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    try:
        pages = _Pages(-1, round_up(size_bytes, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise PlanError(
            f"memory.host: cannot map {size_bytes} bytes: {error.strerror}; lower memory.host or memory.chunk"
        ) from error
    # Huge pages are few and contiguous pieces for a drive's DMA: direct I/O measured up to twice as fast, at a third of
    # the processor time. A kernel without them refuses, and has lost nothing else.
    with suppress(OSError):
        pages.madvise(mmap.MADV_HUGEPAGE)
    buffer = torch.frombuffer(pages, dtype=torch.uint8, count=size_bytes)
    if pin:
        _register(pages, buffer)
    return buffer


def pinned_bytes() -> int:
    """Return how many bytes of host memory this process has pinned by :func:`allocate_host`, and not given back."""
    return sum(_pinned.values())


def _register(pages: _Pages, buffer: Tensor) -> None:
    runtime = torch.cuda.cudart()
    address = buffer.data_ptr()
    status = runtime.cudaHostRegister(address, buffer.numel(), 0)
    if int(status) != 0:
        _take_last_error()
        raise PlanError(
            f"memory.host: the driver cannot pin {buffer.numel()} bytes ({status}); lower memory.host or raise the "
            "limit on locked memory (ulimit -l)"
        )
    _pinned[address] = buffer.numel()
    pages.unregister = weakref.finalize(pages, _unregister, address)


def _take_last_error() -> None:
    """Take the error from the CUDA runtime, which keeps it: the next kernel to be launched would be blamed for it.

    torch has no way to ask for it but to launch one.
    """
    with suppress(RuntimeError):
        torch.ones(1, device="cuda")


def _unregister(address: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)
    del _pinned[address]
