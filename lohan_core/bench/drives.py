"""What the drives can do with a step's mix of reads and writes, and nothing else to wait for.

Large transfers through the run's own storage backend, always several in flight, in the step's proportion of bytes: what
a step that is bound by the drives is measured by. They take turns with the steps, since drives are now faster and now
slower: other users of the same one, its cache, its temperature.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import TYPE_CHECKING

from lohan_core.errors import StorageError
from lohan_core.interfaces.storage import Storage, Transfer

if TYPE_CHECKING:
    import torch

__all__ = ["DrivesAlone", "mixed_order"]

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


class DrivesAlone:
    """The drives beside the steps: after each, they are given its mix of reads and writes for a while.

    Attributes:
        failure: why they could not be measured; None if they could, or nobody has asked.
    """

    failure: str | None = None

    def __init__(self, open_storage: Callable[[], Storage], *, request_bytes: int, seconds: float) -> None:
        """Nothing is opened before the first turn.

        Args:
            open_storage: gives the storage, with space for two extents; closed by :meth:`close`.
            request_bytes: of one transfer; a multiple of the storage's alignment.
            seconds: how long a turn is.
        """
        self._open_storage = open_storage
        self._request_bytes = request_bytes
        self._seconds = seconds
        self._storage: Storage | None = None
        self._mix: _Mix | None = None
        self._moved_bytes = 0
        self._moving_seconds = 0.0

    @property
    def bytes_per_second(self) -> float:
        """Bytes read and written in all turns so far, per second of them."""
        return self._moved_bytes / self._moving_seconds

    def turn(self, read_bytes: int, write_bytes: int) -> None:
        """Move so much of each, in proportion, as the seconds allow. After a failure, and of nothing, there is none."""
        if self.failure is not None or not read_bytes + write_bytes:
            return
        try:
            self._mix = self._mix or self._prepare()
            moved_bytes, seconds = self._mix.measure(read_bytes / (read_bytes + write_bytes), self._seconds)
        except StorageError as error:
            self.failure = str(error)
            return
        self._moved_bytes += moved_bytes
        self._moving_seconds += seconds

    def close(self) -> None:
        """Give the extents back."""
        if self._storage is None:
            return
        try:
            for name in list(self._storage.extents()):
                self._storage.free(name)
        finally:
            self._storage.close()

    def _prepare(self) -> _Mix:
        self._storage = storage = self._open_storage()
        spare_bytes = storage.capacity().free_bytes // FREE_SHARE
        pieces = max(1, min(EXTENT_BYTES, spare_bytes) // self._request_bytes)
        for name in (READ, WRITE):
            storage.allocate(name, pieces * self._request_bytes)
        mix = _Mix(storage, pieces, self._request_bytes)
        mix.fill()
        return mix


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

    def measure(self, read_share: float, seconds: float) -> tuple[int, float]:
        """Return how many bytes were moved in how many seconds, about as many as given, all transfers finished."""
        began = time.perf_counter()
        moved = {True: 0, False: 0}
        for number, is_read in enumerate(mixed_order(read_share)):
            if number >= IN_FLIGHT and time.perf_counter() - began > seconds:
                break
            self._start(READ if is_read else WRITE, moved[is_read], number, is_read=is_read)
            moved[is_read] += 1
        self._drain()
        return sum(moved.values()) * self._request_bytes, time.perf_counter() - began

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
