"""What the drives can do with a step's mix of reads and writes, and nothing else to wait for.

Large transfers through the run's own storage backend, always several in flight, in the step's proportion of bytes: what
a step that is bound by the drives is measured by.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from typing import TYPE_CHECKING

from lohan_core.interfaces.storage import Storage, Transfer

if TYPE_CHECKING:
    import torch

__all__ = ["mixed_bytes_per_second", "mixed_order"]

IN_FLIGHT = 8
"""Transfers; each is divided further by the backend."""

EXTENT_BYTES = 2 << 30
"""What is read, and what is written, again and again: more than a drive's own cache holds."""

FREE_SHARE = 4
"""An extent takes at most one part in so many of what is free."""

READ, WRITE = "bench/read", "bench/write"


def mixed_order(read_share: float) -> Iterator[bool]:
    """Yield without end whether the next transfer is a read, so that at each point ``read_share`` of all were."""
    reads = 0
    for done in count():
        is_read = reads < read_share * (done + 1)
        reads += is_read
        yield is_read


def mixed_bytes_per_second(
    storage: Storage, *, read_bytes: int, write_bytes: int, request_bytes: int, seconds: float
) -> float:
    """Measure the rate of a mix.

    Args:
        storage: open, with space for two extents, which are given back.
        read_bytes: what the step reads.
        write_bytes: what it writes.
        request_bytes: of one transfer; a multiple of the storage's alignment.
        seconds: how long to measure.

    Returns:
        Bytes read and written per second.

    Raises:
        StorageError: a drive failed, or has too little space.
    """
    spare_bytes = storage.capacity().free_bytes // FREE_SHARE
    pieces = max(1, min(EXTENT_BYTES, spare_bytes) // request_bytes)
    with ExitStack() as stack:
        for name in (READ, WRITE):
            storage.allocate(name, pieces * request_bytes)
            stack.callback(storage.free, name)
        mix = _Mix(storage, pieces, request_bytes)
        mix.fill()
        return mix.measure(read_bytes / (read_bytes + write_bytes), seconds)


class _Mix:
    """Reads from one extent and writes to another."""

    def __init__(self, storage: Storage, pieces: int, request_bytes: int) -> None:
        from lohan_core.memory import allocate_host

        self._storage = storage
        self._pieces = pieces
        self._request_bytes = request_bytes
        self._buffers = allocate_host(IN_FLIGHT * request_bytes, pin=False).split(request_bytes)
        for buffer in self._buffers:
            buffer.random_(0, 256)
        storage.register(self._buffers)
        self._in_flight: deque[Transfer] = deque()

    def fill(self) -> None:
        """Write both extents: what was only reserved is read without a drive, and written more slowly."""
        for number in range(2 * self._pieces):
            self._start(READ if number % 2 else WRITE, number // 2, number, is_read=False)
        self._drain()
        self._storage.sync()

    def measure(self, read_share: float, seconds: float) -> float:
        """Return bytes per second, all transfers finished."""
        began = time.perf_counter()
        moved = {True: 0, False: 0}
        for number, is_read in enumerate(mixed_order(read_share)):
            if number >= IN_FLIGHT and time.perf_counter() - began > seconds:
                break
            self._start(READ if is_read else WRITE, moved[is_read], number, is_read=is_read)
            moved[is_read] += 1
        self._drain()
        return sum(moved.values()) * self._request_bytes / (time.perf_counter() - began)

    def _start(self, extent: str, piece: int, number: int, *, is_read: bool) -> None:
        """Start a transfer, in the buffer of the one that was started ``IN_FLIGHT`` before, which is waited for."""
        if len(self._in_flight) == IN_FLIGHT:
            self._in_flight.popleft().wait()
        buffer: torch.Tensor = self._buffers[number % IN_FLIGHT]
        offset = piece % self._pieces * self._request_bytes
        self._in_flight.append((self._storage.read if is_read else self._storage.write)(extent, offset, buffer))

    def _drain(self) -> None:
        while self._in_flight:
            self._in_flight.popleft().wait()
